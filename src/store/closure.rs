//! Closures: a system and all it refers to, references first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Result, bail};

use super::PathInfo;
use super::db::Database;
use super::path::StorePath;
use super::scan;
use crate::progress::Progress;
use crate::size::Bytes;

/// A system and all it refers to.
#[derive(Clone, Debug, PartialEq)]
pub struct Closure {
    pub system: StorePath,
    /// Each after all it refers to.
    pub paths: Vec<PathInfo>,
}

impl Closure {
    /// Returns the sum of the NAR sizes.
    pub fn size(&self) -> Bytes {
        self.paths.iter().map(|info| info.nar_size).sum()
    }

    /// Returns those of `objects` that are part of it, and all they refer to, each after that.
    pub fn part(&self, objects: &[StorePath]) -> Vec<PathInfo> {
        let mut wanted: BTreeSet<&StorePath> = objects.iter().collect();
        // What refers to something stands behind it, so one way back finds all.
        for info in self.paths.iter().rev() {
            if wanted.contains(&info.path) {
                wanted.extend(&info.references);
            }
        }
        self.paths.iter().filter(|info| wanted.contains(&info.path)).cloned().collect()
    }
}

/// Reads the closure of `system` from a root: from its database, or, where there is none, by looking
/// for references in the files themselves.
pub fn read(root: &Path, system: &StorePath, progress: &dyn Progress) -> Result<Closure> {
    let infos = match Database::open(root)? {
        Some(database) => from_database(root, &database, system)?,
        None => scan::closure(root, system, progress)?,
    };
    Ok(Closure { system: system.clone(), paths: sort(infos) })
}

fn from_database(
    root: &Path,
    database: &Database,
    system: &StorePath,
) -> Result<BTreeMap<StorePath, PathInfo>> {
    let mut infos = BTreeMap::new();
    // Each path once, whose text all that refer to it share.
    let mut known = BTreeSet::from([system.clone()]);
    let mut waiting = vec![system.clone()];
    while let Some(path) = waiting.pop() {
        let Some(mut info) = database.info(&path)? else {
            bail!(
                "the Nix database of {} does not know {path}; \
                 is it in another root (--from), or has it been collected as garbage?",
                root.display()
            );
        };
        info.path = path.clone();
        for reference in &mut info.references {
            match known.get(reference) {
                Some(shared) => *reference = shared.clone(),
                None => {
                    known.insert(reference.clone());
                    waiting.push(reference.clone());
                }
            }
        }
        infos.insert(path, info);
    }
    Ok(infos)
}

/// Puts each path after all it refers to; among equals the order is by name.
fn sort(mut infos: BTreeMap<StorePath, PathInfo>) -> Vec<PathInfo> {
    let mut sorted = Vec::with_capacity(infos.len());
    let mut seen = BTreeSet::new();
    for start in infos.keys().cloned().collect::<Vec<_>>() {
        // A path stands on the stack once to be opened, and once more to be closed after its references.
        let mut stack = vec![(start, false)];
        while let Some((path, open)) = stack.pop() {
            if open {
                sorted.extend(infos.remove(&path));
            } else if seen.insert(path.clone()) {
                let references = infos.get(&path).map(|info| info.references.clone()).unwrap_or_default();
                stack.push((path, true));
                stack.extend(references.into_iter().rev().map(|reference| (reference, false)));
            }
        }
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::hash::NarHash;

    fn path(name: &str) -> StorePath {
        StorePath::from_base_name(&format!("{}-{name}", "0".repeat(32))).unwrap()
    }

    fn infos(edges: &[(&str, &str)]) -> BTreeMap<StorePath, PathInfo> {
        let info = |(name, references): &(&str, &str)| {
            let info = PathInfo {
                path: path(name),
                nar_hash: NarHash([0; 32]),
                nar_size: Bytes(1),
                references: references.split_whitespace().map(path).collect(),
                deriver: None,
                registration_time: 0,
                ultimate: false,
                signatures: None,
                content_address: None,
                outputs: vec![],
            };
            (info.path.clone(), info)
        };
        edges.iter().map(info).collect()
    }

    #[test]
    fn references_come_first_and_a_path_may_refer_to_itself() {
        for (edges, order) in [
            (&[("a", "b c"), ("b", "c"), ("c", "")][..], "c b a"),
            (&[("a", "a"), ("b", "a b")], "a b"),
            (&[("z", ""), ("m", "z"), ("a", "m z a")], "z m a"),
            (&[("a", "d"), ("b", "d"), ("c", "a b"), ("d", "")], "d a b c"),
        ] {
            let sorted = sort(infos(edges));
            let names: Vec<&str> = sorted.iter().map(|info| info.path.name()).collect();
            assert_eq!(names.join(" "), order);
        }
    }

    #[test]
    fn a_part_is_closed_and_in_order() {
        let edges = [("a", "b c"), ("b", "c"), ("c", ""), ("d", "d c"), ("e", "a d")];
        let closure = Closure { system: path("e"), paths: sort(infos(&edges)) };
        for (objects, part) in [("b", "c b"), ("d c", "c d"), ("e", "c b a d e"), ("", ""), ("x", "")] {
            let objects: Vec<StorePath> = objects.split_whitespace().map(path).collect();
            let names: Vec<String> =
                closure.part(&objects).iter().map(|info| info.path.name().to_owned()).collect();
            assert_eq!(names.join(" "), part);
        }
    }

    #[test]
    fn a_long_chain_needs_no_deep_stack() {
        let names: Vec<String> = (0..20_000).map(|n| format!("p{n:05}")).collect();
        let edges: Vec<(&str, &str)> =
            names.windows(2).map(|two| (two[0].as_str(), two[1].as_str())).collect();
        let mut all = edges.clone();
        all.push((names.last().unwrap(), ""));
        assert_eq!(sort(infos(&all)).len(), 20_000);
    }
}
