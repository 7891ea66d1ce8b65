//! Formatting: from a partition's content to the command lines that make it.
//!
//! [`command`] decides; [`make`] runs it. Tools keep their defaults, for those are what the
//! system's own kernel was tested with; only names, quiet and force are said, and no discarding.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::libc;
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag};

use super::layout::{Content, DiskLayout, Format, Partition};
use super::luks;
use crate::size::Bytes;
use crate::sys::command as program;

// The fewest clusters of FAT32 (65525), of one sector each, and what stands before them.
const SMALLEST_FAT32_SECTORS: u64 = 66_600;

/// Where each tool is, by name.
pub type Tools = BTreeMap<String, PathBuf>;

/// Returns the names of the tools that make this layout.
pub fn tools(disk: &DiskLayout) -> BTreeSet<&'static str> {
    disk.partitions.iter().flat_map(Partition::layers).map(tool).collect()
}

fn tool(content: &Content) -> &'static str {
    if let Content::Luks(_) = content {
        return luks::TOOL;
    }
    match content.format() {
        Some(Format::Ext2) => "mkfs.ext2",
        Some(Format::Ext3) => "mkfs.ext3",
        Some(Format::Ext4) => "mkfs.ext4",
        Some(Format::Xfs) => "mkfs.xfs",
        Some(Format::Vfat) => "mkfs.vfat",
        Some(Format::Btrfs) => "mkfs.btrfs",
        None => "mkswap",
    }
}

/// Returns the command line that makes a file system or swap, without the device, which comes last.
pub fn command(content: &Content, size: Bytes, sector_size: u64) -> Vec<String> {
    let mut words: Vec<String> = vec![tool(content).to_owned()];
    let mut say = |more: &[&str]| words.extend(more.iter().map(|&word| word.to_owned()));
    let (label, uuid) = (content.label(), content.uuid());
    match content.format() {
        Some(Format::Ext2 | Format::Ext3 | Format::Ext4) => say(&["-q", "-F", "-E", "nodiscard"]),
        Some(Format::Xfs | Format::Btrfs) => say(&["-q", "-f", "-K"]),
        // Firmware expects FAT32 on a hard disk; below its least size the tool chooses.
        Some(Format::Vfat) if size.0 / sector_size >= SMALLEST_FAT32_SECTORS => say(&["-F", "32"]),
        Some(Format::Vfat) => {}
        None => say(&["-q", "-f"]),
    }
    if let Some(label) = label {
        say(&[if content.format() == Some(Format::Vfat) { "-n" } else { "-L" }, label]);
    }
    match (content.format(), uuid) {
        (_, None) => {}
        (Some(Format::Vfat), Some(uuid)) => say(&["-i", &uuid.replace('-', "").to_ascii_uppercase()]),
        (Some(Format::Xfs), Some(uuid)) => say(&["-m", &format!("uuid={}", uuid.to_ascii_lowercase())]),
        (_, Some(uuid)) => say(&["-U", &uuid.to_ascii_lowercase()]),
    }
    words
}

/// Makes `content` on a device.
pub fn make(tools: &Tools, content: &Content, device: &Path, size: Bytes, sector_size: u64) -> Result<()> {
    let words = command(content, size, sector_size);
    let tool = tools.get(&words[0]).with_context(|| format!("finding the tool {}", words[0]))?;
    let mut command = Command::new(tool);
    // Where it lies may be the end of a link: mkfs.ext4 is one to mke2fs, which makes ext2 by that name.
    command.arg0(&words[0]).args(&words[1..]).arg(device);
    // A label with letters outside ASCII must reach the disk whatever locale root has.
    command.env("LC_ALL", "C.UTF-8");
    let what = content.format_name();
    // mkfs.btrfs refuses a UUID that any device here has, and the original of a clone has it.
    let result = match (content.format(), content.uuid()) {
        (Some(Format::Btrfs), Some(_)) => alone(device, || program::output(&mut command)),
        _ => program::output(&mut command),
    };
    result.map(drop).with_context(|| format!("making {what} on {}", device.display()))
}

