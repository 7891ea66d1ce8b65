//! Facts: what a machine looks like, as plain data.
//!
//! [`crate::probe`] fills them in; deciding on them needs no machine.

pub mod target;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::disk::contents::{Contents, TableKind};
use crate::disk::fstab::Name;
use crate::disk::holders::Holder;
use crate::disk::layout::DiskLayout;
use crate::disk::picture::{self, Drawing, Part};
use crate::size::Bytes;
use crate::store::path::StorePath;
use crate::system::inhibitors::Inhibitors;

pub mod hardware;
pub mod network;

/// A directory that holds a system, and what it lacks of another one.
#[derive(Clone, Debug)]
pub struct DirFacts {
    /// What its system profile leads to.
    pub current: SystemFacts,
    pub wanted: SystemFacts,
    /// Paths that the wanted system needs and that are not valid here.
    pub missing: usize,
    /// Their NAR sizes.
    pub missing_bytes: Bytes,
    /// The room that they take, without what lies there already.
    pub missing_space: Bytes,
    pub free: Bytes,
    /// The number that the wanted system gets in the profile.
    pub generation: u64,
    /// Generations that shall go, oldest first.
    pub old: Vec<u64>,
    /// What nothing leads to once they are gone, if it shall go.
    pub garbage: usize,
    pub garbage_bytes: Bytes,
    /// What of another generation `sbin/init` leads to, if the wanted system has it too.
    pub init: Option<String>,
}

/// Which machine a system is made for.
#[derive(Clone, Debug)]
pub struct SystemFacts {
    pub system: StorePath,
    pub hostname: Option<String>,
    /// Such as `x86_64-linux`.
    pub platform: Option<String>,
}

/// A running machine, as seen from its inside, that may get a system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Whether it runs NixOS.
    pub nixos: bool,
    /// What its kernel says it is, such as `x86_64`.
    pub machine: String,
    pub boot_id: String,
    /// The system that it runs.
    pub running: Option<StorePath>,
    /// The system that it was booted with.
    pub booted: Option<StorePath>,
    /// The generation that its system profile leads to, and that generation's system.
    pub profile: Option<(u64, StorePath)>,
    /// The host name in the configuration of the running system.
    pub hostname: Option<String>,
    /// What the running system was built for, such as `x86_64-linux`.
    pub platform: Option<String>,
    /// The room that is left for the store.
    pub free: Bytes,
    /// Whether the wanted system is valid there, and so all it refers to.
    pub valid: bool,
    /// The switch inhibitors of the running system, and of the one that it was booted with.
    pub inhibitors: [Inhibitors; 2],
}

/// A disk, or an image that holds one, or the place where an image is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskFacts {
    /// As it was asked for.
    pub path: PathBuf,
    /// With symlinks resolved.
    pub node: PathBuf,
    pub kind: DiskKind,
    pub model: Option<String>,
    pub serial: Option<String>,
    pub size: Bytes,
    pub sector_size: u64,
    pub removable: bool,
    /// `usb`, `nvme`, `sata`, `virtio`…
    pub transport: Option<String>,
    /// What the file system that holds an image has left for it, with what the image has of it.
    pub room: Option<Bytes>,
    pub contents: Contents,
    /// Where each partition is mounted, by its number.
    pub mounts: Vec<(u32, String)>,
    /// Why nothing may be installed here; empty for a disk that is free.
    pub refusals: Vec<Refusal>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DiskKind {
    BlockDevice,
    ImageFile,
    NewImage,
    /// See the refusals.
    NoDisk,
}

/// Why a disk is not written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Refusal {
    /// What it is instead, such as `a directory`.
    NotADisk(String),
    Partition {
        disk: String,
    },
    ReadOnly,
    NoMedium,
    Held(Holder),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotADisk(what) => write!(f, "it is {what}, not a disk or an image"),
            Refusal::Partition { disk } => write!(f, "it is a partition; the whole disk is {disk}"),
            Refusal::ReadOnly => write!(f, "it is read-only"),
            Refusal::NoMedium => write!(f, "there is no medium in it"),
            Refusal::Held(holder) => write!(f, "{holder}"),
        }
    }
}

