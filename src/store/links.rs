//! Hard links between the files of a store, made again in its copy.
//!
//! Which file was copied already is remembered on the disk, as a link named after the source's inode:
//! memory stays flat however many files an optimised store shares.

use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;
use std::sync::Mutex;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::stat::FileStat;

use super::copy::{forget, link};
use super::tree::Builder;

/// The files copied so far that may be met again.
pub struct Links<'a> {
    dir: BorrowedFd<'a>,
    // A file with more names than this is shared.
    unshared: u64,
    turn: Mutex<()>,
}

impl<'a> Links<'a> {
    /// Remembers in `dir`; files with up to `unshared` names are not worth it.
    pub fn new(dir: BorrowedFd<'a>, unshared: u64) -> Self {
        Links { dir, unshared, turn: Mutex::new(()) }
    }

    /// Makes `name` another name of a file copied before, and returns true; or has it made.
    pub fn link_or_make(
        &self,
        stat: &FileStat,
        name: &CStr,
        builder: &mut Builder,
        make: impl FnOnce(&mut Builder) -> Result<()>,
    ) -> Result<bool> {
        if stat.st_nlink <= self.unshared {
            return make(builder).map(|()| false);
        }
        let key = CString::new(format!("{:x}-{:x}", stat.st_dev, stat.st_ino)).expect("hex digits hold no NUL");
        // Another worker may be about to make the same file.
        let _turn = self.turn.lock().expect("no worker panics with it");
        match link((self.dir, &key), (builder.current(), name)) {
            Ok(()) => return Ok(true),
            Err(Errno::ENOENT) => {}
            // As many names as the file system allows: the next ones go to a new copy.
            Err(Errno::EMLINK) => forget(self.dir, &key).context("forgetting a file with too many links")?,
            Err(error) => return Err(error).context("linking a file copied before"),
        }
        make(builder)?;
        match link((builder.current(), name), (self.dir, &key)) {
            // A file system without hard links.
            Ok(()) | Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::EMLINK) => Ok(false),
            Err(error) => Err(error).context("remembering a file"),
        }
    }
}
