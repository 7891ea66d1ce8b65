//! Round trips, what they cost, and deltas made to hurt.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Result;

use super::testing::{info, path};
use super::*;
use crate::store::PathInfo;
use crate::store::testing::{dump, tricky_tree};
use crate::sys::file::spool;
use crate::sys::pack;

const LEVEL: i32 = 3;
const OLD: [&str; 3] = ["0-own-1.0", "1-glibc-2.38-27", "2-gcc-12-lib"];
const NEW: [&str; 3] = ["a-own-1.1", "b-glibc-2.38-44", "c-gcc-12-lib"];

fn of(names: [&str; 3]) -> PathInfo {
    PathInfo { references: names.map(path).to_vec(), ..info(names[0]) }
}

fn rewriting() -> Rewriting {
    Rewriting::between(&of(OLD), &of(NEW))
}

fn open(root: &Path, name: &str) -> Archive {
    Archive::of(File::open(root).unwrap().into(), OsStr::new(name)).unwrap()
}

/// Bytes no compressor makes smaller.
fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Makes a tree of all that is tricky, and of files, links and names that mention store paths.
fn mentioning(dir: &Path, names: [&str; 3]) {
    tricky_tree(dir);
    let [own, glibc, gcc] = names.map(|name| path(name).to_string());
    fs::write(dir.join("script"), format!("#!{glibc}/bin/sh\nexec {own}/bin/x --with={gcc}\n")).unwrap();
    symlink(format!("{gcc}/lib/libstdc++.so"), dir.join("to-gcc")).unwrap();
    fs::create_dir(dir.join("names")).unwrap();
    fs::write(dir.join("names").join(path(names[2]).base_name()), "named after another").unwrap();
    let mut binary = noise(300_000, 1);
    for at in (0..binary.len() - 500).step_by(997) {
        binary[at..at + glibc.len()].copy_from_slice(glibc.as_bytes());
    }
    fs::write(dir.join("binary"), binary).unwrap();
}

fn made(archive: &Archive, base: Option<&Base>, level: i32) -> Vec<u8> {
    let mut delta = Vec::new();
    encode(archive, base, level, &mut delta).unwrap();
    delta
}

fn unmade(delta: &[u8], base: Option<&Base>, size: usize) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    decode(&mut &delta[..], base, size as u64, &spool, &mut archive).map(|()| archive)
}

/// Sends `new` to somebody who has `base`, and returns what that costs and what it was.
fn sent(root: &Path, new: &str, base: &str, rewriting: &Rewriting) -> (usize, usize) {
    let (archive, base_archive) = (open(root, new), open(root, base));
    let expected = dump(&root.join(new));
    let base_of = Base { archive: &base_archive, rewriting };
    let delta = made(&archive, Some(&base_of), LEVEL);
    assert!(unmade(&delta, Some(&base_of), expected.len()).unwrap() == expected, "{new} from {base}");
    (delta.len(), expected.len())
}

#[test]
fn every_tree_arrives_whatever_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    mentioning(&root.join("new"), NEW);
    mentioning(&root.join("old"), OLD);
    mentioning(&root.join("missing"), OLD);
    for gone in ["binary", "Case", "zeros"] {
        fs::remove_file(root.join("missing").join(gone)).unwrap();
    }
    fs::remove_dir_all(root.join("missing/deep")).unwrap();
    fs::create_dir(root.join("unrelated")).unwrap();
    fs::write(root.join("unrelated/other"), noise(100_000, 7)).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("file"), "a store path that is a file").unwrap();
    fs::write(root.join("empty-file"), "").unwrap();
    symlink("/nowhere", root.join("link")).unwrap();
    let all = ["new", "old", "missing", "unrelated", "empty", "file", "empty-file", "link"];
    for new in all {
        for base in all {
            let (delta, _) = sent(root, new, base, &rewriting());
            assert!(
                new != base || new == "old" || new == "missing" || delta < 16,
                "{new} from itself: {delta}"
            );
            sent(root, new, base, &Rewriting::default());
        }
        let (archive, expected) = (open(root, new), dump(&root.join(new)));
        for level in [1, 3, 9, 99] {
            let delta = made(&archive, None, level);
            assert!(unmade(&delta, None, expected.len()).unwrap() == expected, "{new} at level {level}");
        }
    }
}

