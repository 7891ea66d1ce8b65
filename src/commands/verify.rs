//! `verify ROOT`: is every store path still what its database says?

use std::io::Write;

use anyhow::{Context, Result, bail};

use crate::cli::Verify;
use crate::progress::Event;
use crate::store::verify;

/// Lists what is damaged or missing on stdout; anything listed is a failure.
pub fn run(args: &Verify) -> Result<()> {
    let progress = args.progress.printer();
    let verified = verify::root(&args.root, &*progress)?;
    let mut out = std::io::stdout().lock();
    for damage in &verified.damaged {
        writeln!(out, "{damage}").context("listing what is damaged")?;
    }
    if verified.damaged.is_empty() {
        let text = format!("{} store paths, {}: all as the database says", verified.paths, verified.bytes);
        progress.event(Event::Done { text });
        return Ok(());
    }
    bail!(
        "{} of {} store paths in {} are not what the database says; repair them with nix-store --repair-path, \
         or copy them again from a good root",
        verified.damaged.len(),
        verified.paths,
        args.root.display()
    )
}
