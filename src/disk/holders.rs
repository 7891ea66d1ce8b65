//! Holders: who uses a disk, through every layer that may stand on it.
//!
//! Decides only, from a [`Snapshot`] that [`crate::probe`] takes. A disk somebody holds is never
//! written; the holder is named so that the person can let go of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::fstab::undo_octal;

/// What the kernel says about its block devices and who uses them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// `/proc/PID/mountinfo` of each mount namespace, our own first.
    pub mountinfo: Vec<String>,
    /// `/proc/swaps`.
    pub swaps: String,
    /// By kernel name, such as `sda1`.
    pub devices: BTreeMap<String, Device>,
    /// The devices of each mounted btrfs (`/sys/fs/btrfs/*/devices`), by kernel name.
    pub btrfs: Vec<Vec<String>>,
    /// Imported ZFS pools (`/proc/spl/kstat/zfs`).
    pub zfs_pools: Vec<String>,
}

/// One block device of `/sys/class/block`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// `major:minor`.
    pub number: String,
    /// The disk, for a partition.
    pub parent: Option<String>,
    /// Kernel names of what stands on it (`holders`): device mapper, md, bcache.
    pub holders: Vec<String>,
    /// The device-mapper name.
    pub mapper: Option<String>,
    /// The file a loop device stands on.
    pub backing_file: Option<String>,
    /// The device and the inode of that file, by which it is known under other names.
    pub backing: Option<(u64, u64)>,
    /// What is on it is a member of a ZFS pool.
    pub zfs_member: bool,
}

/// One use of a disk: the device on it, the layers between, and the use at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// `/dev/sdb2`, or the image file.
    pub device: String,
    /// `/dev/md0`, `/dev/mapper/root`…, outermost last.
    pub layers: Vec<String>,
    pub using: Use,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Use {
    Mounted(String),
    Swap,
    /// Nothing but the last layer itself.
    Layer,
    /// A device of a btrfs that is mounted where we cannot see.
    Btrfs,
    /// A ZFS member while these pools are imported.
    Zfs(Vec<String>),
    /// The kernel refuses exclusive access and nothing says why.
    Unknown,
    /// Programs have it open.
    Open(Vec<String>),
    /// A program that is not in sight has locked it.
    Locked,
}

impl Holder {
    /// Tells whether the running system stands on this.
    pub fn is_running_system(&self) -> bool {
        matches!(&self.using, Use::Mounted(at) if matches!(at.as_str(), "/" | "/nix" | "/nix/store"))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.device)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let word = if layer.starts_with("/dev/loop") { "is attached to" } else { "is part of" };
            let comma =
                if index + 1 == self.layers.len() && self.using == Use::Layer { "" } else { ", which " };
            write!(f, "{word} {layer}{comma}")?;
        }
        match &self.using {
            Use::Mounted(at) if at == "/" => write!(f, "holds the root file system of the running system"),
            Use::Mounted(at) => write!(f, "is mounted on {at}"),
            Use::Swap => write!(f, "holds swap in use"),
            Use::Layer => Ok(()),
            Use::Btrfs => write!(f, "is a device of a mounted btrfs"),
            Use::Zfs(pools) => write!(f, "is a ZFS member while the pool {} is imported", pools.join(", ")),
            Use::Unknown => write!(f, "is in use by the kernel"),
            Use::Open(programs) => write!(f, "is open in {}", programs.join(", ")),
            Use::Locked => write!(f, "is locked by a program such as QEMU"),
        }
    }
}

/// A line of mountinfo, as far as we need it.
struct Mount {
    number: String,
    point: String,
    source: String,
}

/// Returns who uses a disk or partition, by kernel name, or anything on it.
pub fn of_device(snapshot: &Snapshot, name: &str) -> Vec<Holder> {
    let mounts = snapshot.mounts();
    let mut found = Vec::new();
    let partitions = snapshot.devices.iter().filter(|(_, device)| device.parent.as_deref() == Some(name));
    for device in std::iter::once(name).chain(partitions.map(|(partition, _)| partition.as_str())) {
        let seen = &mut BTreeSet::new();
        snapshot.walk(&mounts, device, &snapshot.node(device), &mut Vec::new(), seen, &mut found);
    }
    found
}

/// Returns who uses an image file, by its canonical path, or by its device and inode where it goes by another name.
pub fn of_file(snapshot: &Snapshot, path: &str, id: (u64, u64)) -> Vec<Holder> {
    let mounts = snapshot.mounts();
    let mut found = Vec::new();
    if snapshot.swap_sources().any(|source| source == path) {
        found.push(Holder { device: path.to_owned(), layers: Vec::new(), using: Use::Swap });
    }
    let mut names = BTreeSet::from([path]);
    let by_id = snapshot.devices.values().filter(|device| device.backing == Some(id));
    names.extend(by_id.filter_map(|device| device.backing_file.as_deref()));
    for name in names {
        snapshot.walk_loops(&mounts, name, path, &mut Vec::new(), &mut BTreeSet::new(), &mut found);
    }
    found
}

