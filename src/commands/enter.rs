//! `enter DIR`: a command or a shell of the system in a directory, or all of it.

use anyhow::{Context, Result};

use crate::cli::Enter;
use crate::system::{container, enter};

/// Returns the exit status of the command, or of the container.
pub fn run(args: &Enter) -> Result<i32> {
    super::require_root()?;
    if args.boot {
        return container::boot(&args.dir, args.host_network, &args.command)
            .with_context(|| format!("booting {}", args.dir.display()));
    }
    let command = (!args.command.is_empty()).then(|| args.command.clone());
    enter::enter(&args.dir, command).with_context(|| format!("entering {}", args.dir.display()))
}
