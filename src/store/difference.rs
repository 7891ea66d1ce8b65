//! What differs between two closures, as people speak of it: packages and their versions.
//!
//! Decides only: two closures in, changes out.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::PathInfo;
use super::delta::{family, version};

/// A package that is not on both sides, or not with the same versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    pub name: String,
    /// Its versions there, `""` for one without; none if it is not there at all.
    pub before: BTreeSet<String>,
    pub after: BTreeSet<String>,
}

/// Returns the changes by name. A rebuild that keeps its version is none.
pub fn changes(before: &[PathInfo], after: &[PathInfo]) -> Vec<Change> {
    let (mut before, mut after) = (packages(before), packages(after));
    let names: BTreeSet<String> = before.keys().chain(after.keys()).cloned().collect();
    let mut versions = |name: String| Change {
        before: before.remove(&name).unwrap_or_default(),
        after: after.remove(&name).unwrap_or_default(),
        name,
    };
    names.into_iter().map(&mut versions).filter(|change| change.before != change.after).collect()
}

fn packages(closure: &[PathInfo]) -> BTreeMap<String, BTreeSet<String>> {
    let mut packages: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for info in closure {
        let name = info.path.name();
        packages.entry(family(name)).or_default().insert(version(name));
    }
    packages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::delta::testing::info;

    #[test]
    fn a_change_is_of_a_package_s_versions() {
        let closure = |paths: &[&str]| paths.iter().map(|path| info(path)).collect::<Vec<_>>();
        let before = closure(&[
            "1-bash-5.2",
            "1-gcc-12.3.0-lib",
            "1-unit-a.service",
            "1-etc",
            "1-glibc-2.37",
            "2-glibc-2.38",
        ]);
        let after = closure(&["2-bash-5.2", "2-gcc-13.1.0-lib", "2-unit-b.service", "2-etc", "2-glibc-2.38"]);
        let told: Vec<String> = changes(&before, &after)
            .iter()
            .map(|change| format!("{} {:?} {:?}", change.name, change.before, change.after))
            .collect();
        assert_eq!(
            told,
            [
                r#"gcc-lib {"12.3.0"} {"13.1.0"}"#,
                r#"glibc {"2.37", "2.38"} {"2.38"}"#,
                r#"unit-a.service {""} {}"#,
                r#"unit-b.service {} {""}"#,
            ]
        );
        assert_eq!(changes(&before, &before), []);
    }
}
