//! A root as a tar archive: store objects straight from a store, each checked on its way, amid other files.
//!
//! GNU's form, which every tar reads. Files that share their contents by hard links still do.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::sys::stat::FileStat;
use tar::{Builder, EntryType, Header};

use super::PathInfo;
use super::copy::{copy_error, expect, open_store};
use super::hash::Hashing;
use super::lanes::Digest;
use super::nar::{NarStream, Visitor};
use super::path::STORE_DIR;
use crate::progress::Progress;

const BLOCK: usize = 512;
// What the fields of a header hold; longer names precede it as an entry of their own.
const NAME_LIMIT: usize = 100;
// Of a store object's files and links; what is not executable has fewer bits.
const OBJECT_MODE: u32 = 0o555;
const LINK_MODE: u32 = 0o777;
const OBJECT_TIME: u64 = 1;
// Large enough for the calls not to count.
const BUFFER: usize = 256 << 10;

type Inode = (u64, u64);

/// An archive that is being written.
pub struct Tarball<W: Write> {
    out: Builder<W>,
    // Where a file with several names was put first.
    links: HashMap<Inode, Vec<u8>>,
}

/// Who owns an entry, what may be done with it, and when it was changed.
#[derive(Clone, Copy)]
struct Look {
    mode: u32,
    owner: (u64, u64),
    time: u64,
}

const OBJECT: Look = Look { mode: OBJECT_MODE, owner: (0, 0), time: OBJECT_TIME };

impl<W: Write> Tarball<W> {
    pub fn new(out: W) -> Tarball<W> {
        Tarball { out: Builder::new(out), links: HashMap::new() }
    }

    /// Writes a whole root: the tree at `root`, with the objects `paths` of the root `from` in its store.
    ///
    /// Directories and links get the time `time`, files have their own.
    pub fn root(
        &mut self,
        root: &Path,
        time: u64,
        paths: &[PathInfo],
        from: &Path,
        progress: &dyn Progress,
    ) -> Result<()> {
        let objects = Objects { paths, from, progress };
        self.directory(root, Path::new(""), time, &objects)
    }

    /// Ends the archive and returns what it was written to.
    pub fn finish(self) -> Result<W> {
        self.out.into_inner().context("ending the archive")
    }

    fn directory(&mut self, root: &Path, place: &Path, time: u64, objects: &Objects) -> Result<()> {
        let whole = root.join(place);
        let reading = || format!("reading {}", whole.display());
        let meta = fs::symlink_metadata(&whole).with_context(reading)?;
        let name = if place == Path::new("") { "./".into() } else { [name(place), b"/"].concat() };
        self.entry(EntryType::Directory, &name, b"", look(&meta, time), 0)?;
        if place == Path::new(&STORE_DIR[1..]) {
            return objects.write(self);
        }
        let entries = fs::read_dir(&whole).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut names: Vec<_> = entries.with_context(reading)?.iter().map(fs::DirEntry::file_name).collect();
        names.sort();
        for name in names {
            let place = place.join(name);
            let kind = fs::symlink_metadata(root.join(&place)).with_context(reading)?;
            match kind.is_dir() {
                true => self.directory(root, &place, time, objects)?,
                false => self.other(root, &place, &kind, time)?,
            }
        }
        Ok(())
    }

    fn other(&mut self, root: &Path, place: &Path, meta: &Metadata, time: u64) -> Result<()> {
        let whole = root.join(place);
        let adding = || format!("adding {} to the archive", place.display());
        if meta.is_symlink() {
            let target = fs::read_link(&whole).with_context(adding)?;
            let look = Look { mode: LINK_MODE, ..look(meta, time) };
            return self.entry(EntryType::Symlink, name(place), name(&target), look, 0);
        }
        if !meta.is_file() {
            bail!("{} is neither a file nor a link nor a directory; leave it out", place.display());
        }
        let look = look(meta, u64::try_from(meta.mtime()).unwrap_or(0));
        if meta.nlink() > 1 && self.linked((meta.dev(), meta.ino()), name(place), look)? {
            return Ok(());
        }
        self.entry(EntryType::Regular, name(place), b"", look, meta.len())?;
        let copied = File::open(&whole).and_then(|mut file| io::copy(&mut file, self.out.get_mut()));
        if copied.with_context(adding)? != meta.len() {
            bail!("{} changed while it was read; run the command again", place.display());
        }
        self.pad(meta.len())
    }

    /// Writes an entry for a file that is in the archive by another name; or remembers it.
    fn linked(&mut self, inode: Inode, name: &[u8], look: Look) -> Result<bool> {
        match self.links.get(&inode).cloned() {
            Some(first) => self.entry(EntryType::Link, name, &first, look, 0).map(|()| true),
            None => {
                self.links.insert(inode, name.to_vec());
                Ok(false)
            }
        }
    }

