//! The archive of a tree as bytes to be read anywhere: its layout is known before its files are read.
//!
//! Only the layout is held, less than a hundred bytes an entry; framing is made again whenever it is asked for.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use nix::dir::Type;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, readlinkat};
use nix::libc;
use nix::sys::stat::{fstat, fstatat};

use crate::store::nar::{DEPTH_LIMIT, MAGIC, NarError, padding, word};
use crate::store::tree;

// What stands for the parent of the whole tree.
const NONE: u32 = u32::MAX;

/// The layout of one tree's archive.
pub struct Archive {
    root: OwnedFd,
    pieces: Vec<Piece>,
    // Names and symlink targets, one behind the other.
    texts: Vec<u8>,
    size: u64,
}

/// An entry of the archive, or the end of a directory.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub kind: Kind,
    /// Where its bytes begin in the archive; they end where the next piece's begin.
    pub at: u64,
    // The directory it is in; of an end, the directory that ends.
    parent: u32,
    name: Text,
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Ends with the piece of this number.
    Directory {
        end: u32,
    },
    End,
    File {
        size: u64,
        executable: bool,
    },
    Symlink {
        target: Text,
    },
}

#[derive(Clone, Copy)]
pub(super) struct Text {
    start: u32,
    length: u32,
}

impl Archive {
    /// Looks through the tree `name` in the directory `root`; contents are not read yet.
    pub fn of(root: OwnedFd, name: &OsStr) -> Result<Archive> {
        let mut archive = Archive { root, pieces: Vec::new(), texts: Vec::new(), size: 0 };
        let root = archive.root.try_clone().context("opening a store")?;
        let entry =
            tree::Entry { name: CString::new(name.as_bytes()).context("naming the tree")?, kind: None };
        archive.add(&root, &entry, NONE, 0)?;
        Ok(archive)
    }

