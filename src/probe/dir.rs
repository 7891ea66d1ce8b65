//! Looks at a directory that holds a system: what it lacks of another one, and what it would not need then.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::facts::{DirFacts, SystemFacts};
use crate::size::Bytes;
use crate::store::closure::Closure;
use crate::store::db::{Database, Lock};
use crate::store::path::{STORE_DIR, StorePath};
use crate::store::{PathInfo, copy, gc};
use crate::system::{enter, init, profile};

/// Tells whether `dir` is this machine's root, or has its store, by whatever name.
pub fn is_live_root(dir: &Path) -> bool {
    let inode = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let store = inode(Path::new(STORE_DIR));
    inode(dir) == inode(Path::new("/")) || (store.is_some() && inode(&dir.join(&STORE_DIR[1..])) == store)
}

/// Returns the room that is left for files below `dir`, or where it would be.
pub fn free_space(dir: &Path) -> Result<Bytes> {
    let present = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = nix::sys::statvfs::statvfs(present)
        .with_context(|| format!("asking for the free space of {}", present.display()))?;
    Ok(Bytes(stat.blocks_available() as u64 * stat.fragment_size() as u64))
}

/// Looks at the root that is locked, with an eye to deploying `closure` of the root `from` and to
/// keeping the newest `keep` generations. Returns what is missing, too, references first.
pub fn dir(
    lock: &Lock,
    from: &Path,
    closure: &Closure,
    keep: Option<usize>,
) -> Result<(DirFacts, Vec<PathInfo>)> {
    let root = lock.root();
    let Some(database) = Database::open_locked(lock)? else {
        bail!("{} has no Nix database; run install-to-dir again to complete it", root.display());
    };
    let Some(current) = profile::current(root) else {
        bail!("{} has no system profile; run install-to-dir again to complete it", root.display());
    };
    if !current.in_root(root).exists() {
        bail!("the system of {}, {current}, is not in its store; run install-to-dir again", root.display());
    }
    let valid: BTreeSet<StorePath> = database.all()?.into_iter().collect();
    let there = |path: &StorePath| fs::symlink_metadata(path.in_root(root)).is_ok();
    let missing: Vec<PathInfo> = closure
        .paths
        .iter()
        .filter(|info| !valid.contains(&info.path) || !there(&info.path))
        .cloned()
        .collect();
    let absent: Vec<PathInfo> = missing.iter().filter(|info| !there(&info.path)).cloned().collect();
    let deploys = current != closure.system;
    let generation = match profile::current_number(root) {
        Some(number) if !deploys => number,
        _ => profile::next(root, &closure.system)?,
    };
    let part = stale_init(root, &closure.system)?
        .filter(|part| fs::symlink_metadata(closure.system.in_root(from).join(part)).is_ok());
    let mut facts = DirFacts {
        wanted: system(from, &closure.system),
        current: system(root, &current),
        missing: missing.len(),
        missing_bytes: missing.iter().map(|info| info.nar_size).sum(),
        missing_space: copy::space_needed(&absent, from)?,
        free: free_space(root)?,
        generation,
        old: Vec::new(),
        garbage: 0,
        garbage_bytes: Bytes(0),
        init: part,
    };
    if let Some(keep) = keep {
        clean(lock, &database, closure, keep, &mut facts)?;
    }
    Ok((facts, missing))
}

/// Returns what `sbin/init` leads to, if it is part of a generation that is not the wanted one: of the
/// current one, or of an older one where a run was stopped between the profile and this link.
fn stale_init(root: &Path, wanted: &StorePath) -> Result<Option<String>> {
    let Some((led_to, part)) = init::led_to(root).filter(|(led_to, _)| led_to != wanted) else {
        return Ok(None);
    };
    Ok(profile::systems(root)?.contains(&led_to).then_some(part))
}

fn system(root: &Path, system: &StorePath) -> SystemFacts {
    SystemFacts {
        system: system.clone(),
        hostname: enter::hostname(root, system),
        platform: enter::platform(root, system),
    }
}

/// Finds out what is not needed once the wanted system is there and old generations are not.
fn clean(
    lock: &Lock,
    database: &Database,
    closure: &Closure,
    keep: usize,
    facts: &mut DirFacts,
) -> Result<()> {
    let root = lock.root();
    let mut numbers = profile::numbers(root)?;
    if !numbers.contains(&facts.generation) {
        numbers.push(facts.generation);
    }
    facts.old = profile::surplus(&numbers, facts.generation, keep);
    // What these lead to now is not what they will lead to.
    let mut without: Vec<PathBuf> = facts.old.iter().map(|&number| profile::link(root, number)).collect();
    without.push(profile::name(root));
    if facts.init.is_some() {
        without.push(root.join("sbin/init"));
    }
    let mut roots = gc::roots(root, &without)?;
    roots.insert(closure.system.clone());
    let garbage = gc::garbage(&with(database.infos()?, closure), &gc::present(root)?, &roots);
    facts.garbage = garbage.count();
    facts.garbage_bytes = garbage.bytes;
    Ok(())
}

fn with(mut valid: Vec<PathInfo>, closure: &Closure) -> Vec<PathInfo> {
    let known: BTreeSet<StorePath> = valid.iter().map(|info| info.path.clone()).collect();
    valid.extend(closure.paths.iter().filter(|info| !known.contains(&info.path)).cloned());
    valid
}
