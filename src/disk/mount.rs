//! Mounting: one file system, or a whole layout below a directory, undone when dropped.
//!
//! The process lives in a private mount namespace, so a kill leaves nothing mounted either.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags};

use super::layout::{Content, DiskLayout, Format};
use super::places::Bind;
use crate::sys::{file, ioctl};

// Somebody may look into a new mount for a moment: an indexer, udev.
const UNMOUNT_TRIES: u32 = 50;
const UNMOUNT_PAUSE: Duration = Duration::from_millis(100);

/// A mounted file system.
#[derive(Debug)]
pub struct Mount {
    point: PathBuf,
    mounted: bool,
}

impl Mount {
    /// Mounts a device; the directory must be there.
    pub fn new(device: &Path, point: &Path, kind: &str, options: &[String]) -> Result<Mount> {
        let data = data(kind, options);
        let result =
            nix::mount::mount(Some(device), point, Some(kind), MsFlags::empty(), Some(data.as_str()));
        let result = match result {
            Err(error @ nix::Error::EEXIST) if kind == "btrfs" => Err(error).context(
                "a btrfs with the same UUID is mounted already, which needs Linux 6.7 or newer; name the file system by label",
            ),
            result => result.map_err(Into::into),
        };
        result.with_context(|| format!("mounting {} ({kind}) on {}", device.display(), point.display()))?;
        Ok(Mount { point: point.to_owned(), mounted: true })
    }

    /// Shows a directory at a second place; both must be there.
    fn bind(from: &Path, point: &Path) -> Result<Mount> {
        nix::mount::mount(Some(from), point, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("binding {} to {}", from.display(), point.display()))?;
        Ok(Mount { point: point.to_owned(), mounted: true })
    }

    pub fn path(&self) -> &Path {
        &self.point
    }

    /// Writes everything out, unmounts, and tells what went wrong.
    pub fn finish(mut self) -> Result<()> {
        let point = self.point.display().to_string();
        let dir = File::open(&self.point).with_context(|| format!("opening {point}"))?;
        nix::unistd::syncfs(&dir).with_context(|| format!("writing out {point}"))?;
        drop(dir);
        self.mounted = false;
        for _ in 0..UNMOUNT_TRIES {
            match nix::mount::umount2(&self.point, MntFlags::empty()) {
                Err(nix::Error::EBUSY) => std::thread::sleep(UNMOUNT_PAUSE),
                result => return result.with_context(|| format!("unmounting {point}")),
            }
        }
        self.mounted = true;
        Err(nix::Error::EBUSY).with_context(|| format!("unmounting {point}"))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            let _ = nix::mount::umount2(&self.point, MntFlags::MNT_DETACH);
        }
    }
}

/// Returns the mount data for writing an installation.
///
/// Only what shapes the data on disk is kept. The rest of fstab's options is for the running
/// system, and may be unknown to this machine's kernel.
pub fn data(kind: &str, options: &[String]) -> String {
    let kept: &[&str] = match kind {
        "btrfs" => &["subvol", "compress", "compress-force", "nodatacow", "nodatasum"],
        "vfat" => &["umask", "fmask", "dmask", "uid", "gid", "codepage", "iocharset", "shortname", "utf8"],
        "tmpfs" => &["mode", "size"],
        _ => &[],
    };
    let name = |option: &str| option.split('=').next().unwrap_or(option).to_owned();
    let mut data: Vec<&str> =
        options.iter().map(String::as_str).filter(|option| kept.contains(&name(option).as_str())).collect();
    match kind {
        // The original of a clone may be mounted with the same UUID.
        "xfs" => data.push("nouuid"),
        // Nobody but root reads an ESP's random seed; bootctl warns otherwise.
        "vfat" if !data.iter().any(|option| option.contains("mask")) => data.push("umask=0077"),
        _ => {}
    }
    data.join(",")
}

/// A layout mounted below a directory.
#[derive(Debug)]
pub struct Mounts {
    root: PathBuf,
    /// Parents first.
    mounts: Vec<Mount>,
}

impl Mounts {
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Writes everything out.
    pub fn sync(&self) -> Result<()> {
        self.mounts.iter().try_for_each(|mount| file::sync_filesystem(mount.path()))
    }

