//! The mistakes of a layout, a sentence each.

use super::PartitionType;
use crate::size::Bytes;

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
        "{at} of the layout: content of type {kind:?} is not supported in this version; use filesystem, btrfs, swap or luks"
    )]
    Unsupported { at: String, kind: String },
    #[error("the layout has no partition; write at least the one that holds /")]
    NoPartition,
    #[error("the layout has {0} partitions and a partition table holds 128")]
    TooManyPartitions(usize),
    #[error("partition {0} has size 100% and others follow it; let the last partition take the rest")]
    RestNotLast(String),
    #[error("partition {0} is the second that says what it leaves of the disk; write its own size")]
    LeavesTwice(String),
    #[error("partition {name} leaves {left} of the disk and what follows it takes {need}; let it leave more")]
    LeavesTooLittle { name: String, need: Bytes, left: Bytes },
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
    #[error("the name {name:?} of an encrypted partition {why}")]
    LuksName { name: String, why: &'static str },
    #[error(
        "partition {partition} is encrypted and the system's initrd opens nothing as {name}; it opens {known}"
    )]
    NotOpened { partition: String, name: String, known: String },
    #[error(
        "the system's initrd opens {name} from {device}, and the layout's partition {partition} is not called so"
    )]
    OpenedFrom { partition: String, name: String, device: String },
    #[error("partition {0} is encrypted twice; once is enough")]
    EncryptedTwice(String),
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
        "{device}, mounted on {mountpoint}, {why}; name it by label, UUID, PARTLABEL or PARTUUID in the system's configuration"
    )]
    NoName { device: String, mountpoint: String, why: String },
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
