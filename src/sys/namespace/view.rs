//! What a program in a fence sees: mounts, devices and settings of the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, mknod};

use super::{DeviceNode, Efi, Fence, Network, not_allowed};

/// Mounts all that the program shall see, and leaves the host's tree for good.
pub(super) fn enclose(fence: &Fence) -> Result<()> {
    let mut spaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    if fence.network == Network::None {
        spaces |= CloneFlags::CLONE_NEWNET;
    }
    unshare(spaces).map_err(not_allowed).context("making namespaces")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(not_allowed)
        .context("making mounts private")?;
    mount(Some(&fence.root), &fence.root, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .map_err(not_allowed)
        .context("binding the root")?;
    nix::unistd::chdir(&fence.root).context("changing into the root")?;
    change_root()?;

    // From here on every path, and every symbolic link on its way, is the target's.
    for dir in ["/dev", "/proc", "/sys", "/run"] {
        match nix::unistd::mkdir(dir, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => (),
            Err(error) => return Err(error).with_context(|| format!("making {dir}")),
        }
    }
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_new("proc", "/proc", quiet, "")?;
    mount_new("tmpfs", "/run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755")?;
    make_dev(&fence.devices)?;
    mount_new("sysfs", "/sys", quiet | MsFlags::MS_RDONLY, "")?;
    match fence.efi {
        Efi::Hidden if Path::new("/sys/firmware").exists() => {
            mount_new("tmpfs", "/sys/firmware", quiet | MsFlags::MS_RDONLY, "mode=755,size=0")?;
        }
        Efi::Visible if Path::new("/sys/firmware/efi/efivars").exists() => {
            mount_new("efivarfs", "/sys/firmware/efi/efivars", quiet, "")?;
        }
        Efi::Hidden | Efi::Visible => (),
    }
    protect_kernel_settings()?;
    if let Some(hostname) = &fence.hostname {
        nix::unistd::sethostname(hostname).context("setting the host name")?;
    }
    Ok(())
}

/// Makes the current directory the root, with nothing else left to go to.
fn change_root() -> Result<()> {
    match nix::unistd::pivot_root(".", ".") {
        // The old root now lies over the new one.
        Ok(()) => umount2(".", MntFlags::MNT_DETACH).context("leaving the host's mounts")?,
        // The root of an initrd cannot be exchanged, only covered.
        Err(Errno::EINVAL) => {
            mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
                .context("covering the initrd")?;
            nix::unistd::chroot(".").context("changing the root")?;
        }
        Err(error) => return Err(not_allowed(error)).context("changing the root"),
    }
    nix::unistd::chdir("/").context("changing into the new root")
}

fn mount_new(kind: &str, at: &str, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some(kind), at, Some(kind), flags, Some(options))
        .map_err(not_allowed)
        .with_context(|| format!("mounting {at}"))
}

const CHARACTER_DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
pub(super) const THROW_AWAY_EFIVARS: &str = "/dev/shm/efivars";
// The group `tty` on NixOS.
const TTY_GROUP: u32 = 3;

