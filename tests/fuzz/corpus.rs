//! What the fuzzers begin with: what real ends say, a few KiB for each target.
//!
//! `UPDATE_CORPUS=1 cargo test --test fuzz corpus` makes it anew.

use std::fs;
use std::path::{Path, PathBuf};

use nixos_install_via::store::delta::{self, Base};
use nixos_install_via::wire::frame::Writer;
use nixos_install_via::wire::message::{Answer, Ask};

use super::memory::alone;
use super::targets::{BASE, info, object};

const MESSAGES: &str = include_str!("../../src/wire/golden/messages.txt");

fn directory(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// Returns the seeds of a target with their names, in order.
pub fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let seed = |file: PathBuf| (file.display().to_string(), fs::read(&file).unwrap());
    files.into_iter().map(seed).collect()
}

#[test]
fn the_corpus_is_small_and_of_each_target() {
    let _alone = alone();
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        update();
    }
    for target in ["frames", "messages", "nar", "manifest", "delta", "daemon"] {
        let bytes: usize = seeds(target).iter().map(|(_, seed)| seed.len()).sum();
        assert!((10..32 << 10).contains(&bytes), "the corpus of {target} has {bytes} bytes");
    }
}

fn update() {
    let write = |target: &str, name: &str, bytes: &[u8]| {
        fs::create_dir_all(directory(target)).unwrap();
        fs::write(directory(target).join(name), bytes).unwrap();
    };
    let mut frames = Vec::new();
    for (number, line) in MESSAGES.lines().enumerate() {
        let [whose, name, hex] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let bytes = unhex(hex);
        write("messages", &format!("{whose}-{number:02}-{}", name.to_lowercase()), &bytes);
        let mut writer = Writer(&mut frames);
        match whose {
            "ask" => writer.message(&nixos_install_via::wire::frame::decode::<Ask>(&bytes).unwrap()).unwrap(),
            _ => writer.message(&nixos_install_via::wire::frame::decode::<Answer>(&bytes).unwrap()).unwrap(),
        }
    }
    write("frames", "messages", &frames);
    write(
        "frames",
        "data",
        &written(|writer| {
            writer.message(&Ask::Nar { index: 0, base: None }).unwrap();
            writer.data(b"some").unwrap();
            writer.data(&[]).unwrap();
            writer.data(&[7; 1000]).unwrap();
            writer.end().unwrap();
            writer.message(&Ask::End).unwrap();
        }),
    );
    let paths = vec![info("old").path; 100];
    write(
        "frames",
        "packed",
        &written(|writer| {
            writer.message(&Ask::Missing { paths: paths.clone(), substitute: false }).unwrap();
        }),
    );
    for (name, bytes) in nars() {
        write("nar", name, &bytes);
    }
    for name in ["uefi-ext4", "bios-grub", "disko-luks-btrfs"] {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/module/golden").join(name);
        write("manifest", name, &fs::read(golden.with_extension("json")).unwrap());
    }
    for (name, bytes) in deltas() {
        write("delta", name, &bytes);
    }
    write("daemon", "session", &session());
}

fn written(say: impl FnOnce(&mut Writer<&mut Vec<u8>>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    say(&mut Writer(&mut bytes));
    bytes
}

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..][..2], 16).unwrap()).collect()
}

/// A number or a text, as archives and daemons write it.
fn word(text: &str) -> Vec<u8> {
    let padding = text.len().wrapping_neg() % 8;
    [number(text.len() as u64), text.as_bytes().to_vec(), vec![0; padding]].concat()
}

fn number(number: u64) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

fn nars() -> Vec<(&'static str, Vec<u8>)> {
    let words =
        |text: &str| text.split(' ').flat_map(|text| word(text.trim_matches('\''))).collect::<Vec<u8>>();
    let magic = "nix-archive-1 ( type";
    vec![
        ("file", words(&format!("{magic} regular contents hello )"))),
        ("program", words(&format!("{magic} regular executable '' contents #!/bin/sh )"))),
        ("symlink", words(&format!("{magic} symlink target /nix/store )"))),
        (
            "directory",
            words(&format!(
                "{magic} directory entry ( name bin node ( type directory entry ( name run node ( type regular \
                 executable '' contents x ) ) ) ) entry ( name link node ( type symlink target bin/run ) ) entry \
                 ( name text node ( type regular contents '' ) ) )"
            )),
        ),
    ]
}

fn deltas() -> Vec<(&'static str, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let new = object(dir.path(), "new").unwrap();
    let encoded = |based: bool| {
        let mut bytes = (new.size() as u32).to_le_bytes().to_vec();
        BASE.with(|(_, archive, rewriting)| {
            let base = Base { archive, rewriting };
            delta::encode(&new, based.then_some(&base), 3, &mut bytes).unwrap();
        });
        bytes
    };
    let parts = |bytes: &[u8]| [&4_u32.to_le_bytes()[..], &[delta::VERSION], bytes].concat();
    vec![
        ("based", encoded(true)),
        ("plain", encoded(false)),
        ("raw", parts(b"\x02\x04abcd\x00")),
        ("copied", parts(b"\x01\x02\x00\x01\x02\x80\x01\x00")),
        ("kept", parts(b"\x05\x02\x02\x02ab\x06\x02\x00\x00")),
    ]
}

/// What a daemon answers to all that is asked of it.
fn session() -> Vec<u8> {
    const LAST: u64 = 0x616c_7473;
    const NEXT: u64 = 0x6f6c_6d67;
    const START: u64 = 0x5354_5254;
    const STOP: u64 = 0x5354_4f50;
    const RESULT: u64 = 0x5253_4c54;
    let info = info("new");
    let path = |path: &dyn std::fmt::Display| word(&path.to_string());
    let none = || number(0);
    let last = || number(LAST);
    let pieces = [
        // The greeting: version 1.37, Nix's own version, trusted.
        [number(0x6478_696f), number(1 << 8 | 37)].concat(),
        [word("2.18.1"), number(1), last()].concat(),
        // It is valid, and this is known of it.
        [number(NEXT), word("\x1b[31mlooking\x1b[0m\n"), last(), number(1)].concat(),
        [
            [last(), number(1), word(""), word(&"07".repeat(32)), number(1), path(&info.references[0])]
                .concat(),
            [none(), number(8), number(1), number(1), word("key:c2ln"), word("")].concat(),
        ]
        .concat(),
        // One of two is valid.
        [last(), number(1), path(&info.path)].concat(),
        // A temporary root, nothing valid, and what was sent has arrived.
        [last(), number(1)].concat(),
        [last(), none()].concat(),
        [
            [number(START), number(9), number(3), number(100), word("adding"), number(1), none()].concat(),
            [number(5), none(), number(RESULT), number(9), number(105), number(1), number(1), word("x")]
                .concat(),
            [number(STOP), number(9), last()].concat(),
        ]
        .concat(),
    ];
    pieces
        .into_iter()
        .flat_map(|piece| [(piece.len() as u16).to_le_bytes().to_vec(), piece].concat())
        .collect()
}
