//! Devices: under which names a boot loader's installer finds the disks that it writes to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::sys::namespace::DeviceNode;

/// A disk of the target and its partitions, as the kernel here names them.
#[derive(Clone, Debug)]
pub struct TargetDisk {
    pub name: String,
    pub rdev: u64,
    pub partitions: Vec<TargetPartition>,
}

#[derive(Clone, Debug)]
pub struct TargetPartition {
    pub number: u32,
    pub name: String,
    pub rdev: u64,
    /// Names as udev would link them, such as `disk/by-label/nixos`; see [`link_name`].
    pub links: Vec<String>,
}

/// Returns udev's link for a label, UUID, partition label or partition UUID: `by` is `label`, `uuid`,
/// `partlabel` or `partuuid`.
pub fn link_name(by: &str, value: &str) -> String {
    let mut name = format!("disk/by-{by}/");
    for c in value.chars() {
        if c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c) || !c.is_ascii() {
            name.push(c);
        } else {
            name.push_str(&format!("\\x{:02x}", c as u32));
        }
    }
    name
}

/// Decides under which names the installer finds the target's disks and partitions.
///
/// A name from the configuration always means the target, whatever the machine here calls so:
/// GRUB configured for `/dev/vda` and installed onto `/dev/vdb` must find `/dev/vdb` there. The first
/// baked disk is the first target, and so on; those left over are the first as well.
pub fn device_nodes(disks: &[TargetDisk], baked: &[PathBuf]) -> Vec<DeviceNode> {
    let mut baked_disks: Vec<String> = Vec::new();
    for device in baked {
        let Some(name) = device.strip_prefix("/dev").ok().and_then(Path::to_str) else { continue };
        let (disk, _) = split_partition(name);
        if !baked_disks.contains(&disk) {
            baked_disks.push(disk);
        }
    }
    let owner = |index: usize| if index < disks.len() { index } else { 0 };
    let mut taken = BTreeSet::new();
    let mut claimed: Vec<Vec<String>> = vec![Vec::new(); disks.len()];
    for (index, name) in baked_disks.into_iter().enumerate() {
        if let Some(names) = claimed.get_mut(owner(index)) {
            names.push(name);
        }
    }
    // Names from the configuration first, then the kernel's where they are still free.
    let mut nodes: Vec<(u64, Vec<String>)> = Vec::new();
    for (disk, names) in disks.iter().zip(&claimed) {
        nodes.push((disk.rdev, names.clone()));
        for part in &disk.partitions {
            let names = names.iter().map(|name| partition_name(name, part.number)).collect();
            nodes.push((part.rdev, names));
        }
    }
    taken.extend(nodes.iter().flat_map(|(_, names)| names.iter().cloned()));
    let kernel = disks.iter().flat_map(|disk| {
        let parts = disk.partitions.iter().map(|part| (&part.name, part.links.as_slice()));
        std::iter::once((&disk.name, [].as_slice())).chain(parts)
    });
    for ((_, names), (name, links)) in nodes.iter_mut().zip(kernel) {
        names.retain({
            let mut seen = BTreeSet::new();
            move |name| seen.insert(name.clone())
        });
        if names.contains(name) || taken.insert(name.clone()) {
            names.retain(|known| known != name);
            // What /proc/self/mountinfo shows stands first: links lead to it.
            names.insert(0, name.clone());
        } else if let Some(plain) = names.iter().position(|name| !name.contains('/')) {
            names.swap(0, plain);
        } else {
            // Links need a node to lead to; its name matters to nobody.
            names.insert(0, format!("{name}.target"));
        }
        names.extend(links.iter().cloned());
    }
    nodes.into_iter().map(|(rdev, names)| DeviceNode { names, rdev }).collect()
}

/// Splits `vda1`, `nvme0n1p2` or `disk/by-id/x-part3` into disk and partition.
fn split_partition(name: &str) -> (String, Option<u32>) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name[stem.len()..].parse().ok();
    let disk = if name.contains('/') {
        stem.strip_suffix("-part")
    } else if ["sd", "vd", "hd", "xvd"].iter().any(|prefix| name.starts_with(prefix)) {
        Some(stem)
    } else {
        stem.strip_suffix('p').filter(|disk| disk.ends_with(|c: char| c.is_ascii_digit()))
    };
    match (disk, number) {
        (Some(disk), Some(number)) => (disk.to_owned(), Some(number)),
        _ => (name.to_owned(), None),
    }
}

