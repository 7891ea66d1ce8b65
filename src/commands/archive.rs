//! `install-to-dir --archive FILE`: the same root as one file, or on stdout.

use std::fs;
use std::io::IsTerminal;
use std::path::Path;

use anyhow::{Context, Result};

use super::print_plan;
use crate::cli::{Common, PlanForm};
use crate::failure::{refused, usage};
use crate::plan::{self, Archive, Summary, Wishes};
use crate::probe;
use crate::progress::{Event, Progress};
use crate::run::{self, Keys, Source};
use crate::store::closure;
use crate::sys::{interrupt, own_mounts};

pub fn run(name: &Path, wishes: &Wishes, common: &Common, progress: &dyn Progress) -> Result<()> {
    let archive = target(Archive::parse(name)?, &common.from)?;
    let closure = closure::read(&common.from, &wishes.system, progress)?;
    let bytes = closure.size();
    let summary = Summary { paths: closure.paths.len(), bytes, space: bytes };
    let free = match &archive {
        Archive::Stdout => None,
        Archive::File { path, .. } => Some(probe::free_space(path)?),
    };
    let plan = plan::install_to_archive(wishes, &archive, free, summary)?;
    match common.only_plan() {
        Some(PlanForm::Script) => {
            return Err(refused(
                "there is no script that writes an archive; take that of install-to-dir DIR, and tar to pack DIR",
            ));
        }
        Some(form) => return print_plan(&plan, &closure, form),
        None => (),
    }
    if archive == Archive::Stdout {
        takes_bytes(common)?;
    }
    own_mounts::make()?;
    interrupt::say(match &archive {
        Archive::Stdout => "what was written is no whole archive".to_owned(),
        Archive::File { path, .. } => format!("{} was not written", path.display()),
    });
    let source = Source { root: common.from.clone(), closure };
    run::perform(&plan, &source, &Keys::new(), progress)
        .with_context(|| format!("archiving to {archive}, which is not complete"))?;
    let text = format!("{} is in {archive}", wishes.system.name());
    progress.event(Event::Done { text });
    Ok(())
}

/// Refuses a place that is taken, or lies in what is archived. Returns it by its whole name.
fn target(archive: Archive, from: &Path) -> Result<Archive> {
    let Archive::File { path, packed } = archive else { return Ok(archive) };
    let name = path.file_name().ok_or_else(|| usage(format!("{} has no name", path.display())))?;
    let parent = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let parent = parent.canonicalize().with_context(|| format!("finding {}", parent.display()))?;
    let path = parent.join(name);
    if fs::symlink_metadata(&path).is_ok() {
        return Err(refused(run::exists(&path)));
    }
    let from = from.canonicalize().with_context(|| format!("finding the root {}", from.display()))?;
    if path.starts_with(from.join("nix")) {
        return Err(refused(format!(
            "{} lies in the store that is archived; choose another directory",
            path.display()
        )));
    }
    Ok(Archive::File { path, packed })
}

/// Refuses a stdout that somebody reads.
fn takes_bytes(common: &Common) -> Result<()> {
    if std::io::stdout().is_terminal() {
        return Err(refused(
            "stdout is a terminal, which takes no archive; send it to a program or a file, such as: … --archive - | tar …",
        ));
    }
    if common.progress.is_on_stdout() {
        return Err(usage("--progress json and --archive - both write to stdout; choose one of them"));
    }
    Ok(())
}