    /// Returns how long the archive is.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    pub(super) fn name(&self, piece: u32) -> &[u8] {
        self.text(self.pieces[piece as usize].name)
    }

    /// Returns where a piece ends.
    pub(super) fn end(&self, piece: u32) -> u64 {
        self.pieces.get(piece as usize + 1).map_or(self.size, |next| next.at)
    }

    /// Returns where a file's bytes begin, or what stands for them in another piece.
    pub(super) fn contents(&self, piece: u32) -> u64 {
        match self.pieces[piece as usize].kind {
            Kind::File { size, .. } => self.end(piece) - size - self.tail(piece).len() as u64,
            _ => self.pieces[piece as usize].at,
        }
    }

    /// Returns the pieces in a directory.
    pub(super) fn children(&self, directory: u32) -> Vec<u32> {
        let Kind::Directory { end } = self.pieces[directory as usize].kind else { return Vec::new() };
        let mut children = Vec::new();
        let mut at = directory + 1;
        while at < end {
            children.push(at);
            at = match self.pieces[at as usize].kind {
                Kind::Directory { end } => end + 1,
                _ => at + 1,
            };
        }
        children
    }

    pub(super) fn reader(&self) -> Reader<'_> {
        Reader { archive: self, directory: None, file: None }
    }

    fn add(&mut self, parent: &OwnedFd, entry: &tree::Entry, above: u32, depth: usize) -> Result<()> {
        if depth > DEPTH_LIMIT {
            bail!(NarError::Bad("directories are nested too deeply"));
        }
        let name = self.keep(entry.name.to_bytes())?;
        let number = self.push(Kind::End, above, name)?;
        let looking = |archive: &Self| format!("reading {:?}", archive.place(number));
        let kind = match entry.kind.map_or_else(|| tree::kind(parent.as_fd(), &entry.name), Ok) {
            Err(Errno::ENOENT) if above == NONE => bail!(NarError::Missing(self.place(number))),
            other => other.with_context(|| looking(self))?,
        };
        match kind {
            Type::Directory => {
                let dir = tree::open_dir(parent.as_fd(), &entry.name).with_context(|| looking(self))?;
                let (dir, entries) = tree::list(dir).with_context(|| looking(self))?;
                self.settle(number, Kind::Directory { end: 0 });
                entries.iter().try_for_each(|entry| self.add(&dir, entry, number, depth + 1))?;
                let end = self.push(Kind::End, number, name)?;
                self.settle(end, Kind::End);
                self.pieces[number as usize].kind = Kind::Directory { end };
            }
            Type::File => {
                let stat = fstatat(parent, entry.name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
                let stat = stat.with_context(|| looking(self))?;
                let size = u64::try_from(stat.st_size).context("reading a file's size")?;
                self.settle(number, Kind::File { size, executable: stat.st_mode & libc::S_IXUSR != 0 });
            }
            Type::Symlink => {
                let target = readlinkat(parent, entry.name.as_c_str()).with_context(|| looking(self))?;
                let target = self.keep(target.as_bytes())?;
                self.settle(number, Kind::Symlink { target });
            }
            odd => bail!(NarError::OddFile(self.place(number), tree::kind_name(odd))),
        }
        Ok(())
    }

    fn push(&mut self, kind: Kind, parent: u32, name: Text) -> Result<u32> {
        let number = u32::try_from(self.pieces.len()).context("counting a tree's entries")?;
        self.pieces.push(Piece { kind, at: self.size, parent, name });
        Ok(number)
    }

    // Says what the last piece is, from which follows how long it is.
    fn settle(&mut self, piece: u32, kind: Kind) {
        self.pieces[piece as usize].kind = kind;
        let contents = if let Kind::File { size, .. } = kind { size } else { 0 };
        let framing = self.head(piece).len() + self.tail(piece).len();
        self.size = self.size.saturating_add(contents).saturating_add(framing as u64);
    }

    fn keep(&mut self, text: &[u8]) -> Result<Text> {
        let start = u32::try_from(self.texts.len()).context("collecting a tree's names")?;
        self.texts.extend_from_slice(text);
        Ok(Text { start, length: text.len() as u32 })
    }

    fn text(&self, text: Text) -> &[u8] {
        &self.texts[text.start as usize..][..text.length as usize]
    }

    // What stands before a file's contents; all of any other piece.
    fn head(&self, piece: u32) -> Vec<u8> {
        let Piece { kind, parent, .. } = self.pieces[piece as usize];
        let mut head = Vec::new();
        let mut say = |words: &[&[u8]]| words.iter().for_each(|text| word(&mut head, text));
        match kind {
            Kind::End => say(&[b")"]),
            _ if parent == NONE => say(&[MAGIC, b"(", b"type"]),
            _ => say(&[b"entry", b"(", b"name", self.name(piece), b"node", b"(", b"type"]),
        }
        match kind {
            Kind::Directory { .. } => say(&[b"directory"]),
            Kind::File { executable: true, .. } => say(&[b"regular", b"executable", b"", b"contents"]),
            Kind::File { .. } => say(&[b"regular", b"contents"]),
            Kind::Symlink { target } => say(&[b"symlink", b"target", self.text(target), b")"]),
            Kind::End => (),
        }
        match kind {
            Kind::File { size, .. } => head.extend_from_slice(&size.to_le_bytes()),
            Kind::Symlink { .. } if parent != NONE => word(&mut head, b")"),
            Kind::End if self.pieces[parent as usize].parent != NONE => word(&mut head, b")"),
            _ => (),
        }
        head
    }

    // What stands behind a file's contents.
    fn tail(&self, piece: u32) -> Vec<u8> {
        let Kind::File { size, .. } = self.pieces[piece as usize].kind else { return Vec::new() };
        let mut tail = vec![0; padding(size)];
        word(&mut tail, b")");
        if self.pieces[piece as usize].parent != NONE {
            word(&mut tail, b")");
        }
        tail
    }

    // From the tree's own name down, for errors.
    fn place(&self, piece: u32) -> PathBuf {
        let mut way = vec![piece];
        while let Some(&first) = way.last().filter(|&&first| self.pieces[first as usize].parent != NONE) {
            way.push(self.pieces[first as usize].parent);
        }
        way.iter().rev().map(|&piece| OsStr::from_bytes(self.name(piece))).collect()
    }

    fn c_name(&self, piece: u32) -> CString {
        CString::new(self.name(piece)).expect("it came from a CStr")
    }

    fn open<T>(
        &self,
        piece: u32,
        open: impl Fn(std::os::fd::BorrowedFd, &CStr) -> nix::Result<T>,
    ) -> Result<T> {
        let parent = self.pieces[piece as usize].parent;
        let name = self.c_name(piece);
        let opened = if parent == NONE {
            open(self.root.as_fd(), &name)
        } else {
            open(self.open(parent, tree::open_dir)?.as_fd(), &name)
        };
        opened.with_context(|| format!("reading {:?}", self.place(piece)))
    }
}

/// Reads an archive anywhere; best in order, for it keeps the last file and directory open.
pub(super) struct Reader<'a> {
    archive: &'a Archive,
    directory: Option<(u32, OwnedFd)>,
    file: Option<(u32, File)>,
}

