//! What the commands for other machines share: how a machine is reached, and what it is given.

mod prepared;
mod reached;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

pub use prepared::Prepared;
pub use reached::Reached;

use crate::cli::Ssh;
use crate::failure::usage;
use crate::ssh::Settings;
use crate::sys::secret::Secret;

/// Returns how machines are reached. `client` is the OpenSSH client that a system carries.
pub fn settings(ssh: &Ssh, client: Option<PathBuf>) -> Result<Settings> {
    Ok(Settings {
        client: client.unwrap_or_else(|| "ssh".into()),
        config: ssh.config.clone(),
        port: ssh.port,
        identity: ssh.identity.clone(),
        jump: ssh.jump.clone(),
        options: ssh.options.clone(),
        sudo: ssh.sudo,
        sudo_password: ssh.sudo_password_file.as_deref().map(password_in).transpose()?,
    })
}

/// Reads a password: the only line of a file.
fn password_in(file: &Path) -> Result<Arc<Secret>> {
    let secret = Secret::read(file).map_err(|error| usage(format!("{error:#}")))?;
    let line = secret.bytes().strip_suffix(b"\n").unwrap_or(secret.bytes());
    if line.is_empty() || line.iter().any(u8::is_ascii_control) {
        return Err(usage(format!("{} holds no password; it is one line of text", file.display())));
    }
    Ok(Arc::new(Secret::new(line.to_vec())))
}

pub fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("finding this program")
}
