//! Performs a plan, step by step.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::plan::{Plan, Step};
use crate::progress::{Event, Progress};
use crate::store::closure::Closure;
use crate::store::copy;
use crate::store::db::{self, Lock};
use crate::sys::file;
use crate::sys::secret::Secret;
use crate::system::claim::Claim;
use crate::system::{extra_files, identity, profile};

mod archive;
mod deploy;
mod disk;

pub use archive::exists;
pub use deploy::Held;

/// Where the system comes from.
pub struct Source {
    pub root: PathBuf,
    pub closure: Closure,
}

/// What the steps so far have made, for those that follow. Dropping it releases everything.
#[derive(Default)]
struct Made {
    /// The root that is being filled.
    root: Option<PathBuf>,
    claim: Option<Claim>,
    lock: Option<Lock>,
    archive: archive::Begun,
    disk: disk::Made,
}

impl Made {
    fn root(&self) -> &Path {
        self.root.as_deref().expect("a plan claims a directory or mounts a disk before it fills a root")
    }
}

/// The passphrases of encrypted partitions, by the names that the system opens them as.
pub type Keys = BTreeMap<String, Secret>;

/// Takes each step in its turn and stops at the first that fails.
pub fn perform(plan: &Plan, source: &Source, keys: &Keys, progress: &dyn Progress) -> Result<()> {
    perform_in(Made::default(), plan, source, keys, progress)
}

/// Takes the steps of a deployment to a directory that is held.
pub fn deploy(plan: &Plan, source: &Source, held: Held, progress: &dyn Progress) -> Result<()> {
    perform_in(held.into(), plan, source, &Keys::new(), progress)
}

fn perform_in(
    mut made: Made,
    plan: &Plan,
    source: &Source,
    keys: &Keys,
    progress: &dyn Progress,
) -> Result<()> {
    for (number, step) in plan.steps.iter().enumerate() {
        progress.event(Event::Step { number: number + 1, of: plan.steps.len(), title: step.to_string() });
        take(step, source, keys, &mut made, progress)?;
    }
    Ok(())
}

fn take(step: &Step, source: &Source, keys: &Keys, made: &mut Made, progress: &dyn Progress) -> Result<()> {
    match step {
        Step::Claim { dir } => {
            fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
            made.claim = Some(Claim::start(dir, &source.closure.system)?);
            made.root = Some(dir.clone());
        }
        Step::Disk(step) => disk::take(step, source, keys, made, progress)?,
        Step::Archive(step) => archive::take(step, source, made, progress)?,
        Step::Deploy(step) => deploy::take(step, source, made, progress)?,
        Step::Remote(step) => bail!("{step}: that is for another machine"),
        Step::Prepare => identity::prepare(made.root())?,
        Step::Copy { .. } => {
            copy::closure(&source.closure.paths, &source.root, made.root(), progress)?;
        }
        Step::Register { .. } => db::register(made.root(), &source.closure.paths, now())?,
        Step::ExtraFiles { from } => {
            extra_files::copy(from, made.root())?;
        }
        Step::Profile { system } => {
            profile::set(made.root(), system)?;
        }
        Step::Finish { .. } => {
            file::sync_filesystem(made.root())?;
            let claim = made.claim.take().expect("a plan that finishes a directory claims it first");
            claim.finish()?;
        }
    }
    Ok(())
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
