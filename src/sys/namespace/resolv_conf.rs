//! The host's way of resolving names, lent to a fence.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::FileStat;

use super::view::bind_text;

/// The host's `resolv.conf` bound over the target's. Leaves nothing behind.
pub(super) struct ResolvConf {
    mounted: File,
    made: Option<(OwnedFd, OsString)>,
}

impl ResolvConf {
    /// A root without a place for it gets none: names do not resolve, and nothing else changes.
    pub(super) fn pass_through(text: &[u8]) -> Option<Self> {
        let path = Path::new("/etc/resolv.conf");
        let made = if path.exists() { None } else { Some(Self::make(path)?) };
        bind_text(text, path).ok()?;
        let mounted = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path).ok()?;
        Some(ResolvConf { mounted, made })
    }

    /// Makes an empty file to mount on, where a link points to if there is one.
    fn make(path: &Path) -> Option<(OwnedFd, OsString)> {
        let dir = path.parent()?;
        let place = fs::read_link(path).map_or(path.to_owned(), |target| dir.join(target));
        let parent = place.parent()?;
        let in_run = fs::canonicalize(parent.components().take(2).collect::<PathBuf>())
            .is_ok_and(|top| top == Path::new("/run"));
        if in_run || path_starts_in_run(&place) {
            fs::create_dir_all(parent).ok()?;
        }
        let name = place.file_name()?.to_owned();
        let parent =
            OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECTORY.bits()).open(parent).ok()?;
        OpenOptions::new().write(true).create_new(true).mode(0o644).open(&place).ok()?;
        Some((parent.into(), name))
    }
}

/// Tells whether a path such as `/etc/../run/systemd/resolv.conf` lies in `/run`, going by its words.
fn path_starts_in_run(path: &Path) -> bool {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(parts.pop()),
            std::path::Component::Normal(name) => parts.push(name),
            _ => (),
        }
    }
    parts.first().is_some_and(|first| *first == "run")
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        let Some((dir, name)) = &self.made else { return };
        // What the program mounted may have changed where the path leads.
        let _ =
            umount2(Path::new(&format!("/proc/self/fd/{}", self.mounted.as_raw_fd())), MntFlags::MNT_DETACH);
        let empty = |stat: FileStat| stat.st_size == 0;
        if nix::sys::stat::fstatat(dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok_and(empty) {
            let _ = nix::unistd::unlinkat(dir, name.as_os_str(), nix::unistd::UnlinkatFlags::NoRemoveDir);
        }
    }
}
