//! Choosing: which entries of fstab need a partition, which the system boots without, and which cannot be made.
//!
//! As systemd-fstab-generator(8) and NixOS's initrd read them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Wanted;
use crate::disk::fstab::{Entry, Name};
use crate::disk::layout::{Format, LayoutError};

// Made by the kernel or by the system itself at boot.
const NO_DEVICE: [&str; 23] = [
    "tmpfs",
    "ramfs",
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "overlay",
    "cgroup",
    "cgroup2",
    "debugfs",
    "tracefs",
    "securityfs",
    "pstore",
    "efivarfs",
    "configfs",
    "fusectl",
    "mqueue",
    "hugetlbfs",
    "binfmt_misc",
    "autofs",
    "bpf",
    "rpc_pipefs",
    "none",
];
const NETWORK: [&str; 13] = [
    "nfs",
    "nfs3",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "virtiofs",
    "ceph",
    "glusterfs",
    "afs",
    "davfs",
    "sshfs",
];
// Mounted before the real init runs, whatever the options say (NixOS's pathsNeededForBoot).
const NEEDED_FOR_BOOT: [&str; 9] =
    ["/", "/nix", "/nix/store", "/var", "/var/log", "/var/lib", "/var/lib/nixos", "/etc", "/usr"];

/// Chooses the entries that need a partition, and tells or refuses the others.
pub(super) fn keep(
    entries: &[Entry],
    esp: &str,
    wanted: &Wanted<'_>,
    notes: &mut Vec<String>,
) -> Result<Vec<Entry>, LayoutError> {
    let on_disks = entries.iter().filter(|entry| !is_made_at_boot(entry));
    let mut kept: Vec<Entry> = Vec::new();
    for entry in on_disks {
        match elsewhere(entry) {
            Some(why) if needed_for_boot(entry) => {
                return Err(refuse(entry, &format!("{why}, which a disk cannot hold")));
            }
            Some(why) => {
                notes.push(format!("{} on {} {why}: {}", entry.device, place(entry), without(entry)))
            }
            None => kept.push(entry.clone()),
        }
    }
    // What the system boots without is left out, unless it is on the device of something it needs, or costs nothing.
    let is_written = |entry: &Entry| {
        entry.mountpoint == esp
            || wanted.written.iter().any(|place| place.to_str() == Some(&entry.mountpoint))
    };
    let costs_nothing = |entry: &Entry| {
        let on_demand = entry.has("x-systemd.automount") && wanted.present.contains_key(&entry.device);
        (entry.is_swap() || on_demand) && check_reproducible(entry, wanted.luks).is_ok()
    };
    let needed: Vec<String> = kept
        .iter()
        .filter(|entry| required(entry) || is_written(entry) || costs_nothing(entry))
        .map(|entry| entry.device.clone())
        .collect();
    kept.retain(|entry| {
        let keep = needed.contains(&entry.device);
        if !keep {
            let place = place(entry);
            notes.push(format!(
                "{} on {place} is not needed to boot (nofail or noauto): left out",
                entry.device
            ));
        }
        keep
    });
    for entry in &kept {
        check_reproducible(entry, wanted.luks)?;
    }
    Ok(kept)
}

/// Says why an entry is on no partition of any disk.
fn elsewhere(entry: &Entry) -> Option<String> {
    if NETWORK.contains(&entry.kind.as_str()) || entry.kind.starts_with("fuse") {
        Some(format!("is a {} mount", entry.kind))
    } else if is_file(entry) {
        Some(if entry.is_swap() { "is a swap file".to_owned() } else { "is a file".to_owned() })
    } else {
        None
    }
}

/// Says what comes of leaving an entry out.
fn without(entry: &Entry) -> &'static str {
    // A swap that fails, or a mount of a network, holds nothing up.
    match required(entry) && is_file(entry) && !entry.is_swap() {
        true => {
            "left out, and the boot stops there; bring it with --extra-files, or say nofail in the system's configuration"
        }
        false => "left out",
    }
}

fn is_file(entry: &Entry) -> bool {
    entry.device.starts_with('/') && !entry.device.starts_with("/dev/")
}

fn is_made_at_boot(entry: &Entry) -> bool {
    NO_DEVICE.contains(&entry.kind.as_str()) || entry.is_bind()
}

