//! `install-to-dir DIR`: a root that holds the system, in a directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{archive, confirm, print_plan, require_root, system};
use crate::cli::{InstallToDir, PlanForm};
use crate::failure::{refused, usage};
use crate::plan::{self, Summary, Wishes};
use crate::probe;
use crate::progress::Event;
use crate::run::{self, Keys, Source};
use crate::store::closure;
use crate::store::copy;
use crate::sys::{interrupt, own_mounts};
use crate::system::claim::{self, Directory};
use crate::system::extra_files;

pub fn run(args: &InstallToDir) -> Result<()> {
    require_root()?;
    let common = &args.common;
    let progress = common.progress.printer();
    let wishes = Wishes {
        system: system(common)?,
        from: common.from.clone(),
        extra_files: args.extra.extra_files.clone(),
    };
    args.extra.extra_files.as_deref().map_or(Ok(()), extra_files::check)?;
    if let Some(archive) = &args.archive {
        return archive::run(archive, &wishes, common, &*progress);
    }
    let dir = target(args.dir.as_deref().context("finding the directory")?, &common.from)?;
    let state = claim::look(&dir)?;
    let closure = closure::read(&common.from, &wishes.system, &*progress)?;
    let summary = Summary {
        paths: closure.paths.len(),
        bytes: closure.size(),
        space: copy::space_needed(&closure.paths, &common.from)?,
    };
    let plan = plan::install_to_dir(&wishes, &dir, &state, probe::free_space(&dir)?, summary)?;
    if let Some(form) = common.only_plan() {
        if form == PlanForm::Script {
            takes_script(&dir, &state)?;
        }
        return print_plan(&plan, &closure, form);
    }
    if !args.yes.yes && matches!(&state, Directory::Complete { .. }) {
        confirm(&plan, &format!("Type yes to update {}:", dir.display()), &["yes"])?;
    }
    own_mounts::make()?;
    let shown = dir.display();
    interrupt::say(format!("{shown} is unfinished: run the same command again to complete it"));
    let source = Source { root: common.from.clone(), closure };
    run::perform(&plan, &source, &Keys::new(), &*progress)
        .with_context(|| format!("installing into {shown}, which is left unfinished"))?;
    let text = format!("{} is in {shown}", wishes.system.name());
    progress.event(Event::Done { text });
    Ok(())
}

/// Refuses a directory that a script would have to look at file by file, to keep what is whole.
fn takes_script(dir: &Path, state: &Directory) -> Result<()> {
    if matches!(state, Directory::Absent | Directory::Empty) {
        return Ok(());
    }
    Err(refused(format!(
        "a script fills a new or empty directory, and {} holds an installation; let this command itself update it",
        dir.display()
    )))
}

/// Returns the directory by its real name, which must not be part of what is copied.
pub(super) fn target(dir: &Path, from: &Path) -> Result<PathBuf> {
    let whole = std::path::absolute(dir).with_context(|| format!("finding {}", dir.display()))?;
    let (mut real, mut rest) = (whole.as_path(), Vec::new());
    let real = loop {
        match real.canonicalize() {
            Ok(found) => break found,
            Err(_) => {
                rest.push(
                    real.file_name().ok_or_else(|| usage(format!("{} is no directory", dir.display())))?,
                );
                real = real.parent().expect("what has a name has a parent");
            }
        }
    };
    let real: PathBuf = rest.iter().rev().fold(real, |path, name| path.join(name));
    if fs::metadata(&real).is_ok_and(|meta| !meta.is_dir()) {
        return Err(usage(format!(
            "{} is not a directory; for an image file there is install-to-disk",
            dir.display()
        )));
    }
    let from = from.canonicalize().with_context(|| format!("finding the root {}", from.display()))?;
    if real == from {
        return Err(refused(format!(
            "{} is the root that is copied; choose another directory",
            dir.display()
        )));
    }
    if real.starts_with(from.join("nix")) {
        return Err(refused(format!(
            "{} lies in the store that is copied; choose another directory",
            dir.display()
        )));
    }
    Ok(real)
}
