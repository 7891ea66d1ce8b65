//! Which entry of the old tree each entry of the new one was.

use std::collections::{BTreeSet, HashMap};

use super::archive::{Archive, Kind};
use super::rewriting::Rewriting;

/// Returns for each piece of `new` the piece of `base` it is most like, if there is one: the same
/// path first, then the same but for numbers in names, then a file of that name elsewhere.
pub(super) fn mates(new: &Archive, base: &Archive, rewriting: &Rewriting) -> Vec<Option<u32>> {
    let mut pairing = Pairing {
        new,
        base,
        rewriting,
        mates: vec![None; new.pieces().len()],
        taken: vec![false; base.pieces().len()],
    };
    if kind(new, 0) == kind(base, 0) {
        pairing.join(0, 0);
    }
    pairing.files_elsewhere();
    pairing.mates
}

/// A kind of piece, and a name that may be less than its own.
type Named = (u8, Vec<u8>);

struct Pairing<'a> {
    new: &'a Archive,
    base: &'a Archive,
    rewriting: &'a Rewriting,
    mates: Vec<Option<u32>>,
    taken: Vec<bool>,
}

impl Pairing<'_> {
    // Joins two pieces and, of directories, what is in them.
    fn join(&mut self, new: u32, base: u32) {
        self.mates[new as usize] = Some(base);
        self.taken[base as usize] = true;
        let (Kind::Directory { end: new_end }, Kind::Directory { end: base_end }) =
            (self.new.pieces()[new as usize].kind, self.base.pieces()[base as usize].kind)
        else {
            return;
        };
        self.mates[new_end as usize] = Some(base_end);
        let (news, bases) = (self.new.children(new), self.base.children(base));
        let rest = self.join_by(&news, &bases, <[u8]>::to_vec);
        self.join_by(&rest, &bases, without_numbers);
    }

    fn files_elsewhere(&mut self) {
        let file = |archive: &Archive, piece: u32| kind(archive, piece) == b'f';
        let lonely = |piece: &u32| file(self.new, *piece) && self.mates[*piece as usize].is_none();
        let news: Vec<u32> = (0..self.mates.len() as u32).filter(lonely).collect();
        let left = |piece: &u32| file(self.base, *piece) && !self.taken[*piece as usize];
        let bases: Vec<u32> = (0..self.taken.len() as u32).filter(left).collect();
        self.join_by(&news, &bases, without_numbers);
    }

    // Joins pieces of one kind whose names are equal once `key` has seen them, nearest sizes first.
    // Returns those that stay alone.
    fn join_by(&mut self, news: &[u32], bases: &[u32], key: fn(&[u8]) -> Vec<u8>) -> Vec<u32> {
        // By size, for there may be thousands of one name but for numbers.
        let mut names: HashMap<Named, BTreeSet<(u64, u32)>> = HashMap::new();
        for &base in bases.iter().filter(|&&base| !self.taken[base as usize]) {
            let mut name = self.base.name(base).to_vec();
            self.rewriting.apply(&mut name);
            let known = names.entry((kind(self.base, base), key(&name))).or_default();
            known.insert((size(self.base, base), base));
        }
        let mut alone = Vec::new();
        for &new in news {
            let known = names.get_mut(&(kind(self.new, new), key(self.new.name(new))));
            let size = size(self.new, new);
            let nearest = known.and_then(|known| {
                let around = [known.range(..(size, 0)).next_back(), known.range((size, 0)..).next()];
                let nearest = *around.into_iter().flatten().min_by_key(|(other, _)| size.abs_diff(*other))?;
                known.take(&nearest)
            });
            match nearest {
                Some((_, base)) => self.join(new, base),
                None => alone.push(new),
            }
        }
        alone
    }
}

fn kind(archive: &Archive, piece: u32) -> u8 {
    match archive.pieces()[piece as usize].kind {
        Kind::Directory { .. } => b'd',
        Kind::End => b'e',
        Kind::File { .. } => b'f',
        Kind::Symlink { .. } => b'l',
    }
}

fn size(archive: &Archive, piece: u32) -> u64 {
    archive.end(piece) - archive.pieces()[piece as usize].at
}

/// Turns each number in a name into one zero: `libz.so.1.2.13` is what `libz.so.1.3` was.
fn without_numbers(name: &[u8]) -> Vec<u8> {
    let mut without: Vec<u8> = Vec::with_capacity(name.len());
    for &byte in name {
        let (byte, number) = if byte.is_ascii_digit() || byte == b'.' { (b'0', true) } else { (byte, false) };
        if !(number && without.last() == Some(&b'0')) {
            without.push(byte);
        }
    }
    without
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::{self, File};
    use std::path::Path;

    use super::*;

    fn tree(root: &Path, name: &str, entries: &[(&str, usize)]) -> Archive {
        for (entry, size) in entries {
            let path = root.join(name).join(entry);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![b'x'; *size]).unwrap();
        }
        Archive::of(File::open(root).unwrap().into(), OsStr::new(name)).unwrap()
    }

    #[test]
    fn files_find_what_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let base = [
            ("bin/tool", 5),
            ("lib/libz.so.1.2.13", 5),
            ("lib/python3.11/a.py", 5),
            ("share/img-1", 9),
            ("share/img-2", 100),
            ("doc/moved", 5),
            ("changed/into-file", 5),
        ];
        let new = [
            ("bin/tool", 50),
            ("lib/libz.so.1.3", 5),
            ("lib/python3.12/a.py", 5),
            ("share/img-9", 99),
            ("elsewhere/moved", 5),
            ("changed/into-file/x", 5),
            ("created", 5),
        ];
        let (base, new) = (tree(dir.path(), "base", &base), tree(dir.path(), "new", &new));
        let mates = mates(&new, &base, &Rewriting::default());
        let named = |archive: &Archive, name: &str| {
            (0..archive.pieces().len() as u32).find(|&piece| archive.name(piece) == name.as_bytes())
        };
        for (name, expected) in [
            ("base", None),
            ("tool", Some("tool")),
            ("libz.so.1.3", Some("libz.so.1.2.13")),
            ("a.py", Some("a.py")),
            ("python3.12", Some("python3.11")),
            ("img-9", Some("img-2")),
            ("moved", Some("moved")),
            ("into-file", None),
            ("created", None),
            ("elsewhere", None),
        ] {
            let mate = named(&new, name).and_then(|piece| mates[piece as usize]);
            assert_eq!(mate, expected.and_then(|expected| named(&base, expected)), "{name}");
        }
        assert_eq!(mates[0], Some(0));
        assert_eq!(mates.last(), Some(&Some(base.pieces().len() as u32 - 1)));
    }
}
