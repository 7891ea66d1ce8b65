//! Layouts: what should be on a disk, as `--layout FILE` and the manifest write it.
//!
//! Decides only. [`parse`] and [`Layout::validate`] turn every mistake into one sentence;
//! [`super::derive`] makes a layout of a system's own fstab; [`super::table`] turns sizes into
//! sectors. The format is told, with examples, in `docs/layout.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

pub use super::derive::{Derived, Loader, Present, Wanted, check, derive};
use crate::size::Bytes;

// Entries of the partition array that every tool makes room for.
const MOST_PARTITIONS: usize = 128;
// The name field of a GPT entry.
const PARTITION_NAME_UNITS: usize = 36;

/// The disks of a system. This version installs onto one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Layout {
    pub disks: BTreeMap<String, DiskLayout>,
}

/// What one disk holds, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiskLayout {
    /// The disk the configuration was written for. Told, never followed: the command names the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    pub partitions: Vec<Partition>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Partition {
    /// The PARTLABEL.
    pub name: String,
    #[serde(rename = "type")]
    pub kind: PartitionType,
    pub size: Size,
    /// The PARTUUID; a fresh one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "partuuid")]
    pub uuid: Option<Uuid>,
    /// Attribute bits of the GPT entry by number, such as 59: grow the file system.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Content {
    Filesystem(Filesystem),
    Btrfs(Btrfs),
    Swap(Swap),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filesystem {
    pub format: Format,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mountpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// A btrfs with subvolumes; `mountpoint` mounts its top level.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Btrfs {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mountpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subvolumes: Vec<Subvolume>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subvolume {
    /// Below the top level, such as `@home` or `root/home`; a leading slash is allowed.
    pub path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mountpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Swap {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Ext2,
    Ext3,
    Ext4,
    Xfs,
    Vfat,
    Btrfs,
}

impl Format {
    pub fn name(self) -> &'static str {
        match self {
            Format::Ext2 => "ext2",
            Format::Ext3 => "ext3",
            Format::Ext4 => "ext4",
            Format::Xfs => "xfs",
            Format::Vfat => "vfat",
            Format::Btrfs => "btrfs",
        }
    }

    pub fn from_name(name: &str) -> Option<Format> {
        let all = [Format::Ext2, Format::Ext3, Format::Ext4, Format::Xfs, Format::Vfat, Format::Btrfs];
        all.into_iter().find(|format| format.name() == name)
    }
}

/// How large a partition is: `"512M"`, or `"100%"` of what the others leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Fixed(Bytes),
    Rest,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "100%" => Ok(Size::Rest),
            _ => match text.parse::<Bytes>() {
                Ok(Bytes(0)) => {
                    Err("a size of 0 holds nothing; write a size such as 512M, or 100%".to_owned())
                }
                Ok(bytes) => Ok(Size::Fixed(bytes)),
                Err(error) => Err(format!("{error}, or 100% for what is left")),
            },
        }
    }
}