/// Does something in a mount namespace whose `/dev` has no block device but this one.
fn alone<T: Send>(device: &Path, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let body = || {
        // The namespace is the thread's own, and the programs it starts are born there.
        unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
            .context("making the mounts private")?;
        if let Ok(meta) = fs::metadata(device)
            && meta.file_type().is_block_device()
        {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
            nix::mount::mount(Some("dev"), "/dev", Some("tmpfs"), flags, Some("mode=0755,size=1m"))
                .context("hiding the other devices")?;
            node(device, SFlag::S_IFBLK, meta.rdev())?;
            for (path, minor) in [("/dev/null", 3), ("/dev/zero", 5), ("/dev/random", 8), ("/dev/urandom", 9)]
            {
                node(Path::new(path), SFlag::S_IFCHR, libc::makedev(1, minor))?;
            }
        }
        act()
    };
    std::thread::scope(|scope| scope.spawn(body).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn node(path: &Path, kind: SFlag, number: u64) -> Result<()> {
    let making = || format!("making the device node {}", path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(making)?;
    }
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    nix::sys::stat::mknod(path, kind, mode, number).with_context(making)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::contents;
    use crate::disk::layout::{Btrfs, Filesystem, Swap};

    const UUID: &str = "6E0A3C5E-0f4a-4f5a-9f0b-0a4c5d6e7f80";

    fn filesystem(format: Format, label: &str, uuid: &str) -> Content {
        let (label, uuid) = (Some(label.to_owned()), Some(uuid.to_owned()));
        match format {
            Format::Btrfs => Content::Btrfs(Btrfs { label, uuid, ..Btrfs::default() }),
            _ => Content::Filesystem(Filesystem { format, label, uuid, mountpoint: None, options: vec![] }),
        }
    }

    #[test]
    fn each_content_has_its_command_line() {
        let swap = Content::Swap(Swap { label: Some("s".into()), uuid: None });
        for (content, line) in [
            (
                filesystem(Format::Ext4, "my root", UUID),
                "mkfs.ext4 -q -F -E nodiscard -L my root -U 6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80",
            ),
            (
                filesystem(Format::Xfs, "x", UUID),
                "mkfs.xfs -q -f -K -L x -m uuid=6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80",
            ),
            (
                filesystem(Format::Btrfs, "x", UUID),
                "mkfs.btrfs -q -f -K -L x -U 6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80",
            ),
            (filesystem(Format::Vfat, "ESP", "abcd-1234"), "mkfs.vfat -F 32 -n ESP -i ABCD1234"),
            (swap, "mkswap -q -f -L s"),
        ] {
            assert_eq!(command(&content, Bytes::gib(1), 512).join(" "), line);
        }
        let small = command(&filesystem(Format::Vfat, "ESP", "abcd-1234"), Bytes::mib(128), 4096);
        assert!(!small.contains(&"32".to_owned()));
    }

    #[test]
    fn the_tools_make_what_was_asked_for() {
        let names = ["mkfs.ext2", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "mkfs.vfat", "mkswap"];
        let find = |name: &str| program::find(name, ["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from));
        // At the ends of links, as they are named to another machine.
        let find = |name: &str| find(name)?.canonicalize().ok();
        let tools: Tools = names.iter().filter_map(|&name| Some((name.to_owned(), find(name)?))).collect();
        for (content, size) in [
            (filesystem(Format::Ext4, "größe", UUID), Bytes::mib(16)),
            (filesystem(Format::Ext2, "a b", UUID), Bytes::mib(2)),
            (filesystem(Format::Xfs, "x", UUID), Bytes::mib(300)),
            (filesystem(Format::Btrfs, "btrfs label", UUID), Bytes::mib(115)),
            (filesystem(Format::Vfat, "ESP", "ABCD-1234"), Bytes::mib(2)),
            (filesystem(Format::Vfat, "ESP", "ABCD-1234"), Bytes::mib(33)),
            (filesystem(Format::Vfat, "ESP", "ABCD-1234"), Bytes::gib(1)),
            (Content::Swap(Swap { label: Some("s".into()), uuid: Some(UUID.into()) }), Bytes::mib(1)),
        ] {
            assert!(size >= content.least());
            let image = tempfile::NamedTempFile::new().unwrap();
            image.as_file().set_len(size.0).unwrap();
            make(&tools, &content, image.path(), size, 512).unwrap();
            let found = contents::on_device(image.as_file(), Bytes(0), size).unwrap().unwrap();
            assert_eq!(found.kind, content.format_name());
            assert_eq!(found.label.as_deref(), content.label(), "{}", found.kind);
            assert!(found.uuid.unwrap().eq_ignore_ascii_case(content.uuid().unwrap()));
        }
        let error = make(&Tools::new(), &filesystem(Format::Xfs, "x", UUID), Path::new("/x"), Bytes(1), 512);
        assert!(error.unwrap_err().to_string().contains("mkfs.xfs"));
    }
}
