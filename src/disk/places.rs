//! Places: where a path of the new system lies, through the binds and the memory that its fstab mounts.
//!
//! Decides only. What an installation writes has to be where the running system looks for it: through a bind such as
//! `/persist/boot` on `/boot`, and never into a tmpfs, which is empty at the first boot.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::fstab::Entry;
use super::layout::DiskLayout;

// More than any system chains, and an end to those that go in circles.
const BINDS_IN_A_ROW: usize = 16;

/// A directory of the new root that is shown at a second place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    pub from: PathBuf,
    pub to: PathBuf,
}

/// Returns the binds of fstab that a path goes through on its way to a disk, and where it is in the end.
fn follow<'a>(fstab: &'a [Entry], path: &Path) -> (Vec<&'a Entry>, PathBuf) {
    let (mut through, mut at) = (Vec::new(), path.to_owned());
    for _ in 0..BINDS_IN_A_ROW {
        let Some(bind) = deepest(fstab, &at, |entry| entry.is_bind() && entry.device.starts_with('/')) else {
            break;
        };
        let rest = at.strip_prefix(&bind.mountpoint).expect("the bind is above it");
        at = match rest.as_os_str().is_empty() {
            true => PathBuf::from(&bind.device),
            false => Path::new(&bind.device).join(rest),
        };
        through.push(bind);
    }
    (through, at)
}

/// Returns the entry that is mounted nearest above a path, if it is one that counts.
fn deepest<'a>(fstab: &'a [Entry], path: &Path, counts: impl Fn(&Entry) -> bool) -> Option<&'a Entry> {
    let above = fstab.iter().filter(|entry| !entry.is_swap() && path.starts_with(&entry.mountpoint));
    above.max_by_key(|entry| Path::new(&entry.mountpoint).components().count()).filter(|entry| counts(entry))
}

/// Returns the binds that have to be made before something is written to these paths, in their order.
pub fn binds<'p>(fstab: &[Entry], paths: impl Iterator<Item = &'p Path>) -> Vec<Bind> {
    let mut wanted: Vec<Bind> = Vec::new();
    for path in paths {
        // What a bind shows is there before the bind.
        for entry in follow(fstab, path).0.into_iter().rev() {
            let bind = Bind { from: PathBuf::from(&entry.device), to: PathBuf::from(&entry.mountpoint) };
            if !wanted.contains(&bind) {
                wanted.push(bind);
            }
        }
    }
    wanted
}

/// Tells whether a path lies in memory once the system runs.
pub fn is_in_memory(fstab: &[Entry], disk: &DiskLayout, path: &Path) -> bool {
    let at = follow(fstab, path).1;
    let depth = |point: &str| Path::new(point).components().count();
    let mounts = disk.mounts();
    let kept =
        mounts.iter().filter(|mount| at.starts_with(mount.mountpoint)).map(|mount| depth(mount.mountpoint));
    let kept = kept.max().unwrap_or(0);
    let in_memory = |entry: &&Entry| {
        matches!(entry.kind.as_str(), "tmpfs" | "ramfs") && at.starts_with(&entry.mountpoint)
    };
    let lost = fstab.iter().filter(in_memory).map(|entry| depth(&entry.mountpoint)).max();
    // Where nothing is mounted on / the installation keeps it in memory too.
    kept == 0 || lost.is_some_and(|lost| lost > kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fstab;
    use crate::disk::layout;

    fn disk(mountpoint: &str) -> layout::Layout {
        let json = format!(
            r#"{{"disks": {{"main": {{"partitions": [
            {{"name": "ESP", "type": "esp", "size": "1G", "content": {{"type": "filesystem", "format": "vfat", "mountpoint": "/efi"}}}},
            {{"name": "root", "type": "linux", "size": "100%", "content": {{"type": "filesystem", "format": "ext4", "mountpoint": "{mountpoint}"}}}}]}}}}}}"#
        );
        layout::parse(&json).unwrap()
    }

    const IMPERMANENT: &str = "none / tmpfs size=2G 0 0\nLABEL=nix /nix ext4 - 0 0\nLABEL=E /efi vfat - 0 0\n\
        /nix/persist/boot /boot none bind 0 0\n/nix/persist/etc/ssh /etc/ssh none bind,x-gvfs-hide 0 0\n\
        /etc/ssh /srv/ssh none rbind 0 0\n/a /b none bind 0 0\n/b /a none bind 0 0\n";

    #[test]
    fn what_is_written_goes_through_the_binds_of_the_system() {
        let fstab = fstab::parse(IMPERMANENT);
        for (path, made) in [
            ("/boot", vec!["/nix/persist/boot /boot"]),
            ("/boot/grub/grub.cfg", vec!["/nix/persist/boot /boot"]),
            ("/etc/ssh/key", vec!["/nix/persist/etc/ssh /etc/ssh"]),
            ("/srv/ssh/key", vec!["/nix/persist/etc/ssh /etc/ssh", "/etc/ssh /srv/ssh"]),
            ("/nix/store", vec![]),
            ("/efi", vec![]),
            ("/bootx", vec![]),
            ("/a/x", vec!["/a /b", "/b /a"]),
        ] {
            let binds = binds(&fstab, [Path::new(path)].into_iter());
            let binds: Vec<String> =
                binds.iter().map(|bind| format!("{} {}", bind.from.display(), bind.to.display())).collect();
            assert_eq!(binds, made, "{path}");
        }
    }

    #[test]
    fn what_lies_in_memory_is_known() {
        let fstab = fstab::parse(IMPERMANENT);
        let (in_memory, on_disk) = (disk("/nix"), disk("/"));
        for (path, lost) in [
            ("/etc/secrets/x", true),
            ("/boot", false),
            ("/etc/ssh/key", false),
            ("/srv/ssh/key", false),
            ("/nix/persist/x", false),
            ("/efi/x", false),
        ] {
            assert_eq!(is_in_memory(&fstab, in_memory.disk().unwrap().1, Path::new(path)), lost, "{path}");
        }
        let fstab = fstab::parse("LABEL=x / ext4 - 0 0\ntmpfs /tmp tmpfs - 0 0\n");
        for (path, lost) in [("/etc/x", false), ("/tmp/x", true), ("/tmpx", false)] {
            assert_eq!(is_in_memory(&fstab, on_disk.disk().unwrap().1, Path::new(path)), lost, "{path}");
        }
    }
}