impl fmt::Display for Size {
    /// Prints the size so that it is read back as the same size.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Size::Fixed(Bytes(bytes)) = *self else { return f.pad("100%") };
        let units = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
        match units.into_iter().find(|(_, shift)| bytes > 0 && bytes % (1 << shift) == 0) {
            Some((unit, shift)) => f.pad(&format!("{}{unit}", bytes >> shift)),
            None => f.pad(&bytes.to_string()),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

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

fn partuuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Uuid>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    match text.parse::<Uuid>() {
        Ok(uuid) if text.len() == 36 => Ok(Some(uuid)),
        _ => Err(de::Error::custom(format!(
            "{text:?} is no partition UUID; write it as 8-4-4-4-12 hex digits"
        ))),
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

/// Why a layout cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LayoutError {
    #[error("the layout is no valid JSON: {0}")]
    Json(String),
    #[error("{at} of the layout: {what}")]
    Field { at: String, what: String },
    #[error("the layout names no disk; write one below \"disks\"")]
    NoDisk,
    #[error("the layout names {0} disks and this version installs onto one; keep one below \"disks\"")]
    Disks(usize),
    #[error(
        "{at} of the layout: content of type {kind:?} is not supported in this version; use filesystem, btrfs or swap"
    )]
    Unsupported { at: String, kind: String },
    #[error("the layout has no partition; write at least the one that holds /")]
    NoPartition,
    #[error("the layout has {0} partitions and a partition table holds 128")]
    TooManyPartitions(usize),
    #[error("partition {0} has size 100% and others follow it; let the last partition take the rest")]
    RestNotLast(String),
    #[error("partition {0} has size 0; write a size such as 512M, or 100%")]
    Empty(String),
    #[error("partition name {name:?} {why}")]
    PartitionName { name: String, why: &'static str },
    #[error("the {what} {value:?} is used twice; make it unique")]
    Duplicate { what: &'static str, value: String },
    #[error("mount point {value:?} {why}")]
    MountPoint { value: String, why: &'static str },
    #[error("subvolume path {value:?} {why}")]
    Subvolume { value: String, why: &'static str },
    #[error("the label {label:?} is {length} bytes long and {format} allows {limit}; shorten it")]
    LabelTooLong { label: String, format: &'static str, limit: usize, length: usize },
    #[error("the label {label:?} holds {character:?}, which {format} does not take; leave it out")]
    LabelCharacter { label: String, format: &'static str, character: char },
    #[error("the label {0:?} is empty; leave the label out instead")]
    LabelEmpty(String),
    #[error("{uuid:?} is no UUID for {format}; write it as {example}")]
    Uuid { uuid: String, format: &'static str, example: &'static str },
    #[error("the mount option {0:?} holds a comma, a space or nothing; write one option an entry")]
    MountOption(String),
    #[error("{0} chooses a subvolume by a mount option; list it below \"subvolumes\" instead")]
    SubvolumeOption(String),
    #[error(
        "partition {0} is the EFI system partition, which firmware reads as vfat; give it a vfat file system"
    )]
    EspNotVfat(String),
    #[error("partition {0} is the BIOS boot partition, where GRUB writes its code; leave its content out")]
    BiosBootContent(String),
    #[error("partition {name} is of type {kind} and holds {content}; let type and content agree")]
    TypeAndContent { name: String, kind: PartitionType, content: &'static str },
    #[error(
        "the root file system cannot be vfat, which keeps no owners, modes or links; use ext4, xfs or btrfs"
    )]
    VfatRoot(String),
    #[error("attribute {bit} of partition {name} is no bit of a partition entry; write numbers from 0 to 63")]
    Attribute { name: String, bit: u8 },
    #[error("nothing in the layout is mounted on /, /nix or /nix/store; say where the system goes")]
    NoRoot,
    #[error("the disk holds {have} and the layout needs {need}; choose a larger disk or smaller partitions")]
    DoesNotFit { need: Bytes, have: Bytes },
    #[error("partition {name} is {have} large and {format} needs at least {need}; enlarge it")]
    TooSmall { name: String, format: &'static str, need: Bytes, have: Bytes },
    #[error("sectors of {0} bytes are not supported; disks have 512 or 4096")]
    SectorSize(u64),
    #[error("{device}, mounted on {mountpoint}, {why}; describe the disk with --layout FILE")]
    CannotDerive { device: String, mountpoint: String, why: String },
    #[error(
        "the system's fstab has no entry for / and its kernel parameters do not say root=gpt-auto; describe the disk with --layout FILE"
    )]
    NoRootInFstab,
    #[error(
        "the system mounts {device} on {mountpoint} and the layout does not make it, so the clone would not boot; give a partition {hint}"
    )]
    NotReproduced { device: String, mountpoint: String, hint: String },
}

impl LayoutError {
    /// Tells whether the layout may well be right, and only this version cannot make it.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, LayoutError::Unsupported { .. } | LayoutError::Disks(_))
    }
}