impl Snapshot {
    fn mounts(&self) -> Vec<Mount> {
        let mut seen = BTreeSet::new();
        self.mountinfo
            .iter()
            .flat_map(|text| text.lines())
            .filter_map(parse_mount)
            .filter(|mount| seen.insert((mount.number.clone(), mount.point.clone())))
            .collect()
    }

    fn swap_sources(&self) -> impl Iterator<Item = String> {
        let first = |line: &str| line.split_ascii_whitespace().next().map(undo_octal);
        self.swaps.lines().skip(1).filter_map(first)
    }

    /// Returns the node people know a device by.
    fn node(&self, name: &str) -> String {
        match self.devices.get(name).and_then(|device| device.mapper.as_ref()) {
            Some(mapper) => format!("/dev/mapper/{mapper}"),
            None => format!("/dev/{name}"),
        }
    }

    /// Returns the kernel name behind a node that mountinfo or `/proc/swaps` tells.
    fn kernel_name<'a>(&'a self, node: &'a str) -> Option<&'a str> {
        let name = node.strip_prefix("/dev/")?;
        match name.strip_prefix("mapper/") {
            Some(mapper) => {
                let named = |(_, device): &(&String, &Device)| device.mapper.as_deref() == Some(mapper);
                self.devices.iter().find(named).map(|(name, _)| name.as_str())
            }
            None => Some(name),
        }
    }

    fn walk(
        &self,
        mounts: &[Mount],
        name: &str,
        start: &str,
        layers: &mut Vec<String>,
        seen: &mut BTreeSet<String>,
        found: &mut Vec<Holder>,
    ) {
        // Device mapper stacks are shallow, but a made-up snapshot may be a ring.
        if !seen.insert(name.to_owned()) {
            return;
        }
        let before = found.len();
        let holder = |using: Use, layers: &[String]| Holder {
            device: start.to_owned(),
            layers: layers.to_vec(),
            using,
        };
        let device = self.devices.get(name).cloned().unwrap_or_default();
        let btrfs = self.btrfs.iter().find(|members| members.iter().any(|member| member == name));
        let is_here = |mount: &&Mount| {
            let source = self.kernel_name(&mount.source);
            let by_number = !device.number.is_empty() && mount.number == device.number;
            // btrfs mounts have a number of their own and name one of their devices only.
            let by_source = mount.number.starts_with("0:")
                && source.is_some_and(|source| {
                    source == name
                        || btrfs.is_some_and(|members| members.iter().any(|member| member == source))
                });
            by_number || by_source
        };
        let mut points: Vec<&str> = mounts.iter().filter(is_here).map(|mount| mount.point.as_str()).collect();
        // The root first: it says most.
        points.sort_by_key(|point| point.len());
        points.dedup();
        found.extend(points.iter().map(|point| holder(Use::Mounted((*point).to_owned()), layers)));
        if points.is_empty() && btrfs.is_some() {
            found.push(holder(Use::Btrfs, layers));
        }
        if self.swap_sources().any(|source| self.kernel_name(&source) == Some(name)) {
            found.push(holder(Use::Swap, layers));
        }
        if device.zfs_member && !self.zfs_pools.is_empty() {
            found.push(holder(Use::Zfs(self.zfs_pools.clone()), layers));
        }
        // The partitions of a disk are asked one by one; those of md and loop belong to the layer.
        if !layers.is_empty() {
            let inner = self.devices.iter().filter(|(_, device)| device.parent.as_deref() == Some(name));
            for (partition, _) in inner {
                self.walk(mounts, partition, start, layers, seen, found);
            }
        }
        for upper in &device.holders {
            layers.push(self.node(upper));
            self.walk(mounts, upper, start, layers, seen, found);
            layers.pop();
        }
        self.walk_loops(mounts, &format!("/dev/{name}"), start, layers, seen, found);
        if found.len() == before && !layers.is_empty() && device.parent.is_none() {
            found.push(holder(Use::Layer, layers));
        }
    }

