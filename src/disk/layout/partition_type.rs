//! Partition types, by the names that layouts give them and by the GUIDs of the partition table.
//!
//! The GUIDs are those of the Discoverable Partitions Specification.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

/// What a partition is for, as its type GUID says it to firmware and systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionType {
    Esp,
    BiosBoot,
    Xbootldr,
    Swap,
    /// The root partition of the system's architecture (Discoverable Partitions Specification).
    Root,
    Home,
    Srv,
    Var,
    Linux,
    Guid(Uuid),
}

const TYPE_NAMES: [(&str, PartitionType); 9] = [
    ("esp", PartitionType::Esp),
    ("bios-boot", PartitionType::BiosBoot),
    ("xbootldr", PartitionType::Xbootldr),
    ("swap", PartitionType::Swap),
    ("root", PartitionType::Root),
    ("home", PartitionType::Home),
    ("srv", PartitionType::Srv),
    ("var", PartitionType::Var),
    ("linux", PartitionType::Linux),
];

impl PartitionType {
    /// Returns the type GUID that is written into the table.
    pub fn guid(self, architecture: Architecture) -> Uuid {
        match self {
            PartitionType::Esp => Uuid::from_u128(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b),
            PartitionType::BiosBoot => Uuid::from_u128(0x21686148_6449_6e6f_744e_656564454649),
            PartitionType::Xbootldr => Uuid::from_u128(0xbc13c2ff_59e6_4262_a352_b275fd6f7172),
            PartitionType::Swap => Uuid::from_u128(0x0657fd6d_a4ab_43c4_84e5_0933c84b4f4f),
            PartitionType::Root => architecture.root_guid(),
            PartitionType::Home => Uuid::from_u128(0x933ac7e1_2eb4_4f13_b844_0e14e2aef915),
            PartitionType::Srv => Uuid::from_u128(0x3b8f8425_20e0_4f3b_907f_1a25a76f98e8),
            PartitionType::Var => Uuid::from_u128(0x4d21b016_b534_45c2_a9fb_5c16e091fd2d),
            PartitionType::Linux => Uuid::from_u128(0x0fc63daf_8483_4772_8e79_3d69d8477de4),
            PartitionType::Guid(guid) => guid,
        }
    }
}

impl FromStr for PartitionType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((_, kind)) = TYPE_NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(*kind);
        }
        // Braces, URNs and bare hex digits are also UUIDs to the parser, but not in a partition table's tools.
        match text.parse::<Uuid>() {
            Ok(guid) if text.len() == 36 && !guid.is_nil() => Ok(PartitionType::Guid(guid)),
            _ => {
                let names: Vec<&str> = TYPE_NAMES.iter().map(|(name, _)| *name).collect();
                Err(format!(
                    "{text:?} is no partition type; choose one of {}, or write a type GUID",
                    names.join(", ")
                ))
            }
        }
    }
}

impl fmt::Display for PartitionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, TYPE_NAMES.iter().find(|(_, kind)| kind == self)) {
            (PartitionType::Guid(guid), _) => f.pad(&guid.to_string()),
            (_, Some((name, _))) => f.pad(name),
            (_, None) => unreachable!("every named type is in TYPE_NAMES"),
        }
    }
}

impl Serialize for PartitionType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PartitionType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The processor a system runs on, for the type GUID of its root partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    X86_64,
    X86,
    Aarch64,
    Arm,
    Riscv64,
    Loongarch64,
    Ppc64le,
    S390x,
}

impl Architecture {
    /// Returns the architecture of a Nix system such as `x86_64-linux`.
    pub fn of_system(system: &str) -> Option<Architecture> {
        Some(match system.trim().split('-').next()? {
            "x86_64" => Architecture::X86_64,
            "i686" | "i586" => Architecture::X86,
            "aarch64" => Architecture::Aarch64,
            "armv6l" | "armv7l" | "armv5tel" => Architecture::Arm,
            "riscv64" => Architecture::Riscv64,
            "loongarch64" => Architecture::Loongarch64,
            "powerpc64le" => Architecture::Ppc64le,
            "s390x" => Architecture::S390x,
            _ => return None,
        })
    }

    fn root_guid(self) -> Uuid {
        Uuid::from_u128(match self {
            Architecture::X86_64 => 0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709,
            Architecture::X86 => 0x44479540_f297_41b2_9af7_d131d5f0458a,
            Architecture::Aarch64 => 0xb921b045_1df0_41c3_af44_4c6f280d3fae,
            Architecture::Arm => 0x69dad710_2ce4_4e3c_b16c_21a1d49abed3,
            Architecture::Riscv64 => 0x72ec70a6_cf74_40e6_bd49_4bda08e8f224,
            Architecture::Loongarch64 => 0x77055800_792c_4f94_b39a_98c91b762bb6,
            Architecture::Ppc64le => 0xc31c45e6_3f39_412e_80fb_4809c4980599,
            Architecture::S390x => 0x5eead9a9_fe09_4a1e_a1d7_520d00531306,
        })
    }
}
