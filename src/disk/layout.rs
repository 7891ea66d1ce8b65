//! Layouts: what should be on a disk, as `--layout FILE` and the manifest write it.
//!
//! Decides only. [`parse`] and [`Layout::validate`] turn every mistake into one sentence;
//! [`super::derive`] makes a layout of a system's own fstab; [`super::table`] turns sizes into
//! sectors. The format is told, with examples, in `docs/layout.md`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};
use uuid::Uuid;

pub use self::error::LayoutError;
pub use self::partition_type::{Architecture, PartitionType};
use crate::size::Bytes;

mod check;
mod error;
mod partition_type;

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
    Luks(Luks),
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

/// An encrypted partition; the passphrase is asked for, or read from a file, when it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Luks {
    /// What the system opens it as, below `/dev/mapper`.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// How the system opens it, for NixOS alone.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub settings: Map<String, Value>,
    pub content: Box<Content>,
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

/// What the header of LUKS2 takes, as cryptsetup makes it: the encrypted data begins behind it.
pub const LUKS_HEADER: Bytes = Bytes::mib(16);

/// What the sizes of partitions are rounded up to.
// A multiple of 4 KiB sectors and of common erase blocks, and what other partitioning tools choose.
pub const ALIGNMENT: Bytes = Bytes::mib(1);

/// How large a partition is: `"512M"`, `"100%"` of what the others leave, or `"-8G"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Fixed(Bytes),
    Rest,
    /// All but so much at the end of the disk, in which the partitions that follow have their place.
    AllBut(Bytes),
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "100%" {
            return Ok(Size::Rest);
        }
        let (left, number) = match text.strip_prefix('-') {
            Some(number) => (true, number),
            None => (false, text),
        };
        match number.parse::<Bytes>() {
            Ok(Bytes(0)) if left => Err("a size of -0 leaves nothing; write 100%".to_owned()),
            Ok(Bytes(0)) => Err("a size of 0 holds nothing; write a size such as 512M, or 100%".to_owned()),
            Ok(bytes) if left => Ok(Size::AllBut(bytes)),
            Ok(bytes) => Ok(Size::Fixed(bytes)),
            Err(error) => Err(format!("{error}, or 100% for what is left")),
        }
    }
}

impl fmt::Display for Size {
    /// Prints the size so that it is read back as the same size.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, bytes) = match *self {
            Size::Rest => return f.pad("100%"),
            Size::Fixed(Bytes(bytes)) => ("", bytes),
            Size::AllBut(Bytes(bytes)) => ("-", bytes),
        };
        let units = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
        match units.into_iter().find(|(_, shift)| bytes > 0 && bytes % (1 << shift) == 0) {
            Some((unit, shift)) => f.pad(&format!("{sign}{}{unit}", bytes >> shift)),
            None => f.pad(&format!("{sign}{bytes}")),
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

fn partuuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Uuid>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    match text.parse::<Uuid>() {
        Ok(uuid) if text.len() == 36 => Ok(Some(uuid)),
        _ => Err(de::Error::custom(format!(
            "{text:?} is no partition UUID; write it as 8-4-4-4-12 hex digits"
        ))),
    }
}

// What others make of disks, so that it is no slip of the pen.
const OTHER_CONTENTS: [&str; 7] = ["lvm_pv", "lvm", "mdraid", "zfs", "bcachefs", "gpt", "table"];

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
            let outer = partition.get("content");
            let inner = outer.and_then(|content| content.get("content"));
            for kind in
                [outer, inner].into_iter().flatten().filter_map(|content| content.get("type")?.as_str())
            {
                if OTHER_CONTENTS.contains(&kind) {
                    return Err(LayoutError::Unsupported { at, kind: kind.to_owned() });
                }
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

    /// Returns the least that the partitions take, with what one of them leaves behind itself.
    pub fn least(&self) -> Bytes {
        let sum = |partitions: &[Partition]| partitions.iter().map(Partition::least).sum::<Bytes>();
        match self.leaving() {
            None => sum(&self.partitions),
            // What follows fits into what is left; validate() has seen to it.
            Some((index, left)) => sum(&self.partitions[..=index]) + left,
        }
    }

    /// Returns the index of the partition that leaves so much of the disk behind itself.
    fn leaving(&self) -> Option<(usize, Bytes)> {
        self.partitions.iter().enumerate().find_map(|(index, partition)| match partition.size {
            Size::AllBut(left) => Some((index, left.round_up(ALIGNMENT))),
            Size::Fixed(_) | Size::Rest => None,
        })
    }

    /// Returns the index of the EFI system partition.
    pub fn esp(&self) -> Option<usize> {
        self.partitions.iter().position(|partition| partition.kind == PartitionType::Esp)
    }
}

impl Partition {
    /// Returns the least it takes of a disk, in whole units of alignment.
    pub fn least(&self) -> Bytes {
        let least = match self.size {
            Size::Fixed(size) => size,
            Size::Rest | Size::AllBut(_) => self.content.as_ref().map_or(ALIGNMENT, Content::least),
        };
        least.round_up(ALIGNMENT)
    }

    /// Returns what is on the partition, and within that if it is encrypted.
    pub fn layers(&self) -> impl Iterator<Item = &Content> {
        self.content.iter().flat_map(Content::layers)
    }

    /// Returns the encryption of the partition.
    pub fn luks(&self) -> Option<&Luks> {
        match &self.content {
            Some(Content::Luks(luks)) => Some(luks),
            _ => None,
        }
    }
}

impl Content {
    pub fn label(&self) -> Option<&str> {
        match self {
            Content::Filesystem(fs) => fs.label.as_deref(),
            Content::Btrfs(btrfs) => btrfs.label.as_deref(),
            Content::Swap(swap) => swap.label.as_deref(),
            Content::Luks(luks) => luks.label.as_deref(),
        }
    }

    pub fn uuid(&self) -> Option<&str> {
        match self {
            Content::Filesystem(fs) => fs.uuid.as_deref(),
            Content::Btrfs(btrfs) => btrfs.uuid.as_deref(),
            Content::Swap(swap) => swap.uuid.as_deref(),
            Content::Luks(luks) => luks.uuid.as_deref(),
        }
    }

    /// Returns the content itself, and what is within if it is encrypted.
    pub fn layers(&self) -> impl Iterator<Item = &Content> {
        let inner = match self {
            Content::Luks(luks) => Some(&*luks.content),
            _ => None,
        };
        std::iter::once(self).chain(inner)
    }

    /// Returns what is left when every encryption is opened.
    pub fn opened(&self) -> &Content {
        self.layers().last().expect("the content itself is a layer")
    }

    /// Returns the file system's format; none for swap and encryption.
    pub fn format(&self) -> Option<Format> {
        match self {
            Content::Filesystem(fs) => Some(fs.format),
            Content::Btrfs(_) => Some(Format::Btrfs),
            Content::Swap(_) | Content::Luks(_) => None,
        }
    }

    /// Returns the name people know the content by.
    pub fn format_name(&self) -> &'static str {
        match self {
            Content::Swap(_) => "swap",
            Content::Luks(_) => "LUKS",
            Content::Filesystem(Filesystem { format, .. }) => format.name(),
            Content::Btrfs(_) => Format::Btrfs.name(),
        }
    }

    /// Returns the least size on which the tools make this content.
    pub fn least(&self) -> Bytes {
        if let Content::Luks(luks) = self {
            return LUKS_HEADER + luks.content.least();
        }
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
            Content::Luks(luks) => luks.content.mounts(partition),
        }
    }
}

fn components(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests;