impl<'a> Reader<'a> {
    pub fn archive(&self) -> &'a Archive {
        self.archive
    }

    /// Fills `buffer` with what is at `at`; the caller keeps it inside the archive.
    pub fn read(&mut self, mut at: u64, mut buffer: &mut [u8]) -> Result<()> {
        let archive = self.archive;
        let mut piece = archive.pieces.partition_point(|piece| piece.at <= at) as u32 - 1;
        while !buffer.is_empty() {
            let count = self.part(piece, at - archive.pieces[piece as usize].at, buffer)?;
            at += count as u64;
            buffer = &mut buffer[count..];
            piece += 1;
        }
        Ok(())
    }

    // Fills `buffer` from inside one piece, up to its end.
    fn part(&mut self, piece: u32, skip: u64, buffer: &mut [u8]) -> Result<usize> {
        let head = self.archive.head(piece);
        let mut filled = framing(&head, skip, buffer);
        let Kind::File { size, .. } = self.archive.pieces[piece as usize].kind else { return Ok(filled) };
        if filled == buffer.len() {
            return Ok(filled);
        }
        let skip = skip + filled as u64 - head.len() as u64;
        if skip < size {
            let count = (size - skip).min((buffer.len() - filled) as u64) as usize;
            self.contents(piece, skip, &mut buffer[filled..][..count])?;
            filled += count;
        }
        if filled < buffer.len() {
            filled += framing(&self.archive.tail(piece), skip.saturating_sub(size), &mut buffer[filled..]);
        }
        Ok(filled)
    }

    fn contents(&mut self, piece: u32, at: u64, buffer: &mut [u8]) -> Result<()> {
        if self.file.as_ref().is_none_or(|(open, _)| *open != piece) {
            self.file = Some((piece, self.open(piece)?));
        }
        let (_, file) = self.file.as_ref().expect("it was opened above");
        match file.read_exact_at(buffer, at) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                bail!(NarError::Shrunk(self.archive.place(piece)))
            }
            other => other.with_context(|| format!("reading {:?}", self.archive.place(piece))),
        }
    }

    fn open(&mut self, piece: u32) -> Result<File> {
        let parent = self.archive.pieces[piece as usize].parent;
        let file = if parent == NONE {
            self.archive.open(piece, tree::open_file)?
        } else {
            if self.directory.as_ref().is_none_or(|(open, _)| *open != parent) {
                self.directory = Some((parent, self.archive.open(parent, tree::open_dir)?));
            }
            let (_, directory) = self.directory.as_ref().expect("it was opened above");
            let name = self.archive.c_name(piece);
            tree::open_file(directory.as_fd(), &name)
                .with_context(|| format!("reading {:?}", self.archive.place(piece)))?
        };
        let stat = fstat(&file).with_context(|| format!("reading {:?}", self.archive.place(piece)))?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            bail!(NarError::OddFile(self.archive.place(piece), "changing file"));
        }
        Ok(file)
    }
}

fn framing(text: &[u8], skip: u64, buffer: &mut [u8]) -> usize {
    let rest = usize::try_from(skip).ok().and_then(|skip| text.get(skip..)).unwrap_or_default();
    let count = rest.len().min(buffer.len());
    buffer[..count].copy_from_slice(&rest[..count]);
    count
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::testing;

    #[test]
    fn any_part_of_an_archive_is_what_nix_has_there() {
        let dir = tempfile::tempdir().unwrap();
        for name in testing::one_of_each(dir.path()) {
            let expected = testing::dump(&dir.path().join(name));
            let archive = Archive::of(File::open(dir.path()).unwrap().into(), OsStr::new(name)).unwrap();
            assert_eq!(archive.size(), expected.len() as u64, "{name}");
            let mut reader = archive.reader();
            for (length, step) in [(1, 1013), (7, 11), (100, 499), (5000, 3001), (1 << 20, 700_001)] {
                for at in (0..expected.len().saturating_sub(length).min(60_000)).step_by(step) {
                    let mut buffer = vec![0; length];
                    reader.read(at as u64, &mut buffer).unwrap();
                    assert!(buffer == expected[at..at + length], "{name}: {length} bytes at {at}");
                }
            }
            let mut whole = vec![0; expected.len()];
            reader.read(0, &mut whole).unwrap();
            assert!(whole == expected, "{name}");
        }
    }

    #[test]
    fn what_is_missing_or_shrinks_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str| Archive::of(File::open(dir.path()).unwrap().into(), OsStr::new(name));
        let error = of("gone").err().unwrap();
        assert_eq!(error.downcast_ref(), Some(&NarError::Missing("gone".into())));
        fs::create_dir(dir.path().join("tree")).unwrap();
        fs::write(dir.path().join("tree/file"), "longer").unwrap();
        let archive = of("tree").unwrap();
        fs::write(dir.path().join("tree/file"), "long").unwrap();
        let error = archive.reader().read(0, &mut vec![0; archive.size() as usize]).unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&NarError::Shrunk("tree/file".into())));
    }
}
