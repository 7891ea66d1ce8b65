//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;

/// Writes a file under a temporary name, syncs it, and renames it into place.
pub fn publish(path: &Path, contents: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file =
        tempfile::NamedTempFile::new_in(dir).with_context(|| format!("writing into {}", dir.display()))?;
    file.write_all(contents).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .with_context(|| format!("setting the mode of {}", path.display()))?;
    file.as_file().sync_all().with_context(|| format!("syncing {}", path.display()))?;
    file.persist(path).with_context(|| format!("publishing {}", path.display()))?;
    sync_dir(dir)
}

/// Syncs a directory, so that a rename in it survives a power cut.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("syncing {}", dir.display()))
}

/// Syncs the whole file system that `path` is on: one wait for a whole batch of files.
pub fn sync_filesystem(path: &Path) -> Result<()> {
    let dir = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    nix::unistd::syncfs(&dir).with_context(|| format!("syncing the file system of {}", path.display()))
}

/// Lets `target` share the extents of `source`, where the file system can.
pub fn reflink(source: BorrowedFd, target: BorrowedFd) -> nix::Result<()> {
    // SAFETY: FICLONE takes a descriptor, and both are open for the whole call.
    let result = unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) };
    Errno::result(result).map(drop)
}

/// Removes the access list that what is made in `dir` would inherit.
pub fn remove_default_acl(dir: BorrowedFd) -> nix::Result<()> {
    let name = c"system.posix_acl_default";
    // SAFETY: the name is a C string and `dir` is open.
    let result = unsafe { libc::fremovexattr(dir.as_raw_fd(), name.as_ptr()) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lets this process open as many files as it may.
pub fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for both calls. If they fail, the old limit may well do.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}
