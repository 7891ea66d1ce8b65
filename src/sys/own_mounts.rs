//! Mounts that nobody else sees.

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Gives this thread, and those it starts, mounts of their own, which go with them however they end.
pub fn make() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("making a private mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("making the mounts private")
}
