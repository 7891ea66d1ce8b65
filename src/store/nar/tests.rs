//! NARs, beside what Nix itself makes of them.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use super::*;
use crate::store::testing;

fn archive(dir: &Path, name: &str, piece: usize) -> Result<Vec<u8>> {
    let mut stream = NarStream::new(File::open(dir)?, OsStr::new(name), Nothing);
    let (mut archive, mut buffer) = (Vec::new(), vec![0; piece]);
    loop {
        let count = stream.pull(&mut buffer)?;
        archive.extend_from_slice(&buffer[..count]);
        if count < piece {
            return Ok(archive);
        }
    }
}

fn unpack(archive: &[u8]) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    restore(archive, File::open(dir.path())?.into(), OsStr::new("x")).map(|()| dir)
}

#[test]
fn trees_become_the_archives_nix_makes_of_them_whatever_the_pieces() {
    let dir = tempfile::tempdir().unwrap();
    for name in testing::one_of_each(dir.path()) {
        let expected = testing::dump(&dir.path().join(name));
        for piece in [1 << 20, 64, 77, 32 << 10] {
            assert!(archive(dir.path(), name, piece).unwrap() == expected, "{name} in pieces of {piece}");
        }
    }
}

#[test]
fn what_nix_archived_is_restored_whole_canonical_and_sparse() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    testing::tricky_tree(&dir.path().join("tree"));
    let expected = testing::dump(&dir.path().join("tree"));
    let restored = unpack(&expected).unwrap();
    assert!(testing::dump(&restored.path().join("x")) == expected);
    assert!(archive(restored.path(), "x", 4096).unwrap() == expected);
    for (name, mode) in [("x", 0o555), ("x/run", 0o555), ("x/case", 0o444), ("x/empty", 0o555)] {
        let meta = fs::symlink_metadata(restored.path().join(name)).unwrap();
        assert_eq!((meta.permissions().mode() & 0o7777, meta.mtime()), (mode, 1), "{name}");
    }
    for (name, most) in [("x/zeros", 128), ("x/only-zeros", 0)] {
        let blocks = fs::metadata(restored.path().join(name)).unwrap().blocks();
        assert!(blocks <= most, "{name} takes {blocks} blocks");
    }
}

#[test]
fn files_a_store_cannot_hold_are_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("tree/socket")).unwrap();
    let error = archive(dir.path(), "tree", 4096).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&NarError::OddFile("tree/socket".into(), "socket")));
    let error = archive(dir.path(), "gone", 4096).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&NarError::Missing("gone".into())));
    assert!(fs::symlink_metadata(dir.path().join("tree/socket")).unwrap().file_type().is_socket());
}

/// Builds an archive: each text becomes a string, `{` a node's beginning and `}` its end.
fn nar(words: &[&str]) -> Vec<u8> {
    let mut archive = Vec::new();
    word(&mut archive, MAGIC);
    for text in words {
        match *text {
            "{" => ["(", "type"].iter().for_each(|text| word(&mut archive, text.as_bytes())),
            text => word(&mut archive, text.as_bytes()),
        }
    }
    archive
}

fn directory(entries: &[&str]) -> Vec<u8> {
    let mut words = vec!["{", "directory"];
    for name in entries {
        words.extend(["entry", "(", "name", name, "node", "{", "regular", "contents", "x", ")", ")"]);
    }
    words.push(")");
    nar(&words)
}

#[test]
fn hostile_archives_are_refused() {
    let good = directory(&["a", "b"]);
    assert!(unpack(&good).is_ok());
    let mut padded = good.clone();
    let at = padded.windows(8).rposition(|window| window == b"contents").unwrap() + 16 + 1;
    padded[at] = 1;
    let trailing = [&good[..], b"\0"].concat();
    let deep = |levels: usize| {
        let mut words = vec!["{", "directory"];
        words.extend(["entry", "(", "name", "d", "node", "{", "directory"].repeat(levels));
        words.extend([")", ")"].repeat(levels));
        words.push(")");
        nar(&words)
    };
    assert!(unpack(&deep(64)).is_ok());
    let long = "n".repeat(256);
    let target = "t".repeat(4096);
    let huge = {
        let mut archive = nar(&["{", "directory", "entry", "(", "name"]);
        archive.extend_from_slice(&u64::MAX.to_le_bytes());
        archive
    };
    let table: &[(&str, Vec<u8>)] = &[
        ("empty", Vec::new()),
        ("other magic", directory(&[])[8..].to_vec()),
        ("slash", directory(&["a/b"])),
        ("absolute", directory(&["/etc"])),
        ("dot", directory(&["."])),
        ("dots", directory(&[".."])),
        ("nul", directory(&["a\0b"])),
        ("no name", directory(&[""])),
        ("long name", directory(&[&long])),
        ("duplicate", directory(&["a", "a"])),
        ("order", directory(&["b", "a"])),
        ("padding", padded),
        ("trailing rubbish", trailing),
        ("depth", deep(65)),
        ("very deep", deep(100_000)),
        ("huge length", huge),
        ("no contents", nar(&["{", "regular", ")"])),
        ("executable with text", nar(&["{", "regular", "executable", "yes", "contents", "", ")"])),
        ("long target", nar(&["{", "symlink", "target", &target, ")"])),
        ("nul target", nar(&["{", "symlink", "target", "a\0b", ")"])),
        ("unknown type", nar(&["{", "fifo", ")"])),
        ("no type", nar(&["(", ")"])),
        ("through a symlink", {
            let mut words = vec!["{", "directory"];
            words.extend(["entry", "(", "name", "a", "node", "{", "symlink", "target", "/etc", ")", ")"]);
            words.extend(["entry", "(", "name", "a", "node", "{", "directory", ")", ")", ")"]);
            nar(&words)
        }),
    ];
    for (what, archive) in table {
        let error = unpack(archive).expect_err(what);
        assert!(error.downcast_ref::<NarError>().is_some(), "{what}: {error:#}");
    }
    for end in 0..good.len() {
        let error = unpack(&good[..end]).expect_err("cut");
        assert_eq!(error.downcast_ref(), Some(&NarError::Truncated), "cut at {end}");
    }
    for (end, more) in [(good.len(), 1), (8, 1 << 20)] {
        let archive = [&good[..end], &vec![7; more][..]].concat();
        assert!(unpack(&archive).is_err());
    }
}

#[test]
fn nix_restores_what_we_write() {
    let dir = tempfile::tempdir().unwrap();
    testing::tricky_tree(&dir.path().join("tree"));
    let ours = archive(dir.path(), "tree", 32 << 10).unwrap();
    assert!(testing::restore(&ours, &dir.path().join("restored")), "Nix refuses our archive");
    assert!(testing::dump(&dir.path().join("restored")) == ours);
}