/// Tells whether the boot waits for an entry, and stops where it does not come.
pub fn required(entry: &Entry) -> bool {
    needed_for_boot(entry) || (!entry.has("nofail") && !entry.has("noauto"))
}

fn needed_for_boot(entry: &Entry) -> bool {
    entry.has("x-initrd.mount") || NEEDED_FOR_BOOT.contains(&entry.mountpoint.as_str())
}

pub fn on_a_disk(entry: &Entry) -> bool {
    !is_made_at_boot(entry) && elsewhere(entry).is_none()
}

pub fn place(entry: &Entry) -> String {
    if entry.is_swap() { "swap".to_owned() } else { entry.mountpoint.clone() }
}

pub fn refuse(entry: &Entry, why: &str) -> LayoutError {
    LayoutError::CannotDerive { device: entry.device.clone(), mountpoint: place(entry), why: why.to_owned() }
}

/// Refuses what no new partition can be, under the names that the system looks for.
pub(super) fn check_reproducible(entry: &Entry, luks: &BTreeMap<String, PathBuf>) -> Result<(), LayoutError> {
    let kind = entry.kind.as_str();
    check_options(entry)?;
    if !entry.is_swap() && kind != "auto" && Format::from_name(kind).is_none() {
        return Err(refuse(entry, &format!("is a {kind} file system, which this version does not make")));
    }
    let Name::Other(device) = entry.name() else { return Ok(()) };
    match device.as_str() {
        "/dev/gpt-auto-root" | "/dev/gpt-auto-root-luks" if entry.mountpoint == "/" => Ok(()),
        _ if entry.mapper().is_some_and(|name| luks.contains_key(name)) => Ok(()),
        _ => match entry.random_key() {
            Some(Name::PartLabel(_) | Name::PartUuid(_)) => Ok(()),
            Some(_) => Err(no_name(
                entry,
                "is swap with a random key, on what only a PARTLABEL or PARTUUID can name",
            )),
            None => Err(nameless(entry)),
        },
    }
}

/// Refuses what a mount would need beside the partition that it names.
pub fn check_options(entry: &Entry) -> Result<(), LayoutError> {
    if let Some(path) = entry.value("X-mount.subdir") {
        return Err(refuse(
            entry,
            &format!("shows its directory {path} only (X-mount.subdir), which is not made"),
        ));
    }
    if entry.kind == "btrfs" && entry.value("device").is_some() {
        return Err(refuse(
            entry,
            "is a btrfs of several devices (device=), which this version does not make",
        ));
    }
    Ok(())
}

/// Refuses a device whose name is none that a partition can be given.
pub fn nameless(entry: &Entry) -> LayoutError {
    let device = entry.device.as_str();
    let path = device.strip_prefix("/dev/").unwrap_or(device);
    let numbered = path.strip_prefix("md").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    let why = match path {
        "root" => "is chosen by root= on the kernel command line",
        _ if path.starts_with("mapper/") || path.starts_with("dm-") => {
            return refuse(
                entry,
                "is LVM, or encrypted and not said to be opened by the initrd in the system's manifest",
            );
        }
        _ if path.starts_with("md/") || numbered => "is a RAID array, which this version does not make",
        _ if path.starts_with("disk/by-id/") || path.starts_with("disk/by-path/") => {
            "names one particular disk, which the clone is not"
        }
        _ if path.starts_with("disk/") => "is a name that cannot be given to a new partition",
        _ if path.starts_with("zvol/") => "is a ZFS volume, which this version does not make",
        _ if goes_by_order(device) => "goes by the order of the disks, so the clone might find another",
        _ if path.contains('/') && device.starts_with("/dev/") => {
            "looks like an LVM volume, which this version does not make"
        }
        _ => "is not named by label, UUID, PARTLABEL or PARTUUID",
    };
    no_name(entry, why)
}

fn no_name(entry: &Entry, why: &str) -> LayoutError {
    LayoutError::NoName { device: entry.device.clone(), mountpoint: place(entry), why: why.to_owned() }
}

/// Tells names like `/dev/sda2`, which another order of disks gives to another partition.
fn goes_by_order(device: &str) -> bool {
    let Some(name) = device.strip_prefix("/dev/") else { return false };
    let kinds = ["sd", "vd", "xvd", "hd", "nvme", "mmcblk", "loop", "nbd", "sr", "pmem", "ram"];
    kinds.iter().any(|kind| name.starts_with(kind)) && !name.contains('/')
}
