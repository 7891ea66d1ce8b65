//! What the types of a layout do not say already, each mistake with its sentence.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{Content, DiskLayout, Format, Layout, LayoutError, MountEntry, Partition, PartitionType, Size};
use crate::size::Bytes;

// Entries of the partition array that every tool makes room for.
const MOST_PARTITIONS: usize = 128;
// The name field of a GPT entry.
const PARTITION_NAME_UNITS: usize = 36;

// The kernel's DM_NAME_LEN, its end mark left out.
const MAPPER_NAME_BYTES: usize = 127;

impl Layout {
    /// Checks what the types do not say already.
    pub fn validate(&self) -> Result<(), LayoutError> {
        self.disk()?.1.validate()
    }
}

impl DiskLayout {
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
        self.check_left()?;
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

    /// Checks that the partitions behind one that leaves so much of the disk fit into that.
    fn check_left(&self) -> Result<(), LayoutError> {
        let Some((index, left)) = self.leaving() else { return Ok(()) };
        let (before, behind) = self.partitions.split_at(index + 1);
        if let Some(second) = behind.iter().find(|partition| matches!(partition.size, Size::AllBut(_))) {
            return Err(LayoutError::LeavesTwice(second.name.clone()));
        }
        let need: Bytes = behind.iter().map(Partition::least).sum();
        if need > left {
            return Err(LayoutError::LeavesTooLittle { name: before[index].name.clone(), need, left });
        }
        Ok(())
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
            for content in partition.layers() {
                if let Some(label) = content.label() {
                    once("label", label.to_owned())?;
                }
                if let Some(uuid) = content.uuid() {
                    once("UUID", uuid.to_ascii_lowercase())?;
                }
            }
            if let Some(luks) = partition.luks() {
                once("name of an encrypted partition", luks.name.clone())?;
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
        if let Some(luks) = self.luks() {
            check_luks_name(&luks.name)?;
            if let Content::Luks(_) = *luks.content {
                return Err(LayoutError::EncryptedTwice(name()));
            }
        }
        let opened = self.content.as_ref().map(Content::opened);
        match (self.kind, opened) {
            (PartitionType::Esp, Some(content))
                if content.format() == Some(Format::Vfat) && self.luks().is_none() => {}
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
            _ => content.layers().try_for_each(Content::validate),
        }
    }
}

impl Content {
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

fn check_luks_name(name: &str) -> Result<(), LayoutError> {
    let error = |why| Err(LayoutError::LuksName { name: name.to_owned(), why });
    match name {
        "" => error("is empty; write what the system opens it as, such as root"),
        // /dev/mapper/control is the device mapper's own.
        "control" | "." | ".." => error("is taken; choose another"),
        _ if name.len() > MAPPER_NAME_BYTES => error("is longer than 127 bytes; shorten it"),
        _ if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"#+-.:=@_".contains(&b)) => {
            error("holds something else than letters, digits and #+-.:=@_; leave it out")
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
        "LUKS" => 47,
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
