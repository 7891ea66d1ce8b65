//! Looks at the machine that is to get a system.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::free_space;
use crate::facts::HostFacts;
use crate::store::db::Database;
use crate::store::path::{STORE_DIR, StorePath};
use crate::system::{activate, enter, inhibitors, profile};

/// Where the kernel tells which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Looks at this machine, and at whether `system` is valid in the root `root`.
pub fn host(root: &Path, system: &StorePath) -> Result<HostFacts> {
    let running = activate::running();
    let (current, booted) = (running.as_ref(), activate::booted());
    let inhibitors = [current, booted.as_ref()];
    Ok(HostFacts {
        nixos: Path::new("/etc/NIXOS").exists() && running.is_some(),
        machine: nix::sys::utsname::uname()
            .context("asking the kernel what this machine is")?
            .machine()
            .to_string_lossy()
            .into_owned(),
        boot_id: fs::read_to_string(BOOT_ID).with_context(|| format!("reading {BOOT_ID}"))?.trim().to_owned(),
        hostname: current.and_then(|system| enter::hostname(Path::new("/"), system)),
        platform: current.and_then(|system| enter::platform(Path::new("/"), system)),
        inhibitors: inhibitors
            .map(|system| system.map(|system| inhibitors::read(Path::new("/"), system)).unwrap_or_default()),
        booted,
        profile: profile::current_number(root).zip(profile::current(root)),
        running,
        free: free_space(&root.join(&STORE_DIR[1..]))?,
        valid: match Database::open(root)? {
            Some(database) => database.info(system)?.is_some(),
            None => false,
        },
    })
}
