//! Restarting the machine where no init system is there to ask.

use anyhow::{Context, Result};
use nix::sys::reboot::{RebootMode, reboot};

/// Writes everything out and restarts the machine.
pub fn restart() -> Result<()> {
    nix::unistd::sync();
    match reboot(RebootMode::RB_AUTOBOOT).context("restarting the machine")? {}
}
