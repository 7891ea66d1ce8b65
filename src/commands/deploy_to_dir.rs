//! `deploy-to-dir DIR`: a directory made by `install-to-dir` gets the system as its next generation.

use std::path::Path;

use anyhow::{Context, Result};

use super::{confirm, install_to_dir, print_plan, require_root, system};
use crate::cli::{DeployToDir, PlanForm};
use crate::failure::refused;
use crate::plan::{self, DeployWishes, Plan, Summary, Wishes};
use crate::probe;
use crate::progress::{Event, Progress};
use crate::run::{self, Held, Source};
use crate::store::closure::{self, Closure};
use crate::store::db::Lock;
use crate::sys::{interrupt, own_mounts};
use crate::system::claim::{self, Claim};

pub fn run(args: &DeployToDir) -> Result<()> {
    require_root()?;
    let common = &args.common;
    let progress = common.progress.printer();
    let wishes = Wishes { system: system(common)?, from: common.from.clone(), extra_files: None };
    let dir = install_to_dir::target(&args.dir, &common.from)?;
    if probe::is_live_root(&dir) {
        return Err(refused(format!(
            "{} is the root of this running machine, which its own switch-to-configuration updates; \
             choose another directory",
            args.dir.display()
        )));
    }
    plan::takes_deployments(&dir, &claim::look(&dir)?)?;
    if common.only_plan() == Some(PlanForm::Script) {
        return Err(refused(
            "there is no script for what depends on a database and its locks; read the plan with --plan text",
        ));
    }
    let closure = closure::read(&common.from, &wishes.system, &*progress)?;
    // Before the look: what is valid then stays so.
    let claim = Claim::hold(&dir, &wishes.system)?;
    let held = Held { dir: dir.clone(), claim, lock: Lock::take(&dir)? };
    // Another run may have ended in between.
    plan::takes_deployments(&dir, &claim::look(&dir)?)?;
    let (plan, source) = look(args, &wishes, closure, &held)?;
    if let Some(form) = common.only_plan() {
        return print_plan(&plan, &source.closure, form);
    }
    act(args, &dir, &plan, &source, held, &*progress)
}

/// Returns the plan, and the paths that it is about.
fn look(args: &DeployToDir, wishes: &Wishes, closure: Closure, held: &Held) -> Result<(Plan, Source)> {
    let keep = args.keep.map(std::num::NonZeroUsize::get);
    let (facts, missing) = probe::dir(&held.lock, &wishes.from, &closure, keep)?;
    let summary = Summary { paths: closure.paths.len(), bytes: closure.size(), space: facts.missing_space };
    let wanted = DeployWishes { force: args.force };
    let plan = plan::deploy_to_dir(wishes, wanted, &held.dir, &facts, summary)?;
    let closure = Closure { paths: missing, ..closure };
    Ok((plan, Source { root: wishes.from.clone(), closure }))
}

fn act(
    args: &DeployToDir,
    dir: &Path,
    plan: &Plan,
    source: &Source,
    held: Held,
    progress: &dyn Progress,
) -> Result<()> {
    let (name, shown) = (plan.system.name(), dir.display());
    if plan.steps.is_empty() {
        let text = format!("{shown} has {name} as its system already; there is nothing to do");
        progress.event(Event::Done { text });
        return Ok(());
    }
    if !args.yes.yes {
        confirm(plan, &format!("Type yes to update {shown}:"), &["yes"])?;
    }
    own_mounts::make()?;
    interrupt::say(format!("{shown} keeps a whole system: run the same command again to go on"));
    run::deploy(plan, source, held, progress)
        .with_context(|| format!("deploying to {shown}; the same command again goes on where it stopped"))?;
    progress.event(Event::Done { text: format!("{shown} has {name} as its system") });
    Ok(())
}
