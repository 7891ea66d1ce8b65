//! `enter DIR`: a command or a shell of the system in a directory.

use anyhow::{Context, Result};

use crate::cli::Enter;
use crate::system::enter;

/// Returns the exit status of the command.
pub fn run(args: &Enter) -> Result<i32> {
    super::require_root()?;
    let command = (!args.command.is_empty()).then(|| args.command.clone());
    enter::enter(&args.dir, command).with_context(|| format!("entering {}", args.dir.display()))
}