/// Parses and validates a layout file.
pub fn parse(json: &str) -> Result<Layout, LayoutError> {
    let value: serde_json::Value =
        serde_json::from_str(json).map_err(|error| LayoutError::Json(error.to_string()))?;
    // First disk by disk and partition by partition, so that the error says where.
    let at_disks = value.get("disks").and_then(|disks| disks.as_object());
    for (name, disk) in at_disks.into_iter().flatten() {
        let partitions = disk.get("partitions").and_then(|list| list.as_array());
        for (index, partition) in partitions.into_iter().flatten().enumerate() {
            let called = partition.get("name").and_then(|name| name.as_str());
            let at = match called {
                Some(called) => format!("partition {called:?} of disk {name:?}"),
                None => format!("partition {} of disk {name:?}", index + 1),
            };
            let kind = partition.get("content").and_then(|content| content.get("type")?.as_str());
            if let Some(
                kind @ ("luks" | "lvm_pv" | "lvm" | "mdraid" | "zfs" | "bcachefs" | "gpt" | "table"),
            ) = kind
            {
                return Err(LayoutError::Unsupported { at, kind: kind.to_owned() });
            }
            serde_json::from_value::<Partition>(partition.clone())
                .map_err(|error| LayoutError::Field { at, what: error.to_string() })?;
        }
        serde_json::from_value::<DiskLayout>(disk.clone())
            .map_err(|error| LayoutError::Field { at: format!("disk {name:?}"), what: error.to_string() })?;
    }
    let layout: Layout = serde_json::from_value(value)
        .map_err(|error| LayoutError::Field { at: "the top level".to_owned(), what: error.to_string() })?;
    layout.validate()?;
    Ok(layout)
}

/// One mount of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry<'a> {
    /// Index into the disk's partitions.
    pub partition: usize,
    pub mountpoint: &'a str,
    pub format: Format,
    pub subvolume: Option<&'a str>,
    pub options: &'a [String],
}

impl Layout {
    /// Returns the name and the layout of the one disk.
    pub fn disk(&self) -> Result<(&str, &DiskLayout), LayoutError> {
        match self.disks.len() {
            0 => Err(LayoutError::NoDisk),
            1 => {
                let (name, disk) = self.disks.first_key_value().expect("one disk is there");
                Ok((name, disk))
            }
            many => Err(LayoutError::Disks(many)),
        }
    }

    /// Checks what the types do not say already.
    pub fn validate(&self) -> Result<(), LayoutError> {
        self.disk()?.1.validate()
    }
}

impl DiskLayout {
    /// Returns what is mounted where, parents first.
    pub fn mounts(&self) -> Vec<MountEntry<'_>> {
        let mut mounts: Vec<MountEntry<'_>> = self
            .partitions
            .iter()
            .enumerate()
            .filter_map(|(index, partition)| Some((index, partition.content.as_ref()?)))
            .flat_map(|(index, content)| content.mounts(index))
            .collect();
        mounts.sort_by(|a, b| components(a.mountpoint).cmp(&components(b.mountpoint)));
        mounts
    }

    /// Returns the index of the partition that `path` of the installed system is stored on.
    pub fn partition_of(&self, path: &str) -> Option<usize> {
        let path = components(path);
        let under = |mount: &MountEntry<'_>| path.starts_with(&components(mount.mountpoint));
        self.mounts().iter().rev().find(|mount| under(mount)).map(|mount| mount.partition)
    }

    /// Returns the index of the EFI system partition.
    pub fn esp(&self) -> Option<usize> {
        self.partitions.iter().position(|partition| partition.kind == PartitionType::Esp)
    }

    fn validate(&self) -> Result<(), LayoutError> {
        if self.partitions.is_empty() {
            return Err(LayoutError::NoPartition);
        }
        if self.partitions.len() > MOST_PARTITIONS {
            return Err(LayoutError::TooManyPartitions(self.partitions.len()));
        }
        let before_last = &self.partitions[..self.partitions.len() - 1];
        if let Some(partition) = before_last.iter().find(|partition| partition.size == Size::Rest) {
            return Err(LayoutError::RestNotLast(partition.name.clone()));
        }
        for partition in &self.partitions {
            partition.validate()?;
        }
        self.check_unique()?;
        let mounts = self.mounts();
        for mount in &mounts {
            check_mount_point(mount.mountpoint)?;
            check_options(mount)?;
        }
        let for_system = |mount: &&MountEntry<'_>| matches!(mount.mountpoint, "/" | "/nix" | "/nix/store");
        let mut roots = mounts.iter().filter(for_system).peekable();
        if roots.peek().is_none() {
            return Err(LayoutError::NoRoot);
        }
        match roots.find(|mount| mount.format == Format::Vfat) {
            Some(mount) => Err(LayoutError::VfatRoot(mount.mountpoint.to_owned())),
            None => Ok(()),
        }
    }

    fn check_unique(&self) -> Result<(), LayoutError> {
        let mut seen: BTreeSet<(&'static str, String)> = BTreeSet::new();
        let mut once = |what: &'static str, value: String| {
            if seen.insert((what, value.clone())) {
                Ok(())
            } else {
                Err(LayoutError::Duplicate { what, value })
            }
        };
        for partition in &self.partitions {
            once("partition name", partition.name.clone())?;
            if let Some(uuid) = partition.uuid {
                once("partition UUID", uuid.to_string())?;
            }
            let Some(content) = &partition.content else { continue };
            if let Some(label) = content.label() {
                once("label", label.to_owned())?;
            }
            if let Some(uuid) = content.uuid() {
                once("UUID", uuid.to_ascii_lowercase())?;
            }
        }
        for mount in self.mounts() {
            once("mount point", mount.mountpoint.to_owned())?;
        }
        Ok(())
    }
}

