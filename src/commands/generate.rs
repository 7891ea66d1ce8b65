//! `generate`: the entry scripts and the manifest of a system, while Nix builds it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cli::Generate;
use crate::failure::usage;
use crate::manifest;
use crate::sys::file::Staged;
use crate::templates::{self, Entry};

/// The commands that install the system elsewhere: each has a script in the system's `bin/`.
pub const ENTRIES: [&str; 5] =
    ["install-to-disk", "install-to-dir", "install-via-ssh", "deploy-to-dir", "deploy-via-ssh"];

// The kernel reads 256 bytes of a script's first line, `#!` and the end of the line included.
const INTERPRETER_LIMIT: usize = 253;

/// Writes all files under other names first, so that bad input or a full disk leaves none of them.
pub fn run(args: &Generate) -> Result<()> {
    let shell = program("--shell", &args.shell)?;
    let blank = |c: char| c.is_whitespace() || c.is_control();
    if shell.contains(blank) || shell.len() > INTERPRETER_LIMIT {
        return Err(usage(format!(
            "--shell {shell:?} cannot stand behind #!; name one of at most {INTERPRETER_LIMIT} bytes without spaces"
        )));
    }
    let binary = program("--binary", &args.binary)?;
    let toplevel = absolute("--toplevel", &args.toplevel)?;
    if !args.toplevel.is_dir() {
        return Err(usage(format!("--toplevel {toplevel:?} is no directory; make it before")));
    }
    let manifest = read_manifest(&args.manifest)?;

    let manifest_file = args.toplevel.join(manifest::PLACE);
    let bin = args.toplevel.join("bin");
    for dir in [manifest_file.parent().expect("it lies in a directory of its own"), &bin] {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let mut files = vec![Staged::new(&manifest_file, manifest.as_bytes(), 0o444)?];
    for command in ENTRIES {
        let script = templates::entry(&Entry { shell, binary, command, toplevel })?;
        files.push(Staged::new(&bin.join(command), script.as_bytes(), 0o555)?);
    }
    files.into_iter().try_for_each(Staged::publish)
}

fn read_manifest(file: &Path) -> Result<String> {
    let text =
        fs::read_to_string(file).map_err(|error| usage(format!("reading {}: {error}", file.display())))?;
    manifest::parse(&text).map_err(|error| usage(format!("{}: {error}", file.display())))?;
    Ok(text)
}

fn program<'a>(option: &str, path: &'a Path) -> Result<&'a str> {
    let text = absolute(option, path)?;
    if path.is_file() { Ok(text) } else { Err(usage(format!("{option} {text:?} is no file"))) }
}

fn absolute<'a>(option: &str, path: &'a Path) -> Result<&'a str> {
    match path.to_str() {
        Some(text) if path.is_absolute() => Ok(text),
        Some(text) => Err(usage(format!(
            "{option} {text:?} is not absolute, and the scripts are started from anywhere; name it from /"
        ))),
        None => Err(usage(format!("{option} {path:?} is not UTF-8; choose another name"))),
    }
}
