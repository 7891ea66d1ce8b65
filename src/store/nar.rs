//! NAR, the archive format whose SHA-256 names a store object's contents.
//!
//! A NAR is a sequence of strings: a little-endian u64 length, the bytes, zeros up to a multiple
//! of 8. In EBNF, with each word such a string:
//!
//! ```text
//! archive   = "nix-archive-1" node
//! node      = "(" "type" ( regular | symlink | directory ) ")"
//! regular   = "regular" [ "executable" "" ] "contents" BYTES
//! symlink   = "symlink" "target" BYTES
//! directory = "directory" { "entry" "(" "name" NAME "node" node ")" }   names ascending by bytes
//! ```
//!
//! [`NarStream`] turns a tree into an archive as it is pulled and shows a [`Visitor`] what it
//! meets, so that one read serves hash, copy and checks. [`restore`] goes the other way and takes
//! its input for hostile.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use nix::dir::Type;
use nix::errno::Errno;
use nix::libc;
use nix::sys::stat::FileStat;

use super::tree::{self, Builder};

pub(super) const MAGIC: &[u8] = b"nix-archive-1";

// What current Nix accepts; what is longer or deeper can only be meant to hurt.
const NAME_LIMIT: u64 = 255;
const TARGET_LIMIT: u64 = 4095;
pub(super) const DEPTH_LIMIT: usize = 64;
const WORD_LIMIT: u64 = 32;

/// Large enough that a call's cost does not matter, small enough that 16 lanes fit a processor's cache.
pub const CHUNK: u64 = 32 << 10;

