//! What a near end says that it will send, judged before anything of it is taken.
//!
//! Only what is said; whether the bytes are those of the hash shows when they are there.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use crate::store::PathInfo;
use crate::store::path::StorePath;
use crate::wire::frame::WireError;

// What Nix's database can hold. Whether there is room for it, the near end has judged by our facts: how
// much room a NAR takes depends on holes and on the file system.
const SIZE_LIMIT: u64 = i64::MAX as u64;
// A path has a handful of signatures at the most.
const TEXT_LIMIT: usize = 64 << 10;

/// Returns what `paths` refer to beside each other: that must be valid already.
pub fn check(paths: &[PathInfo]) -> Result<BTreeSet<&StorePath>> {
    let all: BTreeSet<&StorePath> = paths.iter().map(|info| &info.path).collect();
    if all.len() < paths.len() {
        bail!(WireError::Garbled("a path is announced twice"));
    }
    let (mut before, mut outside) = (BTreeSet::new(), BTreeSet::new());
    for info in paths {
        before.insert(&info.path);
        if let Some(flaw) = flaw(info) {
            bail!(WireError::Garbled(flaw));
        }
        for reference in &info.references {
            match (before.contains(reference), all.contains(reference)) {
                (true, _) => (),
                (false, true) => bail!(WireError::Garbled("a path comes before what it refers to")),
                (false, false) => drop(outside.insert(reference)),
            }
        }
    }
    Ok(outside)
}

/// Returns what is wrong with what would be written into the database.
fn flaw(info: &PathInfo) -> Option<&'static str> {
    if !(1..=SIZE_LIMIT).contains(&info.nar_size.0) {
        return Some("a path has an impossible size");
    }
    if info.deriver.as_deref().is_some_and(|deriver| StorePath::parse(deriver).is_err()) {
        return Some("a path has an impossible deriver");
    }
    let texts = info.signatures.iter().chain(&info.content_address);
    if !texts.chain(info.outputs.iter().map(|(name, _)| name)).all(|text| is_plain(text)) {
        return Some("what is known of a path is not text");
    }
    None
}

fn is_plain(text: &str) -> bool {
    text.len() <= TEXT_LIMIT && text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::Bytes;
    use crate::store::hash::NarHash;

    fn path(letter: char) -> StorePath {
        StorePath::from_base_name(&format!("{}-x", letter.to_string().repeat(32))).unwrap()
    }

    fn info(letter: char, references: &str) -> PathInfo {
        PathInfo {
            path: path(letter),
            nar_hash: NarHash([0; 32]),
            nar_size: Bytes(120),
            references: references.chars().map(path).collect(),
            deriver: Some(format!("{}.drv", path('d'))),
            registration_time: -1,
            ultimate: true,
            signatures: Some("key:c2ln other:c2ln".into()),
            content_address: Some("text:sha256:0c5m".into()),
            outputs: vec![("out".into(), path('f'))],
        }
    }

    #[test]
    fn what_is_announced_comes_once_and_after_what_it_refers_to() {
        for (paths, expected) in [
            (&[][..], Ok("")),
            (&[("a", "a"), ("b", "a"), ("c", "abc")], Ok("")),
            (&[("a", "x"), ("b", "yax")], Ok("xy")),
            (&[("a", "b"), ("b", "")], Err("a path comes before what it refers to")),
            (&[("a", "b"), ("b", "a")], Err("a path comes before what it refers to")),
            (&[("a", ""), ("b", "a"), ("a", "")], Err("a path is announced twice")),
        ] {
            let paths: Vec<PathInfo> = paths
                .iter()
                .map(|(path, references)| info(path.chars().next().unwrap(), references))
                .collect();
            let outside: Option<BTreeSet<StorePath>> =
                expected.ok().map(|outside| outside.chars().map(path).collect());
            match check(&paths) {
                Ok(found) => assert_eq!(Some(found.into_iter().cloned().collect()), outside),
                Err(error) => {
                    assert_eq!(
                        error.downcast_ref(),
                        expected.err().map(WireError::Garbled).as_ref(),
                        "{error}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_no_database_could_hold_is_refused() {
        let good = || info('a', "");
        for (bad, words) in [
            (PathInfo { nar_size: Bytes(0), ..good() }, "impossible size"),
            (PathInfo { nar_size: Bytes(SIZE_LIMIT + 1), ..good() }, "impossible size"),
            (PathInfo { nar_size: Bytes(u64::MAX), ..good() }, "impossible size"),
            (PathInfo { deriver: Some("unknown".into()), ..good() }, "impossible deriver"),
            (PathInfo { deriver: Some(format!("{}\n", path('d'))), ..good() }, "impossible deriver"),
            (PathInfo { signatures: Some("key:\nx".into()), ..good() }, "is not text"),
            (PathInfo { signatures: Some("x".repeat(TEXT_LIMIT + 1)), ..good() }, "is not text"),
            (PathInfo { content_address: Some("\x1b[2J".into()), ..good() }, "is not text"),
            (PathInfo { outputs: vec![("\0".into(), path('b'))], ..good() }, "is not text"),
        ] {
            let error = check(&[bad]).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let largest = PathInfo { nar_size: Bytes(SIZE_LIMIT), ..good() };
        assert!(check(&[largest]).unwrap().is_empty());
    }
}
