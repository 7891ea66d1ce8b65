//! The names by which an object knows others, changed to those its successor knows them by.
//!
//! A rebuild changes the hash parts of store paths wherever they are mentioned, and often nothing
//! else. Both ends know what the old object and the new one refer to, so both can rewrite the old
//! archive alike; what is then still different is all that has to be sent.

use crate::store::PathInfo;
use crate::store::candidates::each_candidate;
use crate::store::path::{HASH_LENGTH, StorePath};

use super::bases;

/// No replacement reaches further than a base name: hash, dash and 211 characters.
pub(super) const MARGIN: usize = HASH_LENGTH + 1 + 211;

/// Old hash parts and what takes their place; sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewriting {
    pairs: Vec<Pair>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    old: [u8; HASH_LENGTH],
    new: [u8; HASH_LENGTH],
    // Names of equal length and different version go with the hash where they stand behind it.
    names: Option<(Vec<u8>, Vec<u8>)>,
}

impl Rewriting {
    /// Pairs what `base` refers to with what `new` refers to instead: the paths themselves, then
    /// references of the same package. Depends on paths and references only.
    pub fn between(base: &PathInfo, new: &PathInfo) -> Rewriting {
        let foreign = |of: &PathInfo, than: &PathInfo| -> Vec<StorePath> {
            let own = |path: &&StorePath| **path != of.path && !than.references.contains(path);
            let mut paths: Vec<StorePath> = of.references.iter().filter(own).cloned().collect();
            paths.sort();
            paths
        };
        let old = foreign(base, new);
        // With the packages they are of, found once: a system may refer to thousands.
        let mut free: Vec<(String, StorePath)> =
            foreign(new, base).into_iter().map(|path| (bases::family(path.name()), path)).collect();
        let mut pairs = vec![(base.path.clone(), new.path.clone())];
        // Equal names first, that no similar one takes their partner.
        let (same, similar): (Vec<_>, Vec<_>) =
            old.into_iter().partition(|old| free.iter().any(|(_, new)| new.name() == old.name()));
        for old in same.into_iter().chain(similar) {
            let family = bases::family(old.name());
            let partner = (0..free.len())
                .filter(|&at| free[at].0 == family)
                .min_by_key(|&at| bases::unlikeness(old.name(), free[at].1.name()));
            if let Some(at) = partner {
                pairs.push((old, free.remove(at).1));
            }
        }
        let mut pairs: Vec<Pair> =
            pairs.iter().filter(|(old, new)| old != new).map(|(old, new)| Pair::new(old, new)).collect();
        pairs.sort();
        Rewriting { pairs }
    }

    /// Rewrites `bytes` in place.
    ///
    /// What becomes of a byte depends on [`MARGIN`] bytes to each side of it and no more, so an
    /// archive can be rewritten in any pieces that overlap so far.
    pub(super) fn apply(&self, bytes: &mut [u8]) {
        if self.pairs.is_empty() {
            return;
        }
        let mut found = Vec::new();
        each_candidate(bytes, |at| {
            let window = &bytes[at..at + HASH_LENGTH];
            if let Ok(index) = self.pairs.binary_search_by(|pair| pair.old.as_slice().cmp(window)) {
                let named = self.pairs[index].names.as_ref();
                let named = named.is_some_and(|(old, _)| bytes[at + HASH_LENGTH..].starts_with(old));
                found.push((at, index, named));
            }
        });
        for (at, index, named) in found {
            let pair = &self.pairs[index];
            bytes[at..at + HASH_LENGTH].copy_from_slice(&pair.new);
            if let Some((_, new)) = pair.names.as_ref().filter(|_| named) {
                bytes[at + HASH_LENGTH..][..new.len()].copy_from_slice(new);
            }
        }
    }
}

impl Pair {
    fn new(old: &StorePath, new: &StorePath) -> Pair {
        let part =
            |path: &StorePath| path.hash_part().as_bytes().try_into().expect("a hash part has its length");
        let name = |path: &StorePath| path.base_name().as_bytes()[HASH_LENGTH..].to_vec();
        let names = (name(old), name(new));
        let useful = names.0.len() == names.1.len() && names.0 != names.1;
        Pair { old: part(old), new: part(new), names: useful.then_some(names) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::delta::testing::{info, path};

    fn between(base: (&str, &[&str]), new: (&str, &[&str])) -> Rewriting {
        let make = |(own, references): (&str, &[&str])| PathInfo {
            references: references.iter().map(|name| path(name)).collect(),
            ..info(own)
        };
        Rewriting::between(&make(base), &make(new))
    }

    fn rewritten(rewriting: &Rewriting, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        rewriting.apply(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn references_are_paired_by_package() {
        let base =
            ("0-own-1", &["0-own-1", "1-glibc-2.38-27", "2-gcc-12-lib", "3-same", "4-gone", "5-hook-1.9"]);
        let new =
            ("a-own-2", &["a-own-2", "b-glibc-2.38-44", "c-gcc-12-lib", "3-same", "d-come", "f-hook-1.10"]);
        let rewriting = between((base.0, base.1), (new.0, new.1));
        for (old, new) in [
            ("0-own-1", "a-own-2"),
            ("1-glibc-2.38-27", "b-glibc-2.38-44"),
            ("2-gcc-12-lib", "c-gcc-12-lib"),
            ("3-same", "3-same"),
            ("4-gone", "4-gone"),
        ] {
            let text = |name: &str| format!("x{}/y", path(name));
            assert_eq!(rewritten(&rewriting, &text(old)), text(new));
        }
        let longer = rewritten(&rewriting, path("5-hook-1.9").base_name());
        assert_eq!(longer, format!("{}-hook-1.9", path("f-hook-1.10").hash_part()));
        // A hash without its name, as links between outputs have it.
        let bare = path("1-glibc-2.38-27").hash_part().to_owned() + "-other";
        assert_eq!(rewritten(&rewriting, &bare), path("b-glibc-2.38-44").hash_part().to_owned() + "-other");
    }

    #[test]
    fn equal_names_find_each_other_among_similar_ones() {
        let rewriting = between(("0-x", &["1-a-1.0", "2-a-2.0"]), ("f-x", &["b-a-2.0", "c-a-3.0"]));
        for (old, new) in [("2-a-2.0", "b-a-2.0"), ("1-a-1.0", "c-a-3.0")] {
            assert_eq!(rewritten(&rewriting, path(old).base_name()), path(new).base_name());
        }
    }

    #[test]
    fn the_pieces_an_archive_is_rewritten_in_do_not_matter() {
        let rewriting = between(("0-x-1", &["1-glibc-2.38-27"]), ("f-x-2", &["b-glibc-2.38-44"]));
        let (own, glibc) = (path("0-x-1"), path("1-glibc-2.38-27"));
        // Overlapping hashes, names cut short, long runs of digits.
        let text = format!(
            "{own}{glibc}{}{}-glibc-2.38{glibc}11111111111{}",
            &glibc.hash_part()[5..],
            own.hash_part(),
            "0123456789abcdfghijklmnpqrsvwxyz".repeat(20)
        );
        let whole = rewritten(&rewriting, &text);
        assert_ne!(whole, text);
        let bytes = text.as_bytes();
        for length in [1, 31, 50] {
            for at in 0..bytes.len() - length {
                let (from, to) = (at.saturating_sub(MARGIN), (at + length + MARGIN).min(bytes.len()));
                let mut piece = bytes[from..to].to_vec();
                rewriting.apply(&mut piece);
                assert_eq!(
                    &piece[at - from..][..length],
                    &whole.as_bytes()[at..at + length],
                    "{length} at {at}"
                );
            }
        }
    }
}