fn partition_name(disk: &str, number: u32) -> String {
    if disk.contains('/') {
        format!("{disk}-part{number}")
    } else if disk.ends_with(|c: char| c.is_ascii_digit()) {
        format!("{disk}p{number}")
    } else {
        format!("{disk}{number}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, rdev: u64) -> TargetDisk {
        let partition = |number| TargetPartition {
            number,
            name: partition_name(name, number),
            rdev: rdev + u64::from(number),
            links: if number == 2 { vec![link_name("label", "my root")] } else { Vec::new() },
        };
        TargetDisk { name: name.to_owned(), rdev, partitions: [1, 2].map(partition).to_vec() }
    }

    #[test]
    fn baked_names_mean_the_target_whatever_the_machine_calls_so() {
        let baked = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        for (disks, names, expected) in [
            (vec![disk("vdb", 10)], vec![], "10 vdb|11 vdb1|12 vdb2 disk/by-label/my\\x20root"),
            (
                vec![disk("vdb", 10)],
                vec!["/dev/vda"],
                "10 vdb vda|11 vdb1 vda1|12 vdb2 vda2 disk/by-label/my\\x20root",
            ),
            (vec![disk("vda", 10)], vec!["/dev/vda"], "10 vda|11 vda1|12 vda2 disk/by-label/my\\x20root"),
            (
                vec![disk("nvme1n1", 10)],
                vec!["/dev/nvme0n1", "/dev/sda"],
                "10 nvme1n1 nvme0n1 sda|11 nvme1n1p1 nvme0n1p1 sda1|12 nvme1n1p2 nvme0n1p2 sda2 disk/by-label/my\\x20root",
            ),
            (
                vec![disk("sdb", 10)],
                vec!["/dev/disk/by-id/ata-x", "nodev", "/dev/sda1"],
                "10 sdb disk/by-id/ata-x sda|11 sdb1 disk/by-id/ata-x-part1 sda1|\
                 12 sdb2 disk/by-id/ata-x-part2 sda2 disk/by-label/my\\x20root",
            ),
            // Two disks that have changed places.
            (
                vec![disk("sda", 10), disk("sdb", 20)],
                vec!["/dev/sdb", "/dev/sda"],
                "10 sdb|11 sdb1|12 sdb2 disk/by-label/my\\x20root|20 sda|21 sda1|22 sda2 disk/by-label/my\\x20root",
            ),
            (
                vec![disk("sda", 10), disk("sdb", 20)],
                vec!["/dev/sdb"],
                "10 sda sdb|11 sda1 sdb1|12 sda2 sdb2 disk/by-label/my\\x20root|\
                 20 sdb.target|21 sdb1.target|22 sdb2.target disk/by-label/my\\x20root",
            ),
        ] {
            let nodes = device_nodes(&disks, &baked(&names));
            let shown: Vec<String> =
                nodes.iter().map(|node| format!("{} {}", node.rdev, node.names.join(" "))).collect();
            let shown = shown.join("|");
            assert_eq!(shown, expected, "{names:?}");
        }
    }

    #[test]
    fn partitions_are_told_from_disks() {
        for (name, disk, number) in [
            ("vda", "vda", None),
            ("vda12", "vda", Some(12)),
            ("nvme0n1", "nvme0n1", None),
            ("nvme0n1p3", "nvme0n1", Some(3)),
            ("mmcblk0p1", "mmcblk0", Some(1)),
            ("loop7", "loop7", None),
            ("loop7p2", "loop7", Some(2)),
            ("md127", "md127", None),
            ("disk/by-id/wwn-0x5000", "disk/by-id/wwn-0x5000", None),
            ("disk/by-id/wwn-0x5000-part2", "disk/by-id/wwn-0x5000", Some(2)),
        ] {
            assert_eq!(split_partition(name), (disk.to_owned(), number), "{name}");
        }
    }
}