#[test]
fn of_an_object_that_was_only_rebuilt_nothing_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    mentioning(&dir.path().join("new"), NEW);
    mentioning(&dir.path().join("old"), OLD);
    let (delta, size) = sent(dir.path(), "new", "old", &rewriting());
    assert!(delta < 32, "{delta} bytes for {size}");
    // Build ids are what a compiler makes of all it read.
    let binary = dir.path().join("new/binary");
    let mut bytes = fs::read(&binary).unwrap();
    bytes[150_000..150_020].copy_from_slice(&noise(20, 9));
    fs::write(binary, bytes).unwrap();
    let (delta, size) = sent(dir.path(), "new", "old", &rewriting());
    assert!(delta < 64, "{delta} bytes for {size}");
    // Without the rewriting there is still the base.
    let (delta, size) = sent(dir.path(), "new", "old", &Rewriting::default());
    assert!(delta * 50 < size, "{delta} bytes for {size}");
}

#[test]
fn what_moves_inside_a_large_file_is_not_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let old = noise(20 << 20, 3);
    let new =
        [&old[..5 << 20], &noise(3000, 4), &old[5 << 20..12 << 20], &old[(12 << 20) + 100_000..]].concat();
    fs::write(dir.path().join("old"), &old).unwrap();
    fs::write(dir.path().join("new"), new).unwrap();
    for (new, base) in [("new", "old"), ("old", "new")] {
        let (delta, size) = sent(dir.path(), new, base, &Rewriting::default());
        assert!(delta * 50 < size, "{delta} bytes for {size}");
    }
}

#[test]
fn thousands_of_small_files_are_packed_together() {
    let dir = tempfile::tempdir().unwrap();
    for (tree, version) in [("old", "1.9"), ("new", "1.10")] {
        fs::create_dir(dir.path().join(tree)).unwrap();
        for number in 0..2000 {
            let body: String = noise(300, number).iter().map(|byte| format!("{byte:02x}")).collect();
            let text = format!("version {version}\n{body}\n");
            fs::write(dir.path().join(tree).join(format!("page-{number}")), text).unwrap();
        }
    }
    let (delta, size) = sent(dir.path(), "new", "old", &Rewriting::default());
    // A frame each would cost more.
    assert!(delta < 2000 * 20, "{delta} bytes for {size}");
}

#[test]
fn what_a_tree_has_more_than_once_is_sent_once() {
    let dir = tempfile::tempdir().unwrap();
    for tree in ["new", "old"] {
        let tree = dir.path().join(tree);
        mentioning(&tree, NEW);
        // The last one comes again further away than zstd looks, and is longer than a part.
        for (name, length, seed) in [("a", 20_000, 3), ("b", 50_001, 4), ("c", 9 << 20, 5)] {
            for number in 1..4 {
                fs::write(tree.join(format!("{number}-{name}")), noise(length, seed)).unwrap();
            }
        }
    }
    // Made from a base that has some of it.
    fs::remove_file(dir.path().join("old/2-a")).unwrap();
    fs::remove_file(dir.path().join("old/3-a")).unwrap();
    let (archive, old) = (open(dir.path(), "new"), open(dir.path(), "old"));
    let base = Base { archive: &old, rewriting: &Rewriting::default() };
    let expected = dump(&dir.path().join("new"));
    for (base, most) in [(None, 9 << 20 | 500 << 10), (Some(&base), 21_000)] {
        for level in [1, 9] {
            let delta = made(&archive, base, level);
            assert!(unmade(&delta, base, expected.len()).unwrap() == expected);
            assert!(delta.len() < most, "{} bytes", delta.len());
        }
    }
}

#[test]
fn a_long_text_is_packed_as_if_it_were_in_one_piece() {
    let dir = tempfile::tempdir().unwrap();
    // Like nothing near it, and like what is a few MiB before.
    let text = noise(3 << 20, 1).repeat(7);
    fs::write(dir.path().join("text"), &text).unwrap();
    let archive = open(dir.path(), "text");
    for (level, most) in [(3, 4 << 20), (9, 4 << 20)] {
        let delta = made(&archive, None, level);
        assert!(unmade(&delta, None, archive.size() as usize).unwrap() == dump(&dir.path().join("text")));
        assert!(delta.len() < most, "{} bytes at level {level}", delta.len());
    }
}

