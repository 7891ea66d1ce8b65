//! A store object read again: is it what the database says, and as Nix leaves it?

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Result;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstat, fstatat};

use super::nar::Visitor;
use super::tree;

/// Notes the first object whose mode, owner or time is not canonical.
pub struct Checker {
    owner: (u32, u32),
    pub flaw: Option<String>,
}

impl Checker {
    /// Expects everything to belong to `owner`, a user and a group.
    pub fn new(owner: (u32, u32)) -> Self {
        Checker { owner, flaw: None }
    }

    fn look(&mut self, name: &CStr, stat: &FileStat) {
        if self.flaw.is_none() {
            let flaw = tree::flaw(stat, self.owner);
            self.flaw = flaw.map(|flaw| format!("{} {flaw}", name.to_string_lossy()));
        }
    }
}

impl Visitor for Checker {
    fn directory(&mut self, name: &CStr, source: BorrowedFd) -> Result<()> {
        self.look(name, &fstat(source)?);
        Ok(())
    }

    fn symlink(&mut self, name: &CStr, _target: &OsStr, parent: BorrowedFd) -> Result<()> {
        self.look(name, &fstatat(parent.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW)?);
        Ok(())
    }

    fn file(&mut self, name: &CStr, _source: &File, stat: &FileStat) -> Result<()> {
        self.look(name, stat);
        Ok(())
    }
}
