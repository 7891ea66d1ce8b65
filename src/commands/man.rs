//! `man DIR`: the manual pages, one for the program and one for each command that --help shows.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap_mangen::Man as Page;

use super::generate::ENTRIES;
use crate::cli::{self, Man};
use crate::sys::file;

// System administration: nearly every command is for root alone.
const SECTION: &str = "8";

/// Writes the pages; `man install-to-disk` finds the one of the command that a system has by that name.
pub fn run(args: &Man) -> Result<()> {
    fs::create_dir_all(&args.dir).with_context(|| format!("making {}", args.dir.display()))?;
    let program = cli::description();
    let source = format!("{} {}", program.get_name(), program.get_version().unwrap_or_default());
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        let page = Page::new(command.clone()).source(&source);
        let name = write(page, &args.dir)?;
        if ENTRIES.contains(&command.get_name()) {
            let link = args.dir.join(format!("{}.{SECTION}", command.get_name()));
            file::publish(&link, format!(".so man{SECTION}/{name}\n").as_bytes())?;
        }
    }
    write(Page::new(program), &args.dir).map(drop)
}

/// Returns the page's file name.
fn write(page: Page, dir: &Path) -> Result<String> {
    // A page has no date, so that it is the same at each build; an empty one would not count as a word.
    let page = page.section(SECTION).date(" ").manual("System Administration");
    let name = page.get_filename();
    let mut text = Vec::new();
    page.render(&mut text).with_context(|| format!("rendering {name}"))?;
    file::publish(&dir.join(&name), &text)?;
    Ok(name)
}