impl Partition {
    fn validate(&self) -> Result<(), LayoutError> {
        check_partition_name(&self.name)?;
        let name = || self.name.clone();
        if self.size == Size::Fixed(Bytes(0)) {
            return Err(LayoutError::Empty(name()));
        }
        if let Some(&bit) = self.attributes.iter().find(|bit| **bit > 63) {
            return Err(LayoutError::Attribute { name: name(), bit });
        }
        match (self.kind, &self.content) {
            (PartitionType::Esp, Some(content)) if content.format() == Some(Format::Vfat) => {}
            (PartitionType::Esp, _) => return Err(LayoutError::EspNotVfat(name())),
            (PartitionType::BiosBoot, Some(_)) => return Err(LayoutError::BiosBootContent(name())),
            (PartitionType::Swap, Some(content)) if content.format().is_some() => {
                let content = "a file system";
                return Err(LayoutError::TypeAndContent { name: name(), kind: self.kind, content });
            }
            (
                PartitionType::Root | PartitionType::Home | PartitionType::Srv | PartitionType::Var,
                Some(Content::Swap(_)),
            ) => {
                return Err(LayoutError::TypeAndContent { name: name(), kind: self.kind, content: "swap" });
            }
            _ => {}
        }
        let Some(content) = &self.content else { return Ok(()) };
        match self.size {
            Size::Fixed(have) if have < content.least() => {
                let (format, need) = (content.format_name(), content.least());
                Err(LayoutError::TooSmall { name: name(), format, need, have })
            }
            _ => content.validate(),
        }
    }
}

impl Content {
    pub fn label(&self) -> Option<&str> {
        match self {
            Content::Filesystem(fs) => fs.label.as_deref(),
            Content::Btrfs(btrfs) => btrfs.label.as_deref(),
            Content::Swap(swap) => swap.label.as_deref(),
        }
    }

    pub fn uuid(&self) -> Option<&str> {
        match self {
            Content::Filesystem(fs) => fs.uuid.as_deref(),
            Content::Btrfs(btrfs) => btrfs.uuid.as_deref(),
            Content::Swap(swap) => swap.uuid.as_deref(),
        }
    }

    /// Returns the file system's format; none for swap.
    pub fn format(&self) -> Option<Format> {
        match self {
            Content::Filesystem(fs) => Some(fs.format),
            Content::Btrfs(_) => Some(Format::Btrfs),
            Content::Swap(_) => None,
        }
    }