    fn entry(&mut self, kind: EntryType, name: &[u8], link: &[u8], look: Look, size: u64) -> Result<()> {
        for (long, kind) in [(link, EntryType::GNULongLink), (name, EntryType::GNULongName)] {
            if long.len() > NAME_LIMIT {
                let mut header = Header::new_gnu();
                header.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
                header.set_entry_type(kind);
                header.set_mode(0o644);
                header.set_size(long.len() as u64 + 1);
                self.append(header, &[long, b"\0"].concat())?;
            }
        }
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        put(&mut old.name, name);
        put(&mut old.linkname, link);
        header.set_entry_type(kind);
        header.set_mode(look.mode);
        header.set_uid(look.owner.0);
        header.set_gid(look.owner.1);
        header.set_mtime(look.time);
        header.set_size(size);
        self.append(header, b"")
    }

    fn append(&mut self, mut header: Header, contents: &[u8]) -> Result<()> {
        header.set_cksum();
        self.out.append(&header, contents).context("writing the archive")
    }

    /// Fills up the last block of a file of so many bytes.
    fn pad(&mut self, size: u64) -> Result<()> {
        let rest = (size.wrapping_neg() % BLOCK as u64) as usize;
        self.out.get_mut().write_all(&[0; BLOCK][..rest]).context("writing the archive")
    }
}

fn look(meta: &Metadata, time: u64) -> Look {
    Look { mode: meta.mode() & 0o7777, owner: (meta.uid().into(), meta.gid().into()), time }
}

fn name(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn put(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

/// What is in the store of the archived root.
struct Objects<'a> {
    paths: &'a [PathInfo],
    from: &'a Path,
    progress: &'a dyn Progress,
}

impl Objects<'_> {
    fn write<W: Write>(&self, tarball: &mut Tarball<W>) -> Result<()> {
        let store = open_store(self.from)?;
        let mut sorted: Vec<&PathInfo> = self.paths.iter().collect();
        sorted.sort_by_key(|info| &info.path);
        let mut buffer = vec![0; BUFFER];
        sorted.into_iter().try_for_each(|info| self.object(&store, info, tarball, &mut buffer))
    }

    fn object<W: Write>(
        &self,
        store: &OwnedFd,
        info: &PathInfo,
        tarball: &mut Tarball<W>,
        buffer: &mut [u8],
    ) -> Result<()> {
        let place = [&STORE_DIR.as_bytes()[1..], b"/"].concat();
        let visitor = Entries { tarball, place, size: None };
        let mut nar = NarStream::new(store.as_fd(), OsStr::new(info.path.base_name()), visitor);
        let mut hashing = Hashing::new(io::sink());
        loop {
            let count = nar.pull(buffer).map_err(|error| copy_error(error, &info.path))?;
            hashing.write_all(&buffer[..count]).context("hashing")?;
            self.progress.advance(count as u64);
            if count < buffer.len() {
                break;
            }
        }
        let (hash, size) = hashing.finish();
        expect(info, Digest { hash, size }).context("archiving the store")
    }
}

/// Writes a tree as entries while it is read.
struct Entries<'a, W: Write> {
    tarball: &'a mut Tarball<W>,
    // The directory being read, with a slash at its end.
    place: Vec<u8>,
    // Of the file whose bytes follow, unless they are in the archive already.
    size: Option<u64>,
}

impl<W: Write> Entries<'_, W> {
    fn at(&self, name: &CStr) -> Vec<u8> {
        [&self.place, name.to_bytes()].concat()
    }
}

impl<W: Write> Visitor for Entries<'_, W> {
    fn directory(&mut self, name: &CStr, _: BorrowedFd) -> Result<()> {
        self.place = [&self.at(name), &b"/"[..]].concat();
        self.tarball.entry(EntryType::Directory, &self.place, b"", OBJECT, 0)
    }

    fn leave(&mut self) -> Result<()> {
        self.place.pop();
        let end = self.place.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
        self.place.truncate(end);
        Ok(())
    }

    fn symlink(&mut self, name: &CStr, target: &OsStr, _: BorrowedFd) -> Result<()> {
        let look = Look { mode: LINK_MODE, ..OBJECT };
        self.tarball.entry(EntryType::Symlink, &self.at(name), target.as_bytes(), look, 0)
    }

    fn file(&mut self, name: &CStr, _: &File, stat: &FileStat) -> Result<()> {
        let name = self.at(name);
        let executable = stat.st_mode & libc::S_IXUSR != 0;
        let look = Look { mode: if executable { OBJECT_MODE } else { OBJECT_MODE & !0o111 }, ..OBJECT };
        let size = u64::try_from(stat.st_size).context("reading a file's size")?;
        // Empty files have nothing to share, and in an optimised store they would all be one.
        if stat.st_nlink > 1 && size > 0 && self.tarball.linked((stat.st_dev, stat.st_ino), &name, look)? {
            self.size = None;
            return Ok(());
        }
        self.size = Some(size);
        self.tarball.entry(EntryType::Regular, &name, b"", look, size)
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        match self.size {
            Some(_) => self.tarball.out.get_mut().write_all(bytes).context("writing the archive"),
            None => Ok(()),
        }
    }

    fn end_file(&mut self) -> Result<()> {
        self.size.take().map_or(Ok(()), |size| self.tarball.pad(size))
    }
}
