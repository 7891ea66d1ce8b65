//! Files of one tree that have the same contents, so that these are sent once.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;

use super::archive::{Archive, Kind, Reader};

// zstd sees for itself what is smaller and comes again soon.
const FROM: u64 = 16 << 10;
const CHUNK: u64 = 256 << 10;
// Files of one size that all differ are compared with so many; more would be read again and again.
const DIFFERENT: usize = 8;

/// A file whose contents there are more than once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Repeat {
    First,
    /// Has what the file of this number has.
    Again(u32),
}

/// Returns the files among `pieces` whose contents are those of others among them.
pub(super) fn repeats(archive: &Archive, pieces: impl Iterator<Item = u32>) -> Result<HashMap<u32, Repeat>> {
    let mut by_size: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for piece in pieces {
        match archive.pieces()[piece as usize].kind {
            Kind::File { size, .. } if size >= FROM => by_size.entry(size).or_default().push(piece),
            _ => (),
        }
    }
    let mut repeats = HashMap::new();
    let (mut one, mut other) = (archive.reader(), archive.reader());
    for (size, pieces) in by_size {
        let mut different: Vec<u32> = Vec::new();
        for piece in pieces {
            let mut same = None;
            for &first in &different {
                if equal(&mut one, archive.contents(first), &mut other, archive.contents(piece), size)? {
                    same = Some(first);
                    break;
                }
            }
            match same {
                Some(first) => {
                    repeats.insert(first, Repeat::First);
                    repeats.insert(piece, Repeat::Again(first));
                }
                None if different.len() < DIFFERENT => different.push(piece),
                None => (),
            }
        }
    }
    Ok(repeats)
}

fn equal(one: &mut Reader, at: u64, other: &mut Reader, from: u64, size: u64) -> Result<bool> {
    let mut buffers = [vec![0; CHUNK.min(size) as usize], vec![0; CHUNK.min(size) as usize]];
    let mut done = 0;
    while done < size {
        let count = CHUNK.min(size - done) as usize;
        let [ours, theirs] = buffers.each_mut().map(|buffer| &mut buffer[..count]);
        one.read(at + done, ours)?;
        other.read(from + done, theirs)?;
        if ours != theirs {
            return Ok(false);
        }
        done += count as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn only_what_is_equal_to_its_last_byte_is_a_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut large = vec![1; 3 * CHUNK as usize + 5];
        for name in ["a", "c", "e"] {
            fs::write(tree.join(name), &large).unwrap();
        }
        *large.last_mut().unwrap() = 2;
        fs::write(tree.join("b"), &large).unwrap();
        fs::write(tree.join("d"), &large[1..]).unwrap();
        for name in ["f", "g"] {
            fs::write(tree.join(name), vec![1; FROM as usize - 1]).unwrap();
        }
        for number in 0..20 {
            fs::write(tree.join(format!("h{number:02}")), [&[number][..], &[0; FROM as usize]].concat())
                .unwrap();
        }
        let archive = Archive::of(File::open(dir.path()).unwrap().into(), OsStr::new("tree")).unwrap();
        let of = |name: &str| {
            let mut pieces = 0..archive.pieces().len() as u32;
            pieces.find(|&piece| archive.name(piece) == name.as_bytes()).unwrap()
        };
        let all = || 0..archive.pieces().len() as u32;
        let expected = |first: &str, others: &[&str]| -> HashMap<u32, Repeat> {
            let again = others.iter().map(|other| (of(other), Repeat::Again(of(first))));
            again.chain([(of(first), Repeat::First)]).collect()
        };
        assert_eq!(repeats(&archive, all()).unwrap(), expected("a", &["c", "e"]));
        let without = all().filter(|&piece| piece != of("a"));
        assert_eq!(repeats(&archive, without).unwrap(), expected("c", &["e"]));
    }
}
