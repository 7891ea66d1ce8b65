//! Files that are there whole or not at all.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use tempfile::NamedTempFile;

/// How the names of files begin that have not got their own yet.
pub const UNNAMED: &[u8] = b".tmp";

/// Returns a file without a name, not in memory where that can be helped.
pub fn spool() -> io::Result<File> {
    tempfile::tempfile_in("/var/tmp").or_else(|_| tempfile::tempfile())
}

/// Writes a file under a temporary name, syncs it, and renames it into place.
pub fn publish(path: &Path, contents: &[u8]) -> Result<()> {
    Staged::new(path, contents, 0o644)?.publish()
}

/// A file that is written and has no name yet; dropped, it is gone.
pub struct Staged {
    file: NamedTempFile,
    path: PathBuf,
}

impl Staged {
    /// Writes and syncs a file that is to be at `path`.
    pub fn new(path: &Path, contents: &[u8], mode: u32) -> Result<Staged> {
        let dir = parent(path);
        let prefix = OsStr::from_bytes(UNNAMED);
        let mut file = tempfile::Builder::new()
            .prefix(prefix)
            .tempfile_in(dir)
            .with_context(|| format!("writing into {}", dir.display()))?;
        file.write_all(contents).with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(file.path(), Permissions::from_mode(mode))
            .with_context(|| format!("setting the mode of {}", path.display()))?;
        file.as_file().sync_all().with_context(|| format!("syncing {}", path.display()))?;
        Ok(Staged { file, path: path.to_owned() })
    }

    /// Gives the file its name, in the place of what had it.
    pub fn publish(self) -> Result<()> {
        let Staged { file, path } = self;
        file.persist(&path).with_context(|| format!("publishing {}", path.display()))?;
        sync_dir(parent(&path))
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
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
