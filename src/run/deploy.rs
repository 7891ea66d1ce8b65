//! The steps in a root that holds a system already, and that nobody else changes meanwhile.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::{Made, Source, now};
use crate::plan::DeployStep;
use crate::progress::Progress;
use crate::store::db::{self, Database, Lock};
use crate::store::{copy, gc};
use crate::system::claim::Claim;
use crate::system::{init, profile};

/// A directory that neither Nix nor another installation touches as long as this value lives.
pub struct Held {
    pub dir: PathBuf,
    pub claim: Claim,
    pub lock: Lock,
}

impl From<Held> for Made {
    fn from(held: Held) -> Made {
        Made { root: Some(held.dir), claim: Some(held.claim), lock: Some(held.lock), ..Made::default() }
    }
}

pub fn take(step: &DeployStep, source: &Source, made: &mut Made, progress: &dyn Progress) -> Result<()> {
    let lock = made.lock.as_ref().context("deploying to a root that is not locked")?;
    let root = made.root();
    match step {
        DeployStep::CopyMissing { .. } => {
            copy::closure(&source.closure.paths, &source.root, root, progress)?;
        }
        DeployStep::RegisterMissing { .. } => db::add(lock, &source.closure.paths, now())?,
        DeployStep::Generation { system, .. } => {
            profile::set(root, system)?;
        }
        DeployStep::Init { system, part } => init::lead(root, system, part)?,
        DeployStep::Clean { generations, .. } => {
            profile::remove(root, generations)?;
            let Some(database) = Database::open_locked(lock)? else {
                bail!("{} has no Nix database any more", root.display());
            };
            let valid = database.infos()?;
            drop(database);
            gc::remove(lock, &gc::garbage(&valid, &gc::present(root)?, &gc::roots(root, &[])?))?;
        }
    }
    Ok(())
}
