//! A directory in memory: what is in it touches no disk, and is gone with the process.

use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags};
use tempfile::TempDir;

/// The directory, until it is dropped. A kill leaves an empty one, for the mount is in our own namespace.
pub struct Scratch {
    dir: TempDir,
}

impl Scratch {
    /// Makes one, in a process that has its mounts for itself.
    pub fn new() -> Result<Scratch> {
        let dir = tempfile::tempdir().context("making a temporary directory")?;
        let mounted = nix::mount::mount(
            Some("install-via"),
            dir.path(),
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some("mode=0755"),
        );
        mounted.with_context(|| format!("mounting a tmpfs on {}", dir.path().display()))?;
        Ok(Scratch { dir })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Before the directory goes, which a mount would keep.
        let _ = nix::mount::umount2(self.dir.path(), MntFlags::MNT_DETACH);
    }
}