    fn walk_loops(
        &self,
        mounts: &[Mount],
        file: &str,
        start: &str,
        layers: &mut Vec<String>,
        seen: &mut BTreeSet<String>,
        found: &mut Vec<Holder>,
    ) {
        let on_file = |(_, device): &(&String, &Device)| device.backing_file.as_deref() == Some(file);
        for (name, _) in self.devices.iter().filter(on_file) {
            layers.push(self.node(name));
            self.walk(mounts, name, start, layers, seen, found);
            layers.pop();
        }
    }
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(2);
    let number = fields.next()?.to_owned();
    let point = undo_octal(fields.nth(1)?);
    let source = undo_octal(after.split(' ').nth(1)?);
    Some(Mount { number, point, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(number: &str, parent: &str, holders: &[&str]) -> Device {
        Device {
            number: number.into(),
            parent: (!parent.is_empty()).then(|| parent.into()),
            holders: holders.iter().map(|&name| name.into()).collect(),
            ..Device::default()
        }
    }

    fn mapper(number: &str, name: &str, holders: &[&str]) -> Device {
        Device { mapper: Some(name.into()), ..device(number, "", holders) }
    }

    fn looped(number: &str, file: &str) -> Device {
        Device { backing_file: Some(file.into()), ..device(number, "", &[]) }
    }

    fn mount(number: &str, point: &str, kind: &str, source: &str) -> String {
        format!("30 1 {number} / {point} rw,relatime shared:1 - {kind} {source} rw\n")
    }

    fn snapshot(devices: &[(&str, Device)], mountinfo: String) -> Snapshot {
        let mut all = vec![("sda", device("8:0", "", &[])), ("sdb", device("8:16", "", &[]))];
        all.extend_from_slice(devices);
        let devices = all.into_iter().map(|(name, device)| (name.to_owned(), device)).collect();
        Snapshot { mountinfo: vec![mountinfo], devices, ..Snapshot::default() }
    }

    fn words(snapshot: &Snapshot, disk: &str) -> Vec<String> {
        of_device(snapshot, disk).iter().map(Holder::to_string).collect()
    }

    #[test]
    fn every_layer_is_walked_and_named() {
        let part = |holders: &[&str]| ("sdb1", device("8:17", "sdb", holders));
        for (what, snapshot, expected) in [
            ("nothing", snapshot(&[part(&[])], mount("8:1", "/", "ext4", "/dev/sda1")), vec![]),
            (
                "partition",
                snapshot(&[part(&[])], mount("8:17", "/mnt/my\\040disk", "ext4", "/dev/sdb1")),
                vec!["/dev/sdb1 is mounted on /mnt/my disk"],
            ),
            (
                "whole disk",
                snapshot(&[], mount("8:16", "/data", "ext4", "/dev/sdb")),
                vec!["/dev/sdb is mounted on /data"],
            ),
            (
                "root",
                snapshot(
                    &[part(&[])],
                    mount("8:17", "/", "ext4", "/dev/root")
                        + &mount("8:17", "/nix/store", "ext4", "/dev/root"),
                ),
                vec![
                    "/dev/sdb1 holds the root file system of the running system",
                    "/dev/sdb1 is mounted on /nix/store",
                ],
            ),
            (
                "md",
                snapshot(
                    &[part(&["md0"]), ("md0", device("9:0", "", &[]))],
                    mount("9:0", "/", "ext4", "/dev/md0"),
                ),
                vec!["/dev/sdb1 is part of /dev/md0, which holds the root file system of the running system"],
            ),
            (
                "a partition of md",
                snapshot(
                    &[
                        part(&["md0"]),
                        ("md0", device("9:0", "", &[])),
                        ("md0p1", device("259:0", "md0", &[])),
                    ],
                    mount("259:0", "/srv", "ext4", "/dev/md0p1"),
                ),
                vec!["/dev/sdb1 is part of /dev/md0, which is mounted on /srv"],
            ),
            (
                "LUKS, then LVM",
                snapshot(
                    &[
                        part(&["dm-0"]),
                        ("dm-0", mapper("253:0", "crypt", &["dm-1", "dm-2"])),
                        ("dm-1", mapper("253:1", "vg-root", &[])),
                        ("dm-2", mapper("253:2", "vg-idle", &[])),
                    ],
                    mount("253:1", "/home", "ext4", "/dev/mapper/vg-root"),
                ),
                vec![
                    "/dev/sdb1 is part of /dev/mapper/crypt, which is part of /dev/mapper/vg-root, which is mounted on /home",
                    "/dev/sdb1 is part of /dev/mapper/crypt, which is part of /dev/mapper/vg-idle",
                ],
            ),
            (
                "idle md",
                snapshot(&[part(&["md127"]), ("md127", device("9:127", "", &[]))], String::new()),
                vec!["/dev/sdb1 is part of /dev/md127"],
            ),
            (
                "bcache",
                snapshot(
                    &[part(&["bcache0"]), ("bcache0", device("252:0", "", &[]))],
                    mount("252:0", "/x", "ext4", "/dev/bcache0"),
                ),
                vec!["/dev/sdb1 is part of /dev/bcache0, which is mounted on /x"],
            ),
            (
                "btrfs",
                snapshot(&[part(&[])], mount("0:33", "/pool", "btrfs", "/dev/sdb1")),
                vec!["/dev/sdb1 is mounted on /pool"],
            ),
            (
                "btrfs on LUKS",
                snapshot(
                    &[part(&["dm-0"]), ("dm-0", mapper("253:0", "crypt", &[]))],
                    mount("0:33", "/pool", "btrfs", "/dev/mapper/crypt"),
                ),
                vec!["/dev/sdb1 is part of /dev/mapper/crypt, which is mounted on /pool"],
            ),
            (
                "second device of btrfs",
                Snapshot {
                    btrfs: vec![vec!["sda1".into(), "sdb1".into()]],
                    ..snapshot(&[part(&[])], mount("0:33", "/pool", "btrfs", "/dev/sda1"))
                },
                vec!["/dev/sdb1 is mounted on /pool"],
            ),
            (
                "btrfs mounted out of sight",
                Snapshot { btrfs: vec![vec!["sdb1".into()]], ..snapshot(&[part(&[])], String::new()) },
                vec!["/dev/sdb1 is a device of a mounted btrfs"],
            ),
            (
                "swap",
                Snapshot {
                    swaps: "Filename Type Size Used Priority\n/dev/sdb1 partition 1 0 -2\n".into(),
                    ..snapshot(&[part(&[])], String::new())
                },
                vec!["/dev/sdb1 holds swap in use"],
            ),
            (
                "swap on LVM",
                Snapshot {
                    swaps: "Filename\n/dev/dm-0 partition 1 0 -2\n".into(),
                    ..snapshot(&[part(&["dm-0"]), ("dm-0", mapper("253:0", "vg-swap", &[]))], String::new())
                },
                vec!["/dev/sdb1 is part of /dev/mapper/vg-swap, which holds swap in use"],
            ),
            (
                "loop",
                snapshot(&[("loop3", looped("7:3", "/dev/sdb"))], String::new()),
                vec!["/dev/sdb is attached to /dev/loop3"],
            ),
            (
                "mounted partition of a loop",
                snapshot(
                    &[("loop3", looped("7:3", "/dev/sdb")), ("loop3p1", device("259:9", "loop3", &[]))],
                    mount("259:9", "/l", "ext4", "/dev/loop3p1"),
                ),
                vec!["/dev/sdb is attached to /dev/loop3, which is mounted on /l"],
            ),
            (
                "zfs",
                Snapshot {
                    zfs_pools: vec!["tank".into()],
                    ..snapshot(
                        &[("sdb1", Device { zfs_member: true, ..device("8:17", "sdb", &[]) })],
                        String::new(),
                    )
                },
                vec!["/dev/sdb1 is a ZFS member while the pool tank is imported"],
            ),
            (
                "zfs, no pool",
                snapshot(
                    &[("sdb1", Device { zfs_member: true, ..device("8:17", "sdb", &[]) })],
                    String::new(),
                ),
                vec![],
            ),
            (
                "another namespace",
                Snapshot {
                    mountinfo: vec![String::new(), mount("8:17", "/c", "ext4", "/dev/sdb1")],
                    ..snapshot(&[part(&[])], String::new())
                },
                vec!["/dev/sdb1 is mounted on /c"],
            ),
            (
                "a ring",
                snapshot(
                    &[
                        part(&["dm-0"]),
                        ("dm-0", mapper("253:0", "a", &["dm-1"])),
                        ("dm-1", mapper("253:1", "b", &["dm-0"])),
                    ],
                    String::new(),
                ),
                vec!["/dev/sdb1 is part of /dev/mapper/a, which is part of /dev/mapper/b"],
            ),
            (
                "sdb is not sdba",
                snapshot(
                    &[("sdba1", device("67:1", "sdba", &[]))],
                    mount("67:1", "/y", "ext4", "/dev/sdba1"),
                ),
                vec![],
            ),
        ] {
            assert_eq!(words(&snapshot, "sdb"), expected, "{what}");
        }
    }

    #[test]
    fn an_image_file_is_held_by_loop_devices_and_by_swap() {
        let mut snapshot =
            snapshot(&[("loop3", looped("7:3", "/tmp/a b.img"))], mount("7:3", "/l", "ext4", "/dev/loop3"));
        snapshot.swaps = "Filename\n/tmp/swap\\040file file 1 0 -2\n".into();
        let told = |path| of_file(&snapshot, path, (1, 2)).iter().map(Holder::to_string).collect::<Vec<_>>();
        assert_eq!(told("/tmp/a b.img"), ["/tmp/a b.img is attached to /dev/loop3, which is mounted on /l"]);
        assert_eq!(told("/tmp/swap file"), ["/tmp/swap file holds swap in use"]);
        assert!(told("/tmp/other.img").is_empty());
    }
}