/// An archive that is none, or a tree that has none.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum NarError {
    #[error("{0:?} is missing")]
    Missing(PathBuf),
    #[error("{0:?} is a {1}, which a store cannot hold; delete it there and repair its store path")]
    OddFile(PathBuf, &'static str),
    #[error("{0:?} became shorter while it was read")]
    Shrunk(PathBuf),
    #[error("the archive ends too early")]
    Truncated,
    #[error("the archive is damaged: {0}")]
    Bad(&'static str),
}

/// Sees every object of a tree in archive order: a directory before its entries, a file before its bytes.
pub trait Visitor {
    fn directory(&mut self, _name: &CStr, _source: BorrowedFd) -> Result<()> {
        Ok(())
    }
    /// The directory entered last is complete.
    fn leave(&mut self) -> Result<()> {
        Ok(())
    }
    fn symlink(&mut self, _name: &CStr, _target: &OsStr, _parent: BorrowedFd) -> Result<()> {
        Ok(())
    }
    fn file(&mut self, _name: &CStr, _source: &File, _stat: &FileStat) -> Result<()> {
        Ok(())
    }
    fn data(&mut self, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
    fn end_file(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Looks at nothing.
pub struct Nothing;

impl Visitor for Nothing {}

/// The archive of one tree, made piece by piece.
pub struct NarStream<D, V> {
    root: D,
    name: CString,
    pub visitor: V,
    stack: Vec<Frame>,
    file: Option<Reading>,
    framing: Vec<u8>,
    framed: usize,
    state: State,
}

struct Frame {
    dir: OwnedFd,
    entries: Vec<tree::Entry>,
    next: usize,
}

struct Reading {
    file: File,
    size: u64,
    at: u64,
}

#[derive(PartialEq)]
enum State {
    Fresh,
    Running,
    Ended,
}

impl<D: AsFd, V: Visitor> NarStream<D, V> {
    /// Makes the archive of `name` in the directory `root`. Nothing is opened before the first pull.
    pub fn new(root: D, name: &OsStr, visitor: V) -> Self {
        NarStream {
            root,
            name: CString::new(name.as_bytes()).expect("a store path holds no NUL"),
            visitor,
            stack: Vec::new(),
            file: None,
            framing: Vec::new(),
            framed: 0,
            state: State::Fresh,
        }
    }

    /// Fills `buffer` with what comes next. Fewer bytes than asked for means the archive has ended.
    pub fn pull(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let space = &mut buffer[filled..];
            if self.framed < self.framing.len() {
                let rest = &self.framing[self.framed..];
                let count = rest.len().min(space.len());
                space[..count].copy_from_slice(&rest[..count]);
                self.framed += count;
                filled += count;
                continue;
            }
            self.framing.clear();
            self.framed = 0;
            if self.file.is_some() {
                filled += self.contents(space)?;
                continue;
            }
            match self.state {
                State::Ended => break,
                State::Fresh => {
                    self.state = State::Running;
                    word(&mut self.framing, MAGIC);
                    let entry = tree::Entry { name: self.name.clone(), kind: None };
                    self.node(&entry)?;
                }
                State::Running => self.advance()?,
            }
        }
        Ok(filled)
    }

    // Reads up to the next multiple of CHUNK, so that zeros and pages keep their boundaries in the copy.
    fn contents(&mut self, space: &mut [u8]) -> Result<usize> {
        let reading = self.file.as_mut().expect("the caller looked");
        if reading.at == reading.size {
            let size = reading.size;
            self.file = None;
            self.visitor.end_file().with_context(|| format!("copying {:?}", self.place()))?;
            self.framing.extend_from_slice(&[0; 8][..padding(size)]);
            self.close();
            return Ok(0);
        }
        let wanted = (reading.size - reading.at).min(CHUNK - reading.at % CHUNK).min(space.len() as u64);
        let piece = &mut space[..wanted as usize];
        let count = loop {
            match reading.file.read(piece) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                other => break other,
            }
        };
        let count = count.with_context(|| format!("reading {:?}", self.place()))?;
        if count == 0 {
            bail!(NarError::Shrunk(self.place()));
        }
        self.file.as_mut().expect("set above").at += count as u64;
        self.visitor.data(&piece[..count]).with_context(|| format!("copying {:?}", self.place()))?;
        Ok(count)
    }

    fn advance(&mut self) -> Result<()> {
        let Some(frame) = self.stack.last_mut() else {
            self.state = State::Ended;
            return Ok(());
        };
        if let Some(entry) = frame.entries.get_mut(frame.next) {
            // The name stays behind for `place`.
            let entry = tree::Entry { name: entry.name.clone(), kind: entry.kind };
            frame.next += 1;
            for text in [&b"entry"[..], b"(", b"name", entry.name.to_bytes(), b"node"] {
                word(&mut self.framing, text);
            }
            return self.node(&entry);
        }
        self.visitor.leave().with_context(|| format!("copying {:?}", self.place()))?;
        self.stack.pop();
        self.close();
        Ok(())
    }

    fn node(&mut self, entry: &tree::Entry) -> Result<()> {
        let result = self.describe(entry);
        match result.as_ref().err().and_then(|error| error.downcast_ref::<Errno>()) {
            Some(Errno::ENOENT) if self.stack.is_empty() => bail!(NarError::Missing(self.place())),
            Some(Errno::ELOOP | Errno::ENXIO) => bail!(NarError::OddFile(self.place(), "changing file")),
            _ => result,
        }
    }

    fn describe(&mut self, entry: &tree::Entry) -> Result<()> {
        let place = |stream: &Self| format!("reading {:?}", stream.place());
        let parent = self.stack.last().map_or(self.root.as_fd(), |frame| frame.dir.as_fd());
        let name = entry.name.as_c_str();
        let kind = match entry.kind {
            Some(kind) => kind,
            None => tree::kind(parent, name).with_context(|| place(self))?,
        };
        word(&mut self.framing, b"(");
        word(&mut self.framing, b"type");
        match kind {
            Type::File => {
                let file = tree::open_file(parent, name).with_context(|| place(self))?;
                let stat = nix::sys::stat::fstat(&file).with_context(|| place(self))?;
                if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
                    bail!(NarError::OddFile(self.place(), "changing file"));
                }
                let size = u64::try_from(stat.st_size).context("reading a file's size")?;
                word(&mut self.framing, b"regular");
                if stat.st_mode & libc::S_IXUSR != 0 {
                    word(&mut self.framing, b"executable");
                    word(&mut self.framing, b"");
                }
                word(&mut self.framing, b"contents");
                self.framing.extend_from_slice(&size.to_le_bytes());
                self.visitor
                    .file(name, &file, &stat)
                    .with_context(|| format!("copying {:?}", self.place()))?;
                self.file = Some(Reading { file, size, at: 0 });
            }
            Type::Symlink => {
                let target = nix::fcntl::readlinkat(parent, name).with_context(|| place(self))?;
                self.visitor
                    .symlink(name, &target, parent)
                    .with_context(|| format!("copying {:?}", self.place()))?;
                for text in [&b"symlink"[..], b"target", target.as_bytes()] {
                    word(&mut self.framing, text);
                }
                self.close();
            }
            Type::Directory => {
                let dir = tree::open_dir(parent, name).with_context(|| place(self))?;
                let (dir, entries) = tree::list(dir).with_context(|| place(self))?;
                word(&mut self.framing, b"directory");
                self.visitor
                    .directory(name, dir.as_fd())
                    .with_context(|| format!("copying {:?}", self.place()))?;
                self.stack.push(Frame { dir, entries, next: 0 });
            }
            odd => bail!(NarError::OddFile(self.place(), tree::kind_name(odd))),
        }
        Ok(())
    }

    // The end of a node, and of the entry it stands in.
    fn close(&mut self) {
        word(&mut self.framing, b")");
        if !self.stack.is_empty() {
            word(&mut self.framing, b")");
        }
    }

    // Where the stream is, from the store object down, for errors.
    fn place(&self) -> PathBuf {
        let mut place = PathBuf::from(OsStr::from_bytes(self.name.to_bytes()));
        for frame in &self.stack {
            if let Some(entry) = frame.next.checked_sub(1).and_then(|at| frame.entries.get(at)) {
                place.push(OsStr::from_bytes(entry.name.to_bytes()));
            }
        }
        place
    }
}

pub(super) fn word(framing: &mut Vec<u8>, bytes: &[u8]) {
    framing.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    framing.extend_from_slice(bytes);
    framing.extend_from_slice(&[0; 8][..padding(bytes.len() as u64)]);
}

pub(super) fn padding(length: u64) -> usize {
    (length.wrapping_neg() % 8) as usize
}

/// Restores the archive in `input`, to its very end, as `name` in the directory `parent`.
///
/// What was written before an error stays; the caller writes below a directory it can throw away.
pub fn restore(input: impl Read, parent: OwnedFd, name: &OsStr) -> Result<()> {
    let mut parser = Parser { input, builder: Builder::new(parent, false) };
    if parser.string(WORD_LIMIT)? != MAGIC {
        bail!(NarError::Bad("it does not begin as a NAR does"));
    }
    let name = CString::new(name.as_bytes()).context("naming the tree")?;
    parser.node(&name, 0)?;
    match parser.input.read(&mut [0]).context("reading an archive")? {
        0 => Ok(()),
        _ => bail!(NarError::Bad("something follows its end")),
    }
}

struct Parser<R> {
    input: R,
    builder: Builder,
}

impl<R: Read> Parser<R> {
    fn node(&mut self, name: &CStr, depth: usize) -> Result<()> {
        if depth > DEPTH_LIMIT {
            bail!(NarError::Bad("directories are nested too deeply"));
        }
        self.expect(b"(")?;
        self.expect(b"type")?;
        match self.string(WORD_LIMIT)?.as_slice() {
            b"regular" => self.regular(name),
            b"symlink" => {
                self.expect(b"target")?;
                let target = self.string(TARGET_LIMIT)?;
                if target.is_empty() || target.contains(&0) {
                    bail!(NarError::Bad("a symlink has an impossible target"));
                }
                self.builder.symlink(name, &OsString::from_vec(target))?;
                self.expect(b")")
            }
            b"directory" => self.directory(name, depth),
            _ => bail!(NarError::Bad("a node has an unknown type")),
        }
    }

    fn regular(&mut self, name: &CStr) -> Result<()> {
        let mut text = self.string(WORD_LIMIT)?;
        let executable = text == b"executable";
        if executable {
            self.expect(b"")?;
            text = self.string(WORD_LIMIT)?;
        }
        if text != b"contents" {
            bail!(NarError::Bad("a file has no contents"));
        }
        let size = self.length()?;
        self.builder.file(name, executable)?;
        let mut left = size;
        let mut buffer = vec![0; CHUNK.min(size) as usize];
        while left > 0 {
            let piece = &mut buffer[..CHUNK.min(left) as usize];
            self.fill(piece)?;
            self.builder.data(piece)?;
            left -= piece.len() as u64;
        }
        self.builder.end_file()?;
        self.pad(size)?;
        self.expect(b")")
    }

    fn directory(&mut self, name: &CStr, depth: usize) -> Result<()> {
        self.builder.directory(name)?;
        let mut last: Option<CString> = None;
        loop {
            match self.string(WORD_LIMIT)?.as_slice() {
                b")" => return self.builder.leave(),
                b"entry" => (),
                _ => bail!(NarError::Bad("a directory holds something other than entries")),
            }
            self.expect(b"(")?;
            self.expect(b"name")?;
            let entry = self.string(NAME_LIMIT)?;
            if entry.is_empty() || entry == b"." || entry == b".." || entry.contains(&b'/') {
                bail!(NarError::Bad("an entry has an impossible name"));
            }
            let Ok(entry) = CString::new(entry) else {
                bail!(NarError::Bad("an entry has an impossible name"))
            };
            if last.is_some_and(|last| last >= entry) {
                bail!(NarError::Bad("entries are not in order"));
            }
            self.expect(b"node")?;
            self.node(&entry, depth + 1)?;
            self.expect(b")")?;
            last = Some(entry);
        }
    }

    fn expect(&mut self, text: &[u8]) -> Result<()> {
        if self.string(WORD_LIMIT)? != text {
            bail!(NarError::Bad("a word is out of place"));
        }
        Ok(())
    }

    fn string(&mut self, limit: u64) -> Result<Vec<u8>> {
        let length = self.length()?;
        if length > limit {
            bail!(NarError::Bad("a string is too long"));
        }
        let mut text = vec![0; length as usize];
        self.fill(&mut text)?;
        self.pad(length)?;
        Ok(text)
    }

    fn length(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn pad(&mut self, length: u64) -> Result<()> {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..padding(length)];
        self.fill(bytes)?;
        if bytes.iter().any(|&byte| byte != 0) {
            bail!(NarError::Bad("padding is not zero"));
        }
        Ok(())
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        match self.input.read_exact(bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => bail!(NarError::Truncated),
            other => other.context("reading an archive"),
        }
    }
}

#[cfg(test)]
mod tests;
