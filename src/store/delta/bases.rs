//! Which older object a store path is best made from.
//!
//! Decides only: what databases know of paths goes in, pairs come out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use crate::store::PathInfo;
use crate::store::path::StorePath;

/// Returns a base for each wanted path that has one: of the candidates of the same package, the one
/// with the same contents, else the same name, else the most similar name, else the nearest size.
pub fn bases(wanted: &[PathInfo], candidates: &[PathInfo]) -> BTreeMap<StorePath, StorePath> {
    let mut families: HashMap<String, Vec<&PathInfo>> = HashMap::new();
    for info in candidates {
        families.entry(family(info.path.name())).or_default().push(info);
    }
    let base = |info: &PathInfo| {
        let family = families.get(&family(info.path.name()))?;
        let others = family.iter().filter(|other| other.path != info.path);
        others.min_by_key(|other| distance(info, other)).map(|other| other.path.clone())
    };
    wanted.iter().filter_map(|info| Some((info.path.clone(), base(info)?))).collect()
}

fn distance(info: &PathInfo, other: &PathInfo) -> impl Ord {
    (
        info.nar_hash != other.nar_hash,
        unlikeness(info.path.name(), other.path.name()),
        info.nar_size.0.abs_diff(other.nar_size.0),
        other.path.clone(),
    )
}

/// Orders names by how much they are like `name`: itself first, then by how much begins the same.
pub(super) fn unlikeness(name: &str, other: &str) -> (bool, Reverse<usize>) {
    let same = name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    (name != other, Reverse(same))
}

/// Returns a store path's name without its version: `gcc-lib` of `gcc-12.3.0-lib`.
pub fn family(name: &str) -> String {
    let words: Vec<&str> = name.split('-').filter(|word| !is_version(word)).collect();
    // A name that is all version, such as `2.38`, is its own family.
    if words.is_empty() { name.to_owned() } else { words.join("-") }
}

/// Returns the version in a store path's name, `12.3.0` of `gcc-12.3.0-lib`; of one without, nothing.
pub fn version(name: &str) -> String {
    let words: Vec<&str> = name.split('-').filter(|word| is_version(word)).collect();
    words.join("-")
}

fn is_version(word: &str) -> bool {
    let word = word.strip_prefix('v').unwrap_or(word);
    word.starts_with(|first: char| first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::delta::testing::info;

    #[test]
    fn a_base_is_of_the_same_package_and_as_near_as_can_be() {
        let table: &[(&str, &str, &[&str], Option<&str>)] = &[
            ("nothing there", "1-gcc-12.3.0", &[], None),
            ("only another package", "1-gcc-12.3.0", &["2-glibc-2.38", "2-gccgo-12.3.0"], None),
            ("another output", "1-gcc-12.3.0", &["2-gcc-12.3.0-lib"], None),
            ("not itself", "1-gcc-12.3.0", &["1-gcc-12.3.0"], None),
            (
                "same name",
                "1-gcc-12.3.0",
                &["2-gcc-12.3.1", "3-gcc-12.3.0", "4-gcc-12"],
                Some("3-gcc-12.3.0"),
            ),
            ("same output", "1-gcc-12.3.0-lib", &["2-gcc-12.3.0", "3-gcc-11-lib"], Some("3-gcc-11-lib")),
            ("nearest version", "1-gcc-12.3.0", &["2-gcc-11.9.0", "3-gcc-12.2.0"], Some("3-gcc-12.2.0")),
            ("nearest size", "1-unit", &["2-unit=900", "3-unit=90", "4-unit=50"], Some("3-unit=90")),
            ("the first of equals", "1-unit", &["3-unit", "2-unit"], Some("2-unit")),
            (
                "dates and dashes",
                "1-foo-unstable-2024-01-02",
                &["2-foo-unstable-2023-11-30"],
                Some("2-foo-unstable-2023-11-30"),
            ),
            ("a version with a v", "1-rules-v2.1", &["2-rules-v2.0"], Some("2-rules-v2.0")),
            (
                "letters in a version",
                "1-openssl-3.0.13-bin",
                &["2-openssl-3.0.9-bin"],
                Some("2-openssl-3.0.9-bin"),
            ),
            ("nothing but a version", "1-2.38", &["2-2.37"], None),
        ];
        for (what, wanted, candidates, expected) in table {
            let candidates: Vec<PathInfo> = candidates.iter().map(|name| info(name)).collect();
            let wanted = info(wanted);
            let found = bases(std::slice::from_ref(&wanted), &candidates);
            let expected = expected.map(|name| info(name).path);
            assert_eq!(found.get(&wanted.path), expected.as_ref(), "{what}");
            let reversed: Vec<PathInfo> = candidates.into_iter().rev().collect();
            assert_eq!(bases(&[wanted], &reversed), found, "{what}, reversed");
        }
    }

    #[test]
    fn equal_contents_make_the_best_base() {
        let (wanted, same, near) = (info("1-unit-1.0"), info("2-unit-9.0"), info("3-unit-1.0"));
        let near = PathInfo { nar_hash: crate::store::hash::NarHash([9; 32]), ..near };
        assert_eq!(bases(std::slice::from_ref(&wanted), &[near, same.clone()])[&wanted.path], same.path);
    }
}