    /// Returns the name people know the content by.
    pub fn format_name(&self) -> &'static str {
        self.format().map_or("swap", Format::name)
    }

    /// Returns the least size on which the tools make this content.
    pub fn least(&self) -> Bytes {
        match self.format() {
            Some(Format::Xfs) => Bytes::mib(300),
            // With both copies of its metadata.
            Some(Format::Btrfs) => Bytes::mib(115),
            // The smallest for which the journal is made.
            Some(Format::Ext3 | Format::Ext4) => Bytes::mib(16),
            Some(Format::Ext2 | Format::Vfat) => Bytes::mib(2),
            None => Bytes::kib(64),
        }
    }

    /// Returns the subvolumes to make, parents first, without slashes at either end.
    pub fn subvolumes(&self) -> Vec<&str> {
        let Content::Btrfs(btrfs) = self else { return Vec::new() };
        let mut paths: Vec<&str> =
            btrfs.subvolumes.iter().map(|subvolume| subvolume.path.trim_matches('/')).collect();
        paths.sort_by_key(|path| components(path));
        paths
    }

    fn mounts(&self, partition: usize) -> Vec<MountEntry<'_>> {
        let entry = |mountpoint, format, subvolume, options| MountEntry {
            partition,
            mountpoint,
            format,
            subvolume,
            options,
        };
        match self {
            Content::Filesystem(fs) => {
                fs.mountpoint.iter().map(|at| entry(at.as_str(), fs.format, None, &fs.options[..])).collect()
            }
            Content::Btrfs(btrfs) => {
                let top = btrfs
                    .mountpoint
                    .iter()
                    .map(|at| entry(at.as_str(), Format::Btrfs, None, &btrfs.options[..]));
                let below = btrfs.subvolumes.iter().filter_map(|sub| {
                    let path = sub.path.trim_matches('/');
                    Some(entry(sub.mountpoint.as_deref()?, Format::Btrfs, Some(path), &sub.options[..]))
                });
                top.chain(below).collect()
            }
            Content::Swap(_) => Vec::new(),
        }
    }

    fn validate(&self) -> Result<(), LayoutError> {
        let name = self.format_name();
        if let Some(label) = self.label() {
            check_label(label, name)?;
        }
        if let Some(uuid) = self.uuid() {
            check_uuid(uuid, name)?;
        }
        let Content::Btrfs(btrfs) = self else { return Ok(()) };
        let mut seen = BTreeSet::new();
        for subvolume in &btrfs.subvolumes {
            check_subvolume(&subvolume.path)?;
            if !seen.insert(subvolume.path.trim_matches('/')) {
                return Err(LayoutError::Duplicate { what: "subvolume", value: subvolume.path.clone() });
            }
        }
        Ok(())
    }
}

fn components(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty()).collect()
}

fn check_partition_name(name: &str) -> Result<(), LayoutError> {
    let error = |why| Err(LayoutError::PartitionName { name: name.to_owned(), why });
    match name {
        "" => error("is empty; name the partition"),
        _ if name.encode_utf16().count() > PARTITION_NAME_UNITS => {
            error("is longer than the 36 characters a partition table holds; shorten it")
        }
        _ if name.chars().any(|c| c.is_control() || c == '/') => {
            error("holds a slash or a control character; leave it out")
        }
        _ => Ok(()),
    }
}

fn check_mount_point(value: &str) -> Result<(), LayoutError> {
    let error = |why| Err(LayoutError::MountPoint { value: value.to_owned(), why });
    match value {
        "/" => Ok(()),
        _ if !value.starts_with('/') => error("is not absolute; start it with /"),
        _ if value.chars().any(char::is_control) => error("holds a control character; leave it out"),
        _ if value[1..].split('/').any(|part| matches!(part, "." | "..")) => {
            error("holds . or ..; write it without")
        }
        _ if value[1..].split('/').any(str::is_empty) => {
            error("holds an empty part; write single slashes, none at the end")
        }
        _ => Ok(()),
    }
}

fn check_subvolume(value: &str) -> Result<(), LayoutError> {
    let error = |why| Err(LayoutError::Subvolume { value: value.to_owned(), why });
    let inner = value.strip_prefix('/').unwrap_or(value);
    match inner {
        "" => error("names nothing; use the mountpoint of the btrfs itself for its top level"),
        _ if inner.split('/').any(|part| matches!(part, "" | "." | "..")) => {
            error("holds ., .. or an empty part; write it without")
        }
        _ if inner.chars().any(|c| c.is_control() || c == ',') => {
            error("holds a comma or a control character; leave it out")
        }
        _ if inner.split('/').any(|part| part.len() > 255) => {
            error("has a part longer than 255 bytes; shorten it")
        }
        _ => Ok(()),
    }
}

fn check_options(mount: &MountEntry<'_>) -> Result<(), LayoutError> {
    for option in mount.options {
        if option.is_empty() || option.contains(|c: char| c == ',' || c.is_whitespace() || c.is_control()) {
            return Err(LayoutError::MountOption(option.clone()));
        }
        if option.starts_with("subvol=") || option.starts_with("subvolid=") {
            return Err(LayoutError::SubvolumeOption(mount.mountpoint.to_owned()));
        }
    }
    Ok(())
}