/// A delta with a part of each kind, the base for it, and what it makes.
fn sample(root: &Path) -> (Vec<u8>, Archive, Vec<u8>) {
    let text: String = (0..200).map(|line| format!("line {line} of {}\n", line * line)).collect();
    let old = [&noise(20_000, 5), text.as_bytes(), &noise(20_000, 6)].concat();
    let new =
        [&noise(20_000, 5), text.replace("of", "is").as_bytes(), &noise(19_990, 6), &noise(10, 8)].concat();
    fs::write(root.join("old"), old).unwrap();
    fs::write(root.join("new"), new).unwrap();
    let base = open(root, "old");
    let of = Base { archive: &base, rewriting: &Rewriting::default() };
    let delta = made(&open(root, "new"), Some(&of), LEVEL);
    (delta, base, dump(&root.join("new")))
}

#[test]
fn a_delta_that_is_cut_or_longer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (delta, base, expected) = sample(dir.path());
    let base = Base { archive: &base, rewriting: &Rewriting::default() };
    assert!(unmade(&delta, Some(&base), expected.len()).unwrap() == expected);
    let plain = made(&open(dir.path(), "new"), None, LEVEL);
    for delta in [&delta, &plain] {
        // The plain one is mostly noise, where one cut is like another.
        for end in
            (0..delta.len()).filter(|end| delta.len() < 5000 || end % 97 == 0 || end + 50 > delta.len())
        {
            let error = unmade(&delta[..end], Some(&base), expected.len()).expect_err("it was cut");
            assert_eq!(error.downcast_ref(), Some(&DeltaError::Truncated), "cut at {end}: {error:#}");
        }
        let longer = [&delta[..], &[0]].concat();
        let error = unmade(&longer, Some(&base), expected.len()).expect_err("something follows");
        assert!(matches!(error.downcast_ref(), Some(DeltaError::Bad(_))), "{error:#}");
    }
    let error = unmade(&delta, None, expected.len()).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&DeltaError::NoBase));
    for size in [expected.len() - 1, expected.len() + 1, 0] {
        let error = unmade(&delta, Some(&base), size).unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&DeltaError::Size(size as u64)));
    }
}

#[test]
fn a_delta_with_flipped_bits_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let (delta, base, expected) = sample(dir.path());
    let base = Base { archive: &base, rewriting: &Rewriting::default() };
    for at in 0..delta.len() {
        for flip in [1, 0x80, 0xff] {
            let mut delta = delta.clone();
            delta[at] ^= flip;
            match unmade(&delta, Some(&base), expected.len()) {
                // The hash tells the rest.
                Ok(archive) => assert_eq!(archive.len(), expected.len()),
                Err(error) => assert!(error.downcast_ref::<DeltaError>().is_some(), "at {at}: {error:#}"),
            }
        }
    }
}

