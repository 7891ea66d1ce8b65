//! Files that may be compressed, as kernel modules are.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use lzma_rust2::XzReader;

use super::pack;
use crate::size::Bytes;

/// What a file may hold once it is unpacked: the largest module has a tenth of it.
const LIMIT: Bytes = Bytes::mib(256);
// What `xz -9` asks of its reader, in KiB, and some more.
const XZ_MEMORY: u32 = 80 << 10;

/// Returns what a file holds; one whose name ends in `.xz` or `.zst` is unpacked.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    read_within(path, LIMIT)
}

fn read_within(path: &Path, limit: Bytes) -> Result<Vec<u8>> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("opening {shown}"))?;
    let file = BufReader::new(file);
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    let unpacked: Box<dyn Read> = match &*extension {
        "xz" => Box::new(XzReader::new_mem_limit(file, true, XZ_MEMORY)),
        "zst" => Box::new(pack::unpacking(file)?),
        "gz" | "bz2" | "lz4" => {
            bail!("{shown} is packed in a way that is not read here; pack it with xz or zstd, or not at all")
        }
        _ => Box::new(file),
    };
    let mut contents = Vec::new();
    unpacked
        .take(limit.0 + 1)
        .read_to_end(&mut contents)
        .with_context(|| format!("unpacking {shown}, which may be damaged"))?;
    ensure!(contents.len() as u64 <= limit.0, "{shown} holds more than {limit}, which no module does");
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    fn sample() -> Vec<u8> {
        (0..300_000u32).flat_map(|number| (number.wrapping_mul(2_654_435_761) >> 20).to_le_bytes()).collect()
    }

    fn packed(dir: &Path, program: &str, args: &[&str]) {
        let file = dir.join("sample.ko");
        fs::write(&file, sample()).unwrap();
        let status = Command::new(program).args(args).arg("-fqk").arg(&file).status().unwrap();
        assert!(status.success(), "{program} {args:?}");
    }

    #[test]
    fn what_xz_and_zstd_pack_is_read() {
        let dir = tempfile::tempdir().unwrap();
        for (program, args, name) in [
            // As nixpkgs, Debian and Arch pack modules, and the extremes.
            ("xz", &["--check=crc32", "--lzma2=dict=1MiB"][..], "sample.ko.xz"),
            ("xz", &["--x86", "--lzma2=preset=6"], "sample.ko.xz"),
            ("xz", &["-9e", "--check=sha256"], "sample.ko.xz"),
            ("xz", &["-T2", "--block-size=100000"], "sample.ko.xz"),
            ("zstd", &["-19"], "sample.ko.zst"),
            ("zstd", &["--ultra", "-22"], "sample.ko.zst"),
            ("true", &[], "sample.ko"),
        ] {
            packed(dir.path(), program, args);
            assert!(read(&dir.path().join(name)).unwrap() == sample(), "{program} {args:?}");
        }
    }

    #[test]
    fn damage_and_bombs_are_found() {
        let dir = tempfile::tempdir().unwrap();
        for (program, args, name) in
            [("xz", &["--check=crc32"][..], "sample.ko.xz"), ("zstd", &["--check"], "sample.ko.zst")]
        {
            packed(dir.path(), program, args);
            let path = dir.path().join(name);
            let said = |limit| format!("{:#}", read_within(&path, limit).unwrap_err());
            assert!(said(Bytes::mib(1)).contains("more than"), "{name}");
            assert_eq!(read_within(&path, Bytes(1_200_000)).unwrap().len(), 1_200_000);
            let whole = fs::read(&path).unwrap();
            let mut flipped = whole.clone();
            flipped[whole.len() / 2] ^= 0x10;
            for damaged in [&whole[..whole.len() / 2], &whole[..whole.len() - 1], &flipped, b"", b"text"] {
                fs::write(&path, damaged).unwrap();
                let said = said(Bytes::mib(2));
                assert!(said.contains("damaged"), "{name}: {said}");
            }
        }
    }

    #[test]
    fn other_packings_are_refused_with_a_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sample.ko.gz");
        fs::write(&path, b"").unwrap();
        assert!(read(&path).unwrap_err().to_string().ends_with("pack it with xz or zstd, or not at all"));
    }
}
