//! Initrds: archives in the newc form of cpio, as the kernel unpacks them.
//!
//! The same entries in the same order give the same bytes, always. What is written here ends at a
//! multiple of 512 bytes, so archives may follow each other; the kernel reads one after another.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

const MAGIC: &str = "070701";
const HEADER: u64 = 110;
const ALIGNMENT: u64 = 4;
// What cpio programs read at a time: one that stops at the trailer leaves the next archive whole.
const BLOCK: u64 = 512;
const TRAILER: &str = "TRAILER!!!";
// Sizes are eight hexadecimal digits.
const SIZE_LIMIT: u64 = u32::MAX as u64;
// What the kernel takes for a path, its NUL included.
const PATH_LIMIT: usize = 4096;
// As in the store: not 0, which some tools take for "unknown".
const MTIME: u32 = 1;
const PARENT_MODE: u32 = 0o755;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive that is being written to `W`. All of it belongs to root.
pub struct Archive<W> {
    out: W,
    written: u64,
    inode: u32,
    // With the mode of what is a directory.
    entries: BTreeMap<PathBuf, Option<u32>>,
}

/// What an entry is, beside its name.
#[derive(Default)]
struct Entry {
    inode: u32,
    mode: u32,
    links: u32,
    mtime: u32,
    size: u32,
    device: (u32, u32),
}

impl<W: Write> Archive<W> {
    /// Begins an archive. What `out` holds already must end at a multiple of four bytes.
    pub fn new(out: W) -> Archive<W> {
        Archive { out, written: 0, inode: 0, entries: BTreeMap::new() }
    }

    /// Adds a directory, or gives one that is there already its mode.
    pub fn dir(&mut self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let path = relative(path.as_ref())?;
        match self.entries.get(&path) {
            Some(Some(same)) if *same == mode => return Ok(()),
            Some(Some(_)) => {}
            _ => self.claim(&path)?,
        }
        self.entries.insert(path.clone(), Some(mode));
        self.entry(&path, Entry { mode: DIRECTORY | mode, links: 2, ..Entry::default() })
    }

    /// Adds a file of `len` bytes, which are read from `contents`.
    pub fn file(
        &mut self,
        path: impl AsRef<Path>,
        mode: u32,
        len: u64,
        mut contents: impl Read,
    ) -> Result<()> {
        let path = relative(path.as_ref())?;
        let shown = path.display();
        ensure!(len <= SIZE_LIMIT, "{shown} is too large for an initrd, which takes files below 4 GiB");
        self.claim(&path)?;
        self.entry(&path, Entry { mode: REGULAR | mode, links: 1, size: len as u32, ..Entry::default() })?;
        let copied = io::copy(&mut contents.by_ref().take(len), &mut self.out)
            .with_context(|| format!("copying {shown} into the initrd"))?;
        let more =
            contents.read(&mut [0]).with_context(|| format!("reading on behind the end of {shown}"))?;
        ensure!(copied == len && more == 0, "{shown} changed while it was read; try again");
        self.written += len;
        self.pad(ALIGNMENT)
    }

    /// Adds a symlink that says `target`.
    pub fn symlink(&mut self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<()> {
        let path = relative(path.as_ref())?;
        let target = target.as_ref().as_os_str().as_bytes();
        let fits = !target.is_empty() && target.len() < PATH_LIMIT && !target.contains(&0);
        ensure!(fits, "the symlink {} has an impossible target; point it elsewhere", path.display());
        self.claim(&path)?;
        let size = target.len() as u32;
        self.entry(&path, Entry { mode: SYMLINK | 0o777, links: 1, size, ..Entry::default() })?;
        self.write(target)?;
        self.pad(ALIGNMENT)
    }

    /// Adds a character device, such as the `/dev/console` that a first program has its words on.
    pub fn device(&mut self, path: impl AsRef<Path>, mode: u32, major: u32, minor: u32) -> Result<()> {
        let path = relative(path.as_ref())?;
        self.claim(&path)?;
        let device = (major, minor);
        self.entry(&path, Entry { mode: CHARACTER | mode, links: 1, device, ..Entry::default() })
    }

    /// Ends the archive and returns what it was written to.
    pub fn finish(mut self) -> Result<W> {
        self.header(TRAILER.as_bytes(), &Entry { links: 1, ..Entry::default() })?;
        self.pad(BLOCK)?;
        self.out.flush().context("writing the initrd")?;
        Ok(self.out)
    }

    /// Takes a new name, and makes the directories above it.
    fn claim(&mut self, path: &Path) -> Result<()> {
        ensure!(
            !self.entries.contains_key(path),
            "{} is in the initrd already; name it once",
            path.display()
        );
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            match self.entries.get(parent) {
                Some(Some(_)) => {}
                Some(None) => bail!(
                    "{} cannot be in the initrd: {} is no directory; choose another place",
                    path.display(),
                    parent.display()
                ),
                None => self.dir(parent, PARENT_MODE)?,
            }
        }
        self.entries.insert(path.to_owned(), None);
        Ok(())
    }

    fn entry(&mut self, path: &Path, entry: Entry) -> Result<()> {
        // A number of its own each, or what has the same number would be hard links of one file.
        self.inode += 1;
        self.header(path.as_os_str().as_bytes(), &Entry { inode: self.inode, mtime: MTIME, ..entry })
    }

    fn header(&mut self, name: &[u8], entry: &Entry) -> Result<()> {
        let Entry { inode, mode, links, mtime, size, device: (major, minor) } = *entry;
        let name_size = name.len() as u32 + 1;
        let fields = [inode, mode, 0, 0, links, mtime, size, 0, 0, major, minor, name_size, 0];
        let mut header = String::with_capacity(HEADER as usize);
        header.push_str(MAGIC);
        fields.iter().for_each(|field| header.push_str(&format!("{field:08x}")));
        self.write(header.as_bytes())?;
        self.write(name)?;
        self.write(&[0])?;
        self.pad(ALIGNMENT)
    }

    fn pad(&mut self, alignment: u64) -> Result<()> {
        let gap = self.written.next_multiple_of(alignment) - self.written;
        self.write(&[0; BLOCK as usize][..gap as usize])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).context("writing the initrd")?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// Returns a path as archives have it: without the first slash, and without detours.
fn relative(path: &Path) -> Result<PathBuf> {
    let plain = path.strip_prefix("/").unwrap_or(path);
    let normal = plain.components().all(|component| matches!(component, Component::Normal(_)));
    let bytes = plain.as_os_str().as_bytes();
    let fits = !bytes.is_empty() && bytes.len() < PATH_LIMIT && !bytes.contains(&0);
    let ends = bytes == TRAILER.as_bytes();
    ensure!(normal && fits && !ends, "{} is no path for an initrd; name it from its root", path.display());
    Ok(plain.components().collect())
}

#[cfg(test)]
mod tests;