#[test]
fn deltas_made_to_hurt_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("base"), noise(1000, 1)).unwrap();
    let archive = open(dir.path(), "base");
    let base = Base { archive: &archive, rewriting: &rewriting() };
    let most = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    let frame = pack::pack(&[7; 100], &[], 3).unwrap();
    let packed = |length: u8, reach: &[u8], frame: &[u8]| {
        [&[1, PACKED, length, 0][..], reach, &[frame.len() as u8], frame, &[END]].concat()
    };
    // Three parts of thirty bytes, of which the last leans on what stands before it.
    let third = pack::pack(&[7; 30], &[], 3).unwrap();
    let first = packed(30, &[0], &third);
    let first = &first[..first.len() - 1];
    let next = |reach: u8| [&[NEXT, 30, reach, third.len() as u8][..], &third, &[END]].concat();
    let raw = [&[RAW, 30][..], &[7; 30]].concat();
    // What a 128 MiB window looks like.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0, (27 - 10) << 3, 1, 0, 0];
    assert_eq!(unmade(&packed(100, &[0], &frame), Some(&base), 100).unwrap(), [7; 100]);
    let table: &[(&str, Vec<u8>)] = &[
        ("nothing", vec![]),
        ("another version", vec![2, END]),
        ("another kind", vec![1, 7]),
        ("too little", vec![1, END]),
        ("a copy from beyond", vec![1, COPY, 100, 0xff, 0x7f, END]),
        ("a copy past the end", [&[1, COPY, 100][..], &[0xd0, 8], &[END]].concat()),
        ("a copy around the end of numbers", [&[1, COPY, 100][..], &most, &[END]].concat()),
        ("an endless copy", [&[1, COPY][..], &most, &[0, END]].concat()),
        ("too many copies", [&[1][..], &[COPY, 60, 0].repeat(2), &[END]].concat()),
        ("an endless number", [&[1, COPY][..], &[0xff; 30]].concat()),
        ("a number past 64 bits", [&[1, COPY][..], &[0xff; 9], &[2, 0]].concat()),
        ("copies of nothing", [&[1][..], &[COPY, 0, 0].repeat(9), &[RAW, 100], &[7; 100], &[END]].concat()),
        ("raw parts of nothing", [&[1][..], &[RAW, 0].repeat(9), &[RAW, 100], &[7; 100], &[END]].concat()),
        ("packed parts of nothing", packed(0, &[100], &pack::pack(&[], &[], 3).unwrap())),
        ("a raw part that is not there", [&[1, RAW][..], &[100]].concat()),
        ("a huge raw part", [&[1, RAW][..], &most].concat()),
        ("a huge prefix", packed(100, &most, &frame)),
        ("a prefix past the end", packed(100, &[0xff, 0x7f], &frame)),
        ("a longer frame", packed(99, &[0], &frame)),
        ("a shorter frame", packed(101, &[0], &frame)),
        ("half a frame", packed(100, &[0], &frame[..frame.len() / 2])),
        ("no frame", packed(100, &[0], &noise(50, 2))),
        ("a huge frame", [&[1, PACKED, 100, 0, 0][..], &most, &frame].concat()),
        ("a huge window", packed(100, &[0], &window)),
        ("what was not kept", vec![1, RAW, 50, 7, AGAIN, 50, 0, END]),
        ("more than was kept", [&[1, KEEP, 50, RAW, 50][..], &[7; 50], &[AGAIN, 50, 1, END]].concat()),
        ("what is still to come", [&[1, KEEP, 100, RAW, 50][..], &[7; 50], &[AGAIN, 50, 50, END]].concat()),
        (
            "what ends behind all numbers",
            [&[1, KEEP, 50, RAW, 50][..], &[7; 50], &[AGAIN, 50], &most, &[END]].concat(),
        ),
        (
            "keeping what is kept",
            [&[1, KEEP, 60, RAW, 50][..], &[7; 50], &[KEEP, 50, RAW, 50], &[7; 50], &[END]].concat(),
        ),
        ("keeping more than all", vec![1, KEEP, 101, END]),
        ("keeping nothing", vec![1, KEEP, 0, END]),
    ];
    for (what, delta) in table {
        let error = unmade(delta, Some(&base), 100).expect_err(what);
        assert!(error.downcast_ref::<DeltaError>().is_some(), "{what}: {error:#}");
    }
    // These make as much as they should, if they are believed.
    for (what, delta, size) in [
        ("a part after none", [&[1][..], &next(1)].concat(), 30),
        ("a part after more than there is", [first, &next(31)].concat(), 60),
        ("a part after another kind", [first, &raw, &next(30)].concat(), 90),
    ] {
        let error = unmade(&delta, Some(&base), size).expect_err(what);
        let expected = DeltaError::Bad("a prefix is longer than what stands before it");
        assert_eq!(error.downcast_ref(), Some(&expected), "{what}");
    }
    assert_eq!(unmade(&[first, &next(30)].concat(), Some(&base), 60).unwrap(), [7; 60]);
    // The size is what stops an archive that never ends.
    fs::write(dir.path().join("bomb"), vec![0; 1 << 20]).unwrap();
    let bomb = made(&open(dir.path(), "bomb"), None, LEVEL);
    let error = unmade(&bomb, None, 1000).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&DeltaError::Size(1000)));
}
