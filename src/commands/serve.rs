//! `serve`: the far end. It runs on the machine that gets a system, for as long as a connection lasts.

use std::fs;
use std::io::{self, BufReader, BufWriter};
use std::path::Path;

use anyhow::Result;

use crate::cli::Serve;
use crate::failure::usage;
use crate::wire::server::{self, Place};

// What is asked comes in pieces of a few hundred KiB.
const BUFFER: usize = 64 << 10;

pub fn run(args: &Serve) -> Result<()> {
    if let Some(dir) = &args.remove {
        remove(dir)?;
    }
    let input = BufReader::with_capacity(BUFFER, io::stdin());
    server::serve(Place::Machine, input, BufWriter::with_capacity(BUFFER, io::stdout()))
}

/// Removes this program and the directory that was made for it: it runs, so nobody needs its name.
fn remove(dir: &Path) -> Result<()> {
    let named = dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nixos-install-via."));
    if !dir.is_absolute() || !named {
        return Err(usage(format!("{} is no directory that was made for this program", dir.display())));
    }
    // What cannot be removed harms nobody; the near end tries it once more when all is over.
    if let Some(own) = std::env::current_exe().ok().filter(|own| own.parent() == Some(dir)) {
        let _ = fs::remove_file(own);
    }
    let _ = fs::remove_dir(dir);
    Ok(())
}