/// A file system or partition of this machine that has names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedDevice {
    /// `/dev/sda2`.
    pub node: String,
    /// `/dev/sda`, or the same as `node`.
    pub disk: String,
    pub label: Option<String>,
    pub uuid: Option<String>,
    pub part_label: Option<String>,
    pub part_uuid: Option<String>,
}

impl DiskFacts {
    /// Draws what is on the disk now.
    pub fn picture(&self, title: &str) -> String {
        let part = |partition: &crate::disk::contents::FoundPartition| {
            let here = self.mounts.iter().filter(|(number, _)| *number == partition.number);
            Part {
                name: if partition.name.is_empty() {
                    partition.number.to_string()
                } else {
                    partition.name.clone()
                },
                size: partition.size,
                format: partition.content.as_ref().map_or("unknown", |found| &found.kind).to_owned(),
                label: partition.content.as_ref().and_then(|found| found.label.clone()).unwrap_or_default(),
                mounts: here.map(|(_, at)| at.clone()).collect(),
            }
        };
        let mut parts: Vec<Part> = self.contents.partitions.iter().map(part).collect();
        if let Some(found) = &self.contents.content {
            let label = found.label.clone().unwrap_or_default();
            let name = "(whole disk)".to_owned();
            parts = vec![Part { name, size: self.size, format: found.kind.clone(), label, mounts: vec![] }];
        }
        if self.contents.table == TableKind::BrokenGpt {
            let format = "a partition table that cannot be read".to_owned();
            parts.push(Part { size: self.size, format, ..Part::default() });
        }
        picture::draw(&Drawing { title: title.to_owned(), parts })
    }
}

/// Tells which names of a layout a device of another disk has already, a sentence each.
///
/// Only names that the system's fstab goes by can lead it astray: those are `used`.
pub fn duplicated(layout: &DiskLayout, used: &[Name], present: &[NamedDevice], target: &str) -> Vec<String> {
    let mut told = Vec::new();
    for partition in &layout.partitions {
        let layers = || partition.layers();
        for other in present.iter().filter(|other| other.disk != target) {
            let same = |what: &str, ours: Option<&str>, theirs: &Option<String>, name: fn(String) -> Name| {
                let ours = ours.filter(|ours| used.contains(&name((*ours).to_owned())))?;
                let equal = theirs.as_deref().is_some_and(|theirs| theirs.eq_ignore_ascii_case(ours));
                equal.then(|| format!("{} has the {what} {ours} too", other.node))
            };
            told.extend(layers().filter_map(|c| same("label", c.label(), &other.label, Name::Label)));
            told.extend(layers().filter_map(|c| same("UUID", c.uuid(), &other.uuid, Name::Uuid)));
            told.extend(same("PARTLABEL", Some(&partition.name), &other.part_label, Name::PartLabel));
            told.extend(same(
                "PARTUUID",
                partition.uuid.map(|uuid| uuid.to_string()).as_deref(),
                &other.part_uuid,
                Name::PartUuid,
            ));
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::layout;

    #[test]
    fn names_that_another_disk_has_are_told() {
        let json = r#"{"disks": {"main": {"partitions": [{"name": "root", "type": "root", "size": "100%",
            "content": {"type": "filesystem", "format": "ext4", "label": "nixos", "mountpoint": "/"}}]}}}"#;
        let layout = layout::parse(json).unwrap();
        let disk = layout.disk().unwrap().1;
        let device = |node: &str, label: &str| NamedDevice {
            node: format!("{node}1"),
            disk: node.into(),
            label: Some(label.into()),
            part_label: Some("other".into()),
            ..NamedDevice::default()
        };
        let present = [device("/dev/sda", "nixos"), device("/dev/sdb", "nixos"), device("/dev/sdc", "data")];
        let used = [Name::Label("nixos".into())];
        assert_eq!(duplicated(disk, &used, &present, "/dev/sdb"), ["/dev/sda1 has the label nixos too"]);
        assert_eq!(duplicated(disk, &[], &present, "/dev/sdb"), [""; 0]);
    }
}
