//! Performs a plan, step by step.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::plan::{Plan, RemoteStep, Step};
use crate::progress::{Event, Progress};
use crate::store::closure::Closure;
use crate::store::copy;
use crate::store::db::{self, Lock};
use crate::store::path::StorePath;
use crate::sys::file;
use crate::sys::secret::Secret;
use crate::system::claim::Claim;
use crate::system::{etc, extra_files, identity, profile};

mod archive;
mod deploy;
mod disk;
mod installation;
mod network;

pub use archive::exists;
pub use deploy::Held;
pub use installation::Installation;
pub use network::bring_up;

/// Where the system comes from: a root of this machine.
pub struct Source {
    pub root: PathBuf,
    pub closure: Closure,
}

/// What fills a root: a [`Source`] of this machine, or whoever is at the other end of a wire.
pub trait Supply {
    fn system(&self) -> &StorePath;

    /// Fills the store of `root` with the closure.
    fn copy(&mut self, root: &Path, progress: &dyn Progress) -> Result<()>;

    /// Makes the closure valid in `root`, which holds it.
    fn register(&mut self, root: &Path) -> Result<()>;

    /// Lays the person's own files, which are in `from` at the source, over `root`.
    fn extra_files(&mut self, from: &Path, root: &Path) -> Result<()>;

    /// Gives `root` the SSH host keys that it is to have, if it is given any.
    fn host_keys(&mut self, root: &Path) -> Result<()>;
}

impl Supply for &Source {
    fn system(&self) -> &StorePath {
        &self.closure.system
    }

    fn copy(&mut self, root: &Path, progress: &dyn Progress) -> Result<()> {
        copy::closure(&self.closure.paths, &self.root, root, progress).map(drop)
    }

    fn register(&mut self, root: &Path) -> Result<()> {
        db::register(root, &self.closure.paths, now())
    }

    fn extra_files(&mut self, from: &Path, root: &Path) -> Result<()> {
        extra_files::copy(from, root, etc::of(root, &self.closure.system)).map(drop)
    }

    fn host_keys(&mut self, _: &Path) -> Result<()> {
        bail!("the host keys of a machine come from the machine itself; this is for another machine")
    }
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
        begin(plan, number, progress);
        match step {
            Step::Archive(step) => archive::take(step, source, &mut made, progress)?,
            Step::Deploy(step) => deploy::take(step, source, &mut made, progress)?,
            step => take(step, &mut &*source, keys, &mut made, progress)?,
        }
    }
    Ok(())
}

fn begin(plan: &Plan, number: usize, progress: &dyn Progress) {
    let title = plan.steps[number].to_string();
    progress.event(Event::Step { number: number + 1, of: plan.steps.len(), title });
}

fn take(
    step: &Step,
    supply: &mut dyn Supply,
    keys: &Keys,
    made: &mut Made,
    progress: &dyn Progress,
) -> Result<()> {
    match step {
        Step::Claim { dir } => {
            fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
            made.claim = Some(Claim::start(dir, supply.system())?);
            made.root = Some(dir.clone());
        }
        Step::Disk(step) => disk::take(step, supply, keys, made, progress)?,
        Step::Remote(RemoteStep::HostKeys { .. }) => supply.host_keys(made.root())?,
        Step::Archive(_) | Step::Deploy(_) | Step::Remote(_) => {
            bail!("{step}: that is not for this machine")
        }
        Step::Prepare => identity::prepare(made.root())?,
        Step::Copy { .. } => supply.copy(made.root(), progress)?,
        Step::Register { .. } => supply.register(made.root())?,
        Step::ExtraFiles { from } => supply.extra_files(from, made.root())?,
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

/// Returns the seconds since 1970, as they stand in a Nix database.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