fn make_dev(devices: &[DeviceNode]) -> Result<()> {
    // Activation remounts /dev with mode=755,size=5% and the like, which suit a tmpfs too.
    mount_new("tmpfs", "/dev", MsFlags::MS_NOSUID, "mode=755")?;
    for (name, major, minor) in CHARACTER_DEVICES {
        make_node(name, SFlag::S_IFCHR, 0o666, nix::sys::stat::makedev(major, minor))?;
    }
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, Path::new("/dev").join(name)).with_context(|| format!("linking /dev/{name}"))?;
    }
    for dir in ["/dev/pts", "/dev/shm"] {
        fs::create_dir(dir).with_context(|| format!("making {dir}"))?;
    }
    let options = format!("newinstance,ptmxmode=0666,mode=620,gid={TTY_GROUP}");
    mount_new("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, &options)?;
    mount_new("tmpfs", "/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    fs::create_dir(THROW_AWAY_EFIVARS).with_context(|| format!("making {THROW_AWAY_EFIVARS}"))?;

    for (name, entry) in block_entries(devices)? {
        let path = Path::new("/dev").join(&name);
        let dir = path.parent().expect("a path below /dev has a parent");
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        match entry {
            BlockEntry::Node(rdev) => make_node(&name, SFlag::S_IFBLK, 0o660, rdev)?,
            BlockEntry::Link(to) => symlink(to, &path).with_context(|| format!("linking /dev/{name}"))?,
        }
    }
    Ok(())
}

fn make_node(name: &str, kind: SFlag, mode: u32, rdev: u64) -> Result<()> {
    let path = Path::new("/dev").join(name);
    mknod(&path, kind, Mode::from_bits_truncate(mode), rdev)
        .and_then(|()| {
            nix::sys::stat::fchmodat(
                nix::fcntl::AT_FDCWD,
                &path,
                Mode::from_bits_truncate(mode),
                nix::sys::stat::FchmodatFlags::FollowSymlink,
            )
        })
        .map_err(not_allowed)
        .with_context(|| format!("making the device node /dev/{name}"))
}

#[derive(Debug, PartialEq)]
enum BlockEntry {
    Node(u64),
    Link(String),
}

/// Decides what lies below `/dev` for the given block devices.
///
/// Names with a slash are links, as udev makes them, so that programs which resolve them find the
/// name that `/proc/self/mountinfo` shows. Names without are nodes. Of two devices that claim one
/// name the first has it: the caller puts those names first that must not be mistaken.
fn block_entries(devices: &[DeviceNode]) -> Result<BTreeMap<String, BlockEntry>> {
    let mut entries = BTreeMap::new();
    for device in devices {
        let Some(first) = device.names.first() else { continue };
        for name in &device.names {
            check_device_name(name)?;
            let entry = match name.matches('/').count() {
                0 => BlockEntry::Node(device.rdev),
                depth => BlockEntry::Link(format!("{}{first}", "../".repeat(depth))),
            };
            entries.entry(name.clone()).or_insert(entry);
        }
        // How systemd finds a node by its number.
        let (major, minor) = (nix::sys::stat::major(device.rdev), nix::sys::stat::minor(device.rdev));
        entries.entry(format!("block/{major}:{minor}")).or_insert(BlockEntry::Link(format!("../{first}")));
    }
    Ok(entries)
}

fn check_device_name(name: &str) -> Result<()> {
    let reserved = CHARACTER_DEVICES.iter().map(|(name, ..)| *name).chain(["pts", "shm", "fd", "ptmx"]);
    let odd = |part: &str| part.is_empty() || part == "." || part == "..";
    let start = name.split('/').next().unwrap_or_default();
    if name.split('/').any(odd)
        || reserved.into_iter().any(|reserved| reserved == start)
        || start.starts_with("std")
    {
        bail!("naming a block device {name:?}: the name cannot be used below /dev");
    }
    Ok(())
}

// What activation writes for the machine it takes itself to be booted on. The kernel has one of
// each for all namespaces, and ours may live on without the paths written there.
const SWALLOWED: [&str; 3] =
    ["/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug", "/sys/module/firmware_class/parameters/path"];

fn protect_kernel_settings() -> Result<()> {
    let none = None::<&str>;
    mount(Some("/proc/sys"), "/proc/sys", none, MsFlags::MS_BIND, none)
        .map_err(not_allowed)
        .context("binding /proc/sys")?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(
        none,
        "/proc/sys",
        none,
        read_only | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        none,
    )
    .map_err(not_allowed)
    .context("making /proc/sys read-only")?;
    for path in SWALLOWED.into_iter().filter(|path| Path::new(path).exists()) {
        bind_text(&fs::read(path).unwrap_or_default(), Path::new(path))?;
    }
    Ok(())
}

/// Covers the file at `path` by a writable one with this text, which exists nowhere else.
pub(super) fn bind_text(text: &[u8], path: &Path) -> Result<()> {
    let source = Path::new("/dev/.cover");
    fs::write(source, text).with_context(|| format!("writing {}", source.display()))?;
    let bound = mount(Some(source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    fs::remove_file(source).with_context(|| format!("removing {}", source.display()))?;
    bound.with_context(|| format!("covering {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_hide_something_are_refused() {
        for name in ["null", "../etc/passwd", "disk//x", "", "pts/0", "stdin", "fd"] {
            let devices = [DeviceNode { names: vec![name.to_owned()], rdev: 1 }];
            assert!(block_entries(&devices).is_err(), "{name}");
        }
        let devices = [
            DeviceNode { names: vec!["vdb".into(), "vda".into()], rdev: 1 },
            DeviceNode { names: vec!["vda".into()], rdev: 2 },
        ];
        assert_eq!(block_entries(&devices).unwrap()["vda"], BlockEntry::Node(1));
    }
}