    /// Unmounts children first, and tells what went wrong.
    pub fn finish(mut self) -> Result<()> {
        while let Some(mount) = self.mounts.pop() {
            mount.finish()?;
        }
        Ok(())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        while self.mounts.pop().is_some() {}
    }
}

/// Mounts a layout below `root`, `devices` being its partitions in order, and `binds` of its directories.
pub fn layout(disk: &DiskLayout, devices: &[PathBuf], binds: &[Bind], root: &Path) -> Result<Mounts> {
    let mut all = Mounts { root: root.to_owned(), mounts: Vec::new() };
    let entries = disk.mounts();
    if !entries.iter().any(|entry| entry.mountpoint == "/") {
        // The system keeps / in memory, so what is put there is gone with the installation.
        let options = ["mode=0755".to_owned(), "size=64m".to_owned()];
        all.mounts.push(Mount::new(Path::new("tmpfs"), root, "tmpfs", &options)?);
    }
    for entry in entries {
        let point = below(root, entry.mountpoint);
        make_mount_point(root, entry.mountpoint)?;
        let mut options = entry.options.to_vec();
        if let Some(path) = entry.subvolume {
            options.push(format!("subvol={path}"));
        }
        let device = devices.get(entry.partition).context("finding the partition's device")?;
        all.mounts.push(Mount::new(device, &point, entry.format.name(), &options)?);
        if entry.format != Format::Vfat {
            set_mode(&point, mode(entry.mountpoint))?;
        }
    }
    for bind in binds {
        let [from, to] = [&bind.from, &bind.to].map(|path| path.to_string_lossy());
        make_mount_point(root, &from)?;
        make_mount_point(root, &to)?;
        all.mounts.push(Mount::bind(&below(root, &from), &below(root, &to))?);
    }
    Ok(all)
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn make_mount_point(root: &Path, path: &str) -> Result<()> {
    for at in way(path) {
        let dir = below(root, &at);
        match fs::create_dir(&dir) {
            Ok(()) => set_mode(&dir, mode(&at))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("making {}", dir.display())),
        }
    }
    Ok(())
}

/// Returns a path's directories, parents first, itself last.
pub fn way(path: &str) -> Vec<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    (1..=parts.len()).map(|count| format!("/{}", parts[..count].join("/"))).collect()
}

/// Returns the mode of a new directory.
pub fn mode(path: &str) -> u32 {
    match path {
        "/tmp" | "/var/tmp" => 0o1777,
        "/root" => 0o700,
        _ => 0o755,
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("setting the mode of {}", path.display()))
}

/// Makes the subvolumes of a new btrfs; `scratch` is an empty directory to mount it on.
pub fn make_subvolumes(content: &Content, device: &Path, scratch: &Path) -> Result<()> {
    let subvolumes = content.subvolumes();
    if subvolumes.is_empty() {
        return Ok(());
    }
    let top = Mount::new(device, scratch, "btrfs", &[])?;
    for path in subvolumes {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = top.path().join(parent);
        fs::create_dir_all(&parent).with_context(|| format!("making the parents of subvolume {path}"))?;
        let parent =
            File::open(&parent).with_context(|| format!("opening the parent of subvolume {path}"))?;
        ioctl::create_subvolume(&parent, name).with_context(|| format!("making subvolume {path}"))?;
    }
    top.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_options_that_shape_the_data_are_used() {
        for (kind, options, expected) in [
            ("ext4", vec!["noatime", "errors=remount-ro", "x-systemd.growfs"], ""),
            (
                "btrfs",
                vec!["compress=zstd:3", "ssd", "subvol=@home", "nofail"],
                "compress=zstd:3,subvol=@home",
            ),
            ("xfs", vec!["pquota"], "nouuid"),
            ("vfat", vec!["fmask=0022", "dmask=0022", "defaults"], "fmask=0022,dmask=0022"),
            ("vfat", vec![], "umask=0077"),
        ] {
            let options: Vec<String> = options.into_iter().map(str::to_owned).collect();
            assert_eq!(data(kind, &options), expected);
        }
    }
}