fn check_label(label: &str, format: &'static str) -> Result<(), LayoutError> {
    let limit = match format {
        "vfat" => 11,
        "xfs" => 12,
        "btrfs" => 255,
        // ext2 to ext4, and swap.
        _ => 16,
    };
    if label.is_empty() {
        return Err(LayoutError::LabelEmpty(format.to_owned()));
    }
    if label.len() > limit {
        return Err(LayoutError::LabelTooLong {
            label: label.to_owned(),
            format,
            limit,
            length: label.len(),
        });
    }
    let refused = |c: &char| match format {
        // What mkfs.vfat refuses, and what would come back as another letter in another code page.
        "vfat" => !c.is_ascii() || c.is_ascii_control() || "*?.,;:/\\|+=<>[]\"".contains(*c),
        _ => c.is_control() || *c == '/',
    };
    match label.chars().find(refused) {
        Some(character) => Err(LayoutError::LabelCharacter { label: label.to_owned(), format, character }),
        None => Ok(()),
    }
}

fn check_uuid(uuid: &str, format: &'static str) -> Result<(), LayoutError> {
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    let (good, example) = match format {
        "vfat" => {
            let good =
                uuid.split_once('-').is_some_and(|(a, b)| a.len() == 4 && b.len() == 4 && hex(a) && hex(b));
            (good, "ABCD-1234")
        }
        _ => (
            uuid.len() == 36 && uuid.parse::<Uuid>().is_ok_and(|uuid| !uuid.is_nil()),
            "44444444-4444-4444-8888-888888888888",
        ),
    };
    if good { Ok(()) } else { Err(LayoutError::Uuid { uuid: uuid.to_owned(), format, example }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wraps partitions into a whole layout.
    fn layout_of(partitions: &str) -> String {
        format!(r#"{{"disks": {{"main": {{"partitions": [{partitions}]}}}}}}"#)
    }

    const ESP: &str = r#"{"name": "ESP", "type": "esp", "size": "512M",
        "content": {"type": "filesystem", "format": "vfat", "mountpoint": "/boot", "options": ["umask=0077"]}}"#;
    const ROOT: &str = r#"{"name": "root", "type": "root", "size": "100%",
        "content": {"type": "filesystem", "format": "ext4", "label": "nixos", "mountpoint": "/"}}"#;

    #[test]
    fn a_layout_is_read_and_written_back_the_same() {
        let subvolumes = r#"{"name": "pool", "type": "linux", "size": "100%", "uuid": "6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80",
            "attributes": [59], "content": {"type": "btrfs", "label": "pool", "subvolumes": [
            {"path": "/@", "mountpoint": "/", "options": ["compress=zstd"]}, {"path": "@/var/lib"}]}}"#;
        let swap = r#"{"name": "swap", "type": "swap", "size": "1536M", "content": {"type": "swap", "label": "swap"}}"#;
        for text in [format!("{ESP},{ROOT}"), format!("{ESP},{swap},{subvolumes}")] {
            let layout = parse(&layout_of(&text)).unwrap();
            let again = serde_json::to_string(&layout).unwrap();
            assert_eq!(parse(&again).unwrap(), layout);
        }
    }

    #[test]
    fn mounts_come_parents_first_whatever_the_order_of_the_partitions() {
        let text = r#"{"name": "a", "type": "home", "size": "1G", "content": {"type": "filesystem", "format": "xfs", "mountpoint": "/home/x"}},
            {"name": "b", "type": "linux", "size": "1G", "content": {"type": "btrfs", "subvolumes": [
                {"path": "b", "mountpoint": "/home-b"}, {"path": "a", "mountpoint": "/home"}]}}"#;
        let layout = parse(&layout_of(&format!("{ESP},{text},{ROOT}"))).unwrap();
        let disk = layout.disk().unwrap().1;
        let points: Vec<&str> = disk.mounts().iter().map(|mount| mount.mountpoint).collect();
        assert_eq!(points, ["/", "/boot", "/home", "/home/x", "/home-b"]);
        for (path, partition) in [("/nix/store", 3), ("/boot/EFI", 0), ("/home/x/y", 1), ("/home/xy", 2)] {
            assert_eq!(disk.partition_of(path), Some(partition), "{path}");
        }
        assert_eq!(disk.partitions[2].content.as_ref().unwrap().subvolumes(), ["a", "b"]);
    }

    /// `root` with one field of its partition or of its content changed.
    fn root_with(at: &str, key: &str, value: &str) -> String {
        let mut root: serde_json::Value = serde_json::from_str(ROOT).unwrap();
        let place = if at.is_empty() { &mut root } else { &mut root[at] };
        place[key] = serde_json::from_str(value).unwrap();
        root.to_string()
    }

    #[test]
    fn every_mistake_has_its_sentence() {
        let esp_with = |key: &str, value: &str| ESP.replace(key, value);
        let with_root = |text: String| format!("{text},{ROOT}");
        let linux = |content: &str| {
            with_root(format!(r#"{{"name": "x", "type": "linux", "size": "1G", "content": {content}}}"#))
        };
        for (partitions, sentence) in [
            (String::new(), "the layout has no partition; write at least the one that holds /"),
            (
                root_with("", "colour", "1"),
                "partition \"root\" of disk \"main\" of the layout: unknown field `colour`",
            ),
            (
                root_with("content", "colour", "1"),
                "partition \"root\" of disk \"main\" of the layout: unknown field `colour`",
            ),
            (
                root_with("", "size", "\"ten\""),
                "\"ten\" is not a size; write a number with K, M, G or T (powers of 1024), such as 512M or 8G, or 100%",
            ),
            (root_with("", "size", "\"50%\""), "\"50%\" is not a size"),
            (root_with("", "size", "\"0\""), "a size of 0 holds nothing"),
            (root_with("", "size", "5"), "expected a string"),
            (
                root_with("", "type", "\"rooot\""),
                "\"rooot\" is no partition type; choose one of esp, bios-boot",
            ),
            (root_with("", "uuid", "\"1\""), "\"1\" is no partition UUID"),
            (root_with("", "attributes", "[64]"), "attribute 64 of partition root is no bit"),
            (root_with("", "name", "\"\""), "partition name \"\" is empty; name the partition"),
            (root_with("", "name", &format!("{:?}", "ä".repeat(37))), "is longer than the 36 characters"),
            (
                root_with("content", "type", "\"luks\""),
                "content of type \"luks\" is not supported in this version",
            ),
            (root_with("content", "format", "\"zfs\""), "unknown variant `zfs`"),
            (root_with("content", "format", "\"vfat\""), "the root file system cannot be vfat"),
            (
                root_with("content", "mountpoint", "\"home\""),
                "mount point \"home\" is not absolute; start it with /",
            ),
            (root_with("content", "mountpoint", "\"/a/../b\""), "mount point \"/a/../b\" holds . or .."),
            (root_with("content", "mountpoint", "\"/a//b\""), "mount point \"/a//b\" holds an empty part"),
            (
                root_with("content", "mountpoint", "\"/srv\""),
                "nothing in the layout is mounted on /, /nix or /nix/store",
            ),
            (root_with("content", "mountpoint", "null"), "nothing in the layout is mounted on /"),
            (
                root_with("content", "label", "\"seventeen letters\""),
                "the label \"seventeen letters\" is 17 bytes long and ext4 allows 16; shorten it",
            ),
            (root_with("content", "label", "\"\""), "is empty; leave the label out instead"),
            (root_with("content", "label", "\"a/b\""), "holds '/', which ext4 does not take"),
            (root_with("content", "uuid", "\"ABCD-1234\""), "\"ABCD-1234\" is no UUID for ext4"),
            (
                root_with("content", "options", "[\"ro,noatime\"]"),
                "the mount option \"ro,noatime\" holds a comma",
            ),
            (root_with("content", "options", "[\"subvol=x\"]"), "/ chooses a subvolume by a mount option"),
            (format!("{ROOT},{ROOT}"), "partition root has size 100% and others follow it"),
            (with_root(root_with("", "size", "\"1G\"")), "the partition name \"root\" is used twice"),
            (
                with_root(root_with("", "size", "\"1G\"").replace("\"name\":\"root\"", "\"name\":\"b\"")),
                "the label \"nixos\" is used twice",
            ),
            (
                with_root(esp_with("vfat", "xfs").replace("\"esp\"", "\"linux\"").replace("512M", "299M")),
                "partition ESP is 299 MiB large and xfs needs at least 300 MiB",
            ),
            (with_root(ESP.replace("/boot", "/")), "the mount point \"/\" is used twice"),
            (
                with_root(esp_with("vfat", "ext4")),
                "partition ESP is the EFI system partition, which firmware reads as vfat",
            ),
            (
                with_root(esp_with("\"format\"", "\"label\": \"TWELVE BYTES\", \"format\"")),
                "is 12 bytes long and vfat allows 11",
            ),
            (
                with_root(esp_with("\"format\"", "\"uuid\": \"1234\", \"format\"")),
                "\"1234\" is no UUID for vfat; write it as ABCD-1234",
            ),
            (with_root(esp_with("\"esp\"", "\"bios-boot\"")), "is the BIOS boot partition"),
            (with_root(esp_with("\"esp\"", "\"swap\"")), "is of type swap and holds a file system"),
            (linux(r#"{"type": "swap", "label": "seventeen letters"}"#), "17 bytes long and swap allows 16"),
            (
                linux(r#"{"type": "filesystem", "format": "xfs", "label": "thirteen char"}"#),
                "13 bytes long and xfs allows 12",
            ),
            (
                linux(r#"{"type": "btrfs", "subvolumes": [{"path": "a/../b"}]}"#),
                "subvolume path \"a/../b\" holds ., ..",
            ),
            (
                linux(r#"{"type": "btrfs", "subvolumes": [{"path": "/"}]}"#),
                "subvolume path \"/\" names nothing",
            ),
            (
                linux(r#"{"type": "btrfs", "subvolumes": [{"path": "a"}, {"path": "/a"}]}"#),
                "the subvolume \"/a\" is used twice",
            ),
            (linux(r#"{"type": "btrfs", "subvolumes": [{"path": "a", "x": 1}]}"#), "unknown field `x`"),
        ] {
            let error = parse(&layout_of(&partitions)).expect_err(sentence).to_string();
            assert!(error.contains(sentence), "{error}\n  is not\n{sentence}");
            assert!(!error.contains('\n'));
        }
        for (text, sentence) in [
            ("{", "the layout is no valid JSON: EOF"),
            ("{}", "the top level of the layout: missing field `disks`"),
            (r#"{"disks": {}}"#, "the layout names no disk"),
            (
                r#"{"disks": {"a": {"partitions": []}, "b": {"partitions": []}}}"#,
                "the layout names 2 disks and this version installs onto one",
            ),
            (
                r#"{"disks": {"a": {"partitions": [], "kind": "gpt"}}}"#,
                "disk \"a\" of the layout: unknown field `kind`",
            ),
            (r#"{"disks": {}, "version": 2}"#, "unknown field `version`"),
        ] {
            let error = parse(text).expect_err(sentence).to_string();
            assert!(error.contains(sentence), "{error}\n  is not\n{sentence}");
        }
    }

    #[test]
    fn a_system_with_its_root_in_memory_needs_only_a_place_for_the_store() {
        let nix = ROOT.replace("\"/\"", "\"/nix\"");
        let layout = parse(&layout_of(&format!("{ESP},{nix}"))).unwrap();
        assert_eq!(layout.disk().unwrap().1.partition_of("/nix/store"), Some(1));
        assert_eq!(layout.disk().unwrap().1.partition_of("/etc"), None);
    }

    #[test]
    fn sizes_are_written_in_their_largest_whole_unit() {
        for (size, text) in [
            (Size::Rest, "100%"),
            (Size::Fixed(Bytes::mib(512)), "512M"),
            (Size::Fixed(Bytes::gib(2048)), "2T"),
            (Size::Fixed(Bytes(1_234_567)), "1234567"),
        ] {
            assert_eq!(size.to_string(), text);
            assert_eq!(text.parse(), Ok(size));
        }
    }

    #[test]
    fn the_examples_of_the_documentation_are_layouts() {
        let text = include_str!("../../docs/layout.md");
        let examples: Vec<&str> =
            text.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert_eq!(examples.len(), 3);
        for example in examples {
            parse(example).unwrap_or_else(|error| panic!("{error}\n{example}"));
        }
    }
}
