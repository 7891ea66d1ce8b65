//! Closures without a database: references are found as Nix finds them, by looking for the hash parts
//! of store paths in the bytes of each object, and hashes are computed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};

use super::PathInfo;
use super::candidates::each_candidate;
use super::lanes::{self, Digest, Stream, Work};
use super::nar::{NarStream, Nothing};
use super::path::{HASH_LENGTH, StorePath};
use crate::progress::Progress;
use crate::size::Bytes;

type HashPart = [u8; HASH_LENGTH];

/// Finds all that `system` refers to in the store of a root without a database.
pub fn closure(
    root: &Path,
    system: &StorePath,
    _progress: &dyn Progress,
) -> Result<BTreeMap<StorePath, PathInfo>> {
    let dir = root.join("nix/store");
    let store = File::open(&dir).with_context(|| format!("opening {}", dir.display()))?;
    let present = present(&dir)?;
    if !present.contains_key(&part(system)) {
        bail!("{} is not in {}; is it in another root (--from)?", system, dir.display());
    }
    let work = Scan {
        store: store.as_fd(),
        present: &present,
        seen: Mutex::new(BTreeSet::from([system.clone()])),
        waiting: Mutex::new(vec![system.clone()]),
        found: Mutex::new(BTreeMap::new()),
    };
    // A worker that finds nothing to do leaves, though others may still find more.
    while !work.waiting.lock().expect("no worker panics with it").is_empty() {
        lanes::run(&work, 0)?;
    }
    Ok(work.found.into_inner().expect("no worker panics with it"))
}

fn part(path: &StorePath) -> HashPart {
    path.hash_part().as_bytes().try_into().expect("a hash part has its length")
}

/// Lists the objects of a store by their hash parts.
fn present(dir: &Path) -> Result<HashMap<HashPart, StorePath>> {
    let mut present = HashMap::new();
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let name = entry.with_context(|| format!("listing {}", dir.display()))?.file_name();
        if let Some(path) = name.to_str().and_then(|name| StorePath::from_base_name(name).ok()) {
            present.insert(part(&path), path);
        }
    }
    Ok(present)
}

struct Scan<'a> {
    store: BorrowedFd<'a>,
    present: &'a HashMap<HashPart, StorePath>,
    seen: Mutex<BTreeSet<StorePath>>,
    waiting: Mutex<Vec<StorePath>>,
    found: Mutex<BTreeMap<StorePath, PathInfo>>,
}

struct Scanned<'a> {
    path: StorePath,
    nar: NarStream<BorrowedFd<'a>, Nothing>,
    scanner: Scanner<'a>,
}

impl Stream for Scanned<'_> {
    fn pull(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let count = self.nar.pull(buffer)?;
        self.scanner.feed(&buffer[..count]);
        Ok(count)
    }

    fn expected(&self) -> u64 {
        0
    }
}

impl<'a> Work for Scan<'a> {
    type Stream = Scanned<'a>;

    fn next(&self) -> Result<Option<Scanned<'a>>> {
        let Some(path) = self.waiting.lock().expect("no worker panics with it").pop() else {
            return Ok(None);
        };
        let nar = NarStream::new(self.store, OsStr::new(path.base_name()), Nothing);
        Ok(Some(Scanned { path, nar, scanner: Scanner::new(self.present) }))
    }

    fn done(&self, scanned: Scanned<'a>, digest: Result<Digest>) -> Result<()> {
        let digest = digest.with_context(|| format!("looking for references in {}", scanned.path))?;
        let references: Vec<StorePath> = scanned.scanner.found.into_iter().collect();
        let mut seen = self.seen.lock().expect("no worker panics with it");
        let new = references.iter().filter(|path| seen.insert((*path).clone())).cloned();
        self.waiting.lock().expect("no worker panics with it").extend(new);
        let info = PathInfo {
            path: scanned.path.clone(),
            nar_hash: digest.hash,
            nar_size: Bytes(digest.size),
            references,
            deriver: None,
            registration_time: 0,
            // Nobody signed it, and the person who copies it trusts it.
            ultimate: true,
            signatures: None,
            content_address: None,
            outputs: Vec::new(),
        };
        self.found.lock().expect("no worker panics with it").insert(scanned.path, info);
        Ok(())
    }

    fn advance(&self, _bytes: u64) {}
}

/// Looks for hash parts in bytes that come piece by piece.
struct Scanner<'a> {
    present: &'a HashMap<HashPart, StorePath>,
    // The end of what came before, one byte too short to hold a hash part.
    tail: Vec<u8>,
    found: BTreeSet<StorePath>,
}

impl<'a> Scanner<'a> {
    fn new(present: &'a HashMap<HashPart, StorePath>) -> Self {
        Scanner { present, tail: Vec::new(), found: BTreeSet::new() }
    }

    fn feed(&mut self, bytes: &[u8]) {
        let seam = bytes.len().min(HASH_LENGTH - 1);
        let mut joined = std::mem::take(&mut self.tail);
        joined.extend_from_slice(&bytes[..seam]);
        self.search(&joined);
        self.search(bytes);
        let rest = if bytes.len() >= HASH_LENGTH { bytes } else { &joined };
        self.tail = rest[rest.len().saturating_sub(HASH_LENGTH - 1)..].to_vec();
    }

    fn search(&mut self, bytes: &[u8]) {
        each_candidate(bytes, |at| {
            let window: &HashPart =
                bytes[at..at + HASH_LENGTH].try_into().expect("a window has the length of a hash part");
            self.found.extend(self.present.get(window).cloned());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_parts_are_found_wherever_the_pieces_are_cut() {
        let hashes = ["0c5mzqyfjhyxv5bmpanmc7dzl5cfbhzj", "1111mzqyfjhyxv5bmpanmc7dzl5cfbhz"];
        let paths = hashes.map(|hash| StorePath::from_base_name(&format!("{hash}-x")).unwrap());
        let present: HashMap<HashPart, StorePath> =
            paths.iter().map(|path| (part(path), path.clone())).collect();
        let text = format!("/nix/store/{}-x 111{}1 {}", hashes[0], hashes[1], &hashes[0][1..]);
        for cut in 1..=text.len() {
            let mut scanner = Scanner::new(&present);
            text.as_bytes().chunks(cut).for_each(|piece| scanner.feed(piece));
            assert_eq!(scanner.found.len(), 2, "{cut}");
            let mut scanner = Scanner::new(&present);
            text.as_bytes()[12..].chunks(cut).take(1).for_each(|piece| scanner.feed(piece));
            assert!(!scanner.found.contains(&paths[0]), "{cut}");
        }
    }
}
