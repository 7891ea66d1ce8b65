//! The copy engine: store objects from one root to another, each byte checked on its way.
//!
//! An object is written below a hidden directory of the target store while its NAR is hashed, and
//! renamed into place once the hash is what the database says. What an interrupted run left in
//! place is hashed again and kept if it is right. Registering comes after, in [`super::db`].

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, openat, renameat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, getegid, geteuid, linkat, syncfs, unlinkat};

use super::PathInfo;
use super::flush::Flush;
use super::hash::NarHash;
use super::lanes::{self, Digest, Stream, Work};
use super::nar::{NarError, NarStream, Visitor};
use super::path::StorePath;
use super::tree::{self, Builder};
use crate::progress::{Event, Progress};
use crate::size::Bytes;

// Below this a copy is as cheap, and some file systems keep such files inside their inodes.
const REFLINK_FROM: i64 = 4096;

const STAGING: &CStr = c".install-via-staging";
const RELINK: &CStr = c".link";

// NixOS gives this id to `nixbld`, whose members may add to the store but not delete from it.
const BUILD_USERS: u32 = 30000;
const STORE_MODE: u32 = 0o1775;

/// Why a store path was not copied, where it is the path's own fault.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum CopyError {
    #[error(
        "{path} is damaged: its NAR has {found} and {found_size} bytes, the database says {expected} and \
         {expected_size}; repair it with nix-store --repair-path {path}"
    )]
    Corrupted { path: StorePath, expected: NarHash, expected_size: u64, found: NarHash, found_size: u64 },
    #[error("{path} is missing though the database knows it; repair it with nix-store --repair-path {path}")]
    Missing { path: StorePath },
    #[error("another copy into {store} is under way; wait for it to end")]
    Busy { store: String },
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Paths written.
    pub copied: usize,
    /// Paths that were in place and right.
    pub kept: usize,
    /// The NAR sizes of the paths written.
    pub bytes: Bytes,
}

/// Copies `paths` from the store of the root `from` into that of the root `to` and syncs it.
///
/// Nothing is registered. On an error the paths published so far stay, whole, for the next run.
pub fn closure(paths: &[PathInfo], from: &Path, to: &Path, progress: &dyn Progress) -> Result<Copied> {
    let source = open_store(from)?;
    let store = make_store(to)?;
    let staging = Staging::new(store.as_fd(), to)?;
    let total: Bytes = paths.iter().map(|info| info.nar_size).sum();
    progress.event(Event::Start { total });
    let shared_from = if is_optimised(source.as_fd())? { 3 } else { 2 };
    let mut queue: Vec<usize> = (0..paths.len()).collect();
    queue.sort_by_key(|&index| std::cmp::Reverse(paths[index].nar_size));
    let target = Target {
        store: store.as_fd(),
        staging: staging.dir.as_fd(),
        exact_modes: tree::exact_modes(staging.dir.as_fd()).context("preparing the target store")?,
        shared_from,
        shared: Mutex::default(),
        reflink: AtomicBool::new(true),
    };
    let copier = Copier {
        paths,
        queue: Mutex::new(queue.into()),
        source: source.as_fd(),
        target: &target,
        copied: AtomicUsize::new(0),
        kept: AtomicUsize::new(0),
        bytes: AtomicU64::new(0),
        flush: Flush::default(),
        progress,
    };
    let syncing = || format!("syncing {}", to.display());
    // Opened again: of an error in writing out, each open file description is told.
    let flushed =
        openat(&store, c".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).with_context(syncing)?;
    copier.flush.beside(&flushed, || lanes::run(&copier, total.0)).with_context(syncing)??;
    let copied = Copied {
        copied: copier.copied.into_inner(),
        kept: copier.kept.into_inner(),
        bytes: Bytes(copier.bytes.into_inner()),
    };
    staging.finish()?;
    syncfs(&store).with_context(syncing)?;
    progress.event(Event::Finish);
    Ok(copied)
}

/// Returns the room `paths` take on a target with blocks of 4 KiB, by a look at every file.
pub fn space_needed(paths: &[PathInfo], from: &Path) -> Result<Bytes> {
    // An inode of ext4 with default options; other file systems need less or about as much.
    const INODE: Bytes = Bytes(256);
    fn measure(parent: BorrowedFd, name: &CStr, seen: &mut HashSet<Inode>) -> Result<Bytes> {
        let stat = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let own = INODE + Bytes(stat.st_size.max(0).cast_unsigned());
        match stat.st_mode & libc::S_IFMT {
            // A short symlink lives in its inode.
            libc::S_IFLNK if stat.st_size < 60 => Ok(INODE),
            libc::S_IFDIR => {
                let (dir, entries) = tree::list(tree::open_dir(parent, name)?)?;
                let names: usize = entries.iter().map(|entry| entry.name.count_bytes() + 12).sum();
                let size = INODE + Bytes(names as u64 + 1).round_up(Bytes::kib(4));
                entries.iter().try_fold(size, |sum, entry| Ok(sum + measure(dir.as_fd(), &entry.name, seen)?))
            }
            // The other names of a shared file take no room of their own.
            _ if stat.st_nlink > 2 && !seen.insert((stat.st_dev, stat.st_ino)) => Ok(Bytes(0)),
            _ => Ok(own.round_up(Bytes::kib(4)) + INODE),
        }
    }
    let store = open_store(from)?;
    let mut seen = HashSet::new();
    paths.iter().try_fold(Bytes(0), |sum, info| {
        let size = measure(store.as_fd(), &c_name(&info.path), &mut seen);
        Ok(sum + size.with_context(|| format!("measuring {}", info.path))?)
    })
}

/// Opens the store directory of a root.
pub fn open_store(root: &Path) -> Result<OwnedFd> {
    let store = root.join("nix/store");
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(&store, flags, Mode::empty()).with_context(|| format!("opening {}", store.display()))
}

pub(super) fn c_name(path: &StorePath) -> CString {
    CString::new(path.base_name()).expect("a store path holds no NUL")
}

// No step may be a symlink: an absolute one would lead out of the root and into our own store.
pub(super) fn make_store(root: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut dir: OwnedFd = File::open(root).with_context(|| format!("opening {}", root.display()))?.into();
    for name in [c"nix", c"store"] {
        let making = || format!("making nix/store in {}", root.display());
        let made = match mkdirat(&dir, name, Mode::S_IRWXU) {
            Err(Errno::EEXIST) => false,
            other => other.map(|()| true).with_context(making)?,
        };
        dir = openat(&dir, name, flags, Mode::empty()).with_context(making)?;
        if made {
            fchmod(&dir, Mode::from_bits_truncate(0o755)).with_context(making)?;
        }
    }
    let stat = fstat(&dir).context("looking at the target store")?;
    let done = stat.st_mode & 0o7777 == STORE_MODE && stat.st_gid == BUILD_USERS && stat.st_uid == 0;
    if geteuid().is_root() && !done {
        fchown(&dir, Some(Uid::from_raw(0)), Some(Gid::from_raw(BUILD_USERS)))
            .and_then(|()| fchmod(&dir, Mode::from_bits_truncate(STORE_MODE)))
            .context("setting owner and mode of the target store")?;
    }
    Ok(dir)
}

// In an optimised store every file has a second name in `.links`.
fn is_optimised(store: BorrowedFd) -> Result<bool> {
    match tree::open_dir(store, c".links") {
        Err(Errno::ENOENT) => Ok(false),
        dir => tree::is_empty(dir.context("opening .links")?).map(|empty| !empty).context("reading .links"),
    }
}

/// Where objects are while they are incomplete; gone when the copy is over, however it ends.
pub(super) struct Staging {
    store: OwnedFd,
    pub(super) dir: Flock<OwnedFd>,
    gone: bool,
}

impl Staging {
    pub(super) fn new(store: BorrowedFd, root: &Path) -> Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let making = || format!("making a directory in {}/nix/store", root.display());
        match mkdirat(store, STAGING, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => (),
            Err(error) => return Err(error).with_context(making),
        }
        let dir = openat(store, STAGING, flags, Mode::empty()).with_context(making)?;
        let dir = match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            Err((_, Errno::EWOULDBLOCK)) => {
                bail!(CopyError::Busy { store: root.join("nix/store").display().to_string() })
            }
            other => other.map_err(|(_, error)| error).with_context(making)?,
        };
        // What is made inside must not inherit a group or an access list from the store directory.
        if geteuid().is_root() {
            fchown(&*dir, Some(geteuid()), Some(getegid())).with_context(making)?;
        }
        fchmod(&*dir, Mode::S_IRWXU).with_context(making)?;
        crate::sys::file::remove_default_acl(dir.as_fd()).with_context(making)?;
        let staging = Staging { store: store.try_clone_to_owned().with_context(making)?, dir, gone: false };
        staging.clear()?;
        Ok(staging)
    }

    fn clear(&self) -> Result<()> {
        let dir = self.dir.try_clone().context("copying a descriptor")?;
        let (dir, entries) = tree::list(dir).context("reading the staging directory")?;
        entries.iter().try_for_each(|entry| tree::remove(dir.as_fd(), &entry.name))
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.gone = true;
        self.clear()?;
        unlinkat(&self.store, STAGING, UnlinkatFlags::RemoveDir).context("removing the staging directory")
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.gone {
            // The error that brought us here tells more than what this could say.
            let _ = self.clear();
            let _ = unlinkat(&self.store, STAGING, UnlinkatFlags::RemoveDir);
        }
    }
}

struct Copier<'a> {
    paths: &'a [PathInfo],
    // Largest first, for the last ones to end together.
    queue: Mutex<VecDeque<usize>>,
    source: BorrowedFd<'a>,
    target: &'a Target<'a>,
    copied: AtomicUsize,
    kept: AtomicUsize,
    bytes: AtomicU64,
    flush: Flush,
    progress: &'a dyn Progress,
}

/// What all streams know of the target.
struct Target<'a> {
    store: BorrowedFd<'a>,
    staging: BorrowedFd<'a>,
    exact_modes: bool,
    // The link count from which a file has another user than itself and `.links`.
    shared_from: u64,
    // Files of published paths whose source is linked elsewhere too: source inode to target name.
    shared: Mutex<HashMap<Inode, CString>>,
    // Whether the file systems may yet turn out to share extents.
    reflink: AtomicBool,
}

type Inode = (u64, u64);

/// The stream of one path: written to the target, or compared with what is there.
enum Job<'a> {
    Copy { index: usize, size: u64, stream: NarStream<BorrowedFd<'a>, Tee<'a>> },
    Check { index: usize, size: u64, stream: NarStream<BorrowedFd<'a>, Metadata> },
}

impl Stream for Job<'_> {
    fn pull(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Job::Copy { stream, .. } => stream.pull(buffer),
            Job::Check { stream, .. } => stream.pull(buffer),
        }
    }

    fn expected(&self) -> u64 {
        match self {
            Job::Copy { size, .. } | Job::Check { size, .. } => *size,
        }
    }
}

impl<'a> Work for Copier<'a> {
    type Stream = Job<'a>;

    fn next(&self) -> Result<Option<Job<'a>>> {
        self.flush.failed().context("writing out")?;
        let index = self.queue.lock().expect("no worker panics with it").pop_front();
        index.map(|index| self.job(index)).transpose()
    }

    fn done(&self, job: Job<'a>, digest: Result<Digest>) -> Result<()> {
        match job {
            Job::Check { index, stream, .. } => {
                let info = &self.paths[index];
                if stream.visitor.flaw.is_none() && digest.is_ok_and(|digest| expect(info, digest).is_ok()) {
                    self.kept.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                tree::remove(self.target.store, &c_name(&info.path))
                    .with_context(|| format!("removing what an earlier run left of {}", info.path))?;
                self.queue.lock().expect("no worker panics with it").push_front(index);
                Ok(())
            }
            Job::Copy { index, stream, .. } => {
                let info = &self.paths[index];
                let digest = digest.map_err(|error| copy_error(error, &info.path))?;
                expect(info, digest)?;
                stream
                    .visitor
                    .publish(&c_name(&info.path))
                    .with_context(|| format!("publishing {}", info.path))?;
                self.copied.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(info.nar_size.0, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    fn advance(&self, bytes: u64) {
        self.flush.wrote(bytes);
        self.progress.advance(bytes);
    }
}

impl<'a> Copier<'a> {
    fn job(&self, index: usize) -> Result<Job<'a>> {
        let (path, size) = (&self.paths[index].path, self.paths[index].nar_size.0);
        let name = OsStr::new(path.base_name());
        if fstatat(self.target.store, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok() {
            let visitor = Metadata::new((geteuid().as_raw(), getegid().as_raw()));
            return Ok(Job::Check { index, size, stream: NarStream::new(self.target.store, name, visitor) });
        }
        Ok(Job::Copy { index, size, stream: NarStream::new(self.source, name, Tee::new(self.target)?) })
    }
}

/// Compares what was hashed with what should have been.
pub(super) fn expect(info: &PathInfo, digest: Digest) -> Result<(), CopyError> {
    if digest.hash == info.nar_hash && digest.size == info.nar_size.0 {
        return Ok(());
    }
    Err(CopyError::Corrupted {
        path: info.path.clone(),
        expected: info.nar_hash,
        expected_size: info.nar_size.0,
        found: digest.hash,
        found_size: digest.size,
    })
}

/// Tells a path that is missing from one that could not be read.
pub(super) fn copy_error(error: anyhow::Error, path: &StorePath) -> anyhow::Error {
    match error.downcast_ref::<NarError>() {
        // Only the object itself: a name that vanished below it is a tree that changes while it is read.
        Some(NarError::Missing(_)) => CopyError::Missing { path: path.clone() }.into(),
        _ => error.context(format!("copying {path}")),
    }
}

/// Writes a tree while it is read.
struct Tee<'a> {
    builder: Builder,
    target: &'a Target<'a>,
    // The directory being filled, seen from the staging directory.
    place: Vec<u8>,
    // Where in this path a shared file is, by all the names it has here.
    shared: HashMap<Inode, Vec<CString>>,
    filling: Filling,
}

/// Where a file's bytes go.
enum Filling {
    Written,
    /// The kernel has shared the extents; the bytes are only hashed.
    Cloned,
    /// It is another name of a file that is there.
    Linked,
}

impl<'a> Tee<'a> {
    fn new(target: &'a Target<'a>) -> Result<Self> {
        let dir = target.staging.try_clone_to_owned().context("copying a descriptor")?;
        let builder = Builder::new(dir, target.exact_modes);
        Ok(Tee { builder, target, place: Vec::new(), shared: HashMap::new(), filling: Filling::Written })
    }

    fn at(&self, name: &CStr) -> CString {
        let place = [&self.place, name.to_bytes()].concat();
        CString::new(place).expect("no part holds a NUL")
    }

    fn remember(&mut self, inode: Inode, name: &CStr) {
        let place = self.at(name);
        self.shared.entry(inode).or_default().push(place);
    }

    /// Links `name` to an earlier copy of the same file, if there is one.
    fn link(&mut self, inode: Inode, name: &CStr) -> Result<bool> {
        let here = self.shared.get(&inode).and_then(|names| names.last()).cloned();
        let (base, earlier) = match &here {
            Some(_) => (self.target.staging, here.clone()),
            None => (self.target.store, self.target.shared().get(&inode).cloned()),
        };
        let Some(earlier) = earlier else { return Ok(false) };
        match linkat(base, earlier.as_c_str(), self.builder.current(), name, AtFlags::empty()) {
            Ok(()) => {
                if here.is_some() {
                    self.remember(inode, name);
                }
                Ok(true)
            }
            // As many links as the file system can count: the next copy takes its place.
            Err(Errno::EMLINK) => Ok(false),
            Err(error) => Err(error).context("linking a file"),
        }
    }

    /// Renames the complete object into the store, and lets later ones link to its shared files.
    fn publish(self, name: &CStr) -> Result<()> {
        // Without shared files there is nothing to agree on with the other workers.
        let mut shared = (!self.shared.is_empty()).then(|| self.target.shared());
        if let Some(shared) = &mut shared {
            for (inode, places) in &self.shared {
                if let Some(earlier) = shared.get(inode) {
                    places.iter().try_for_each(|place| self.relink(earlier, place))?;
                }
            }
        }
        rename(self.target.staging, self.target.store, name)?;
        if let Some(shared) = &mut shared {
            // The last name: the one written last, if the file system ran out of links in between.
            shared.extend(
                self.shared.into_iter().filter_map(|(inode, mut places)| Some((inode, places.pop()?))),
            );
        }
        Ok(())
    }

    // Two streams copied the same file at the same time: the later one takes the earlier one's.
    fn relink(&self, earlier: &CStr, place: &CStr) -> Result<()> {
        let staging = self.target.staging;
        let shared = linkat(self.target.store, earlier, staging, RELINK, AtFlags::empty())
            .and_then(|()| renameat(staging, RELINK, staging, place));
        if shared.is_err() {
            // Not being root, or too many links: it stays a file of its own.
            let _ = unlinkat(staging, RELINK, UnlinkatFlags::NoRemoveDir);
            return Ok(());
        }
        // Renaming onto a link of the same file does nothing, and leaves both names.
        let _ = unlinkat(staging, RELINK, UnlinkatFlags::NoRemoveDir);
        match place.to_bytes().iter().rposition(|&byte| byte == b'/') {
            Some(end) => {
                let parent = CString::new(&place.to_bytes()[..end]).expect("it was a C string");
                let parent = tree::open_dir(staging, &parent).context("opening a directory")?;
                tree::set_canonical_time(parent.as_fd())
            }
            None => Ok(()),
        }
    }
}

impl Target<'_> {
    fn shared(&self) -> MutexGuard<'_, HashMap<Inode, CString>> {
        self.shared.lock().expect("no worker panics with it")
    }

    // Tries to share extents; the first refusal for good ends the trying.
    fn clone_extents(&self, source: &File, target: BorrowedFd) -> bool {
        if !self.reflink.load(Ordering::Relaxed) {
            return false;
        }
        match crate::sys::file::reflink(source.as_fd(), target) {
            Ok(()) => true,
            Err(error) => {
                if error != Errno::EINVAL {
                    self.reflink.store(false, Ordering::Relaxed);
                }
                false
            }
        }
    }
}

// Only root may move a directory it cannot write, for its `..` changes.
pub(super) fn rename(staging: BorrowedFd, store: BorrowedFd, name: &CStr) -> Result<()> {
    match renameat(staging, name, store, name) {
        Err(Errno::EACCES) => {
            let dir = tree::open_dir(staging, name)?;
            fchmod(&dir, Mode::S_IRWXU)?;
            renameat(staging, name, store, name)?;
            fchmod(&dir, Mode::from_bits_truncate(0o555))?;
            Ok(())
        }
        other => Ok(other?),
    }
}

impl Visitor for Tee<'_> {
    fn directory(&mut self, name: &CStr, _: BorrowedFd) -> Result<()> {
        self.place.extend_from_slice(name.to_bytes());
        self.place.push(b'/');
        self.builder.directory(name)
    }

    fn leave(&mut self) -> Result<()> {
        self.place.pop();
        let end = self.place.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
        self.place.truncate(end);
        self.builder.leave()
    }

    fn symlink(&mut self, name: &CStr, target: &OsStr, _: BorrowedFd) -> Result<()> {
        self.builder.symlink(name, target)
    }

    fn file(&mut self, name: &CStr, source: &File, stat: &FileStat) -> Result<()> {
        let shared = stat.st_nlink >= self.target.shared_from && stat.st_size > 0;
        let inode = (stat.st_dev, stat.st_ino);
        if shared && self.link(inode, name)? {
            self.filling = Filling::Linked;
            return Ok(());
        }
        self.builder.file(name, stat.st_mode & libc::S_IXUSR != 0)?;
        if shared {
            self.remember(inode, name);
        }
        let target = self.builder.open_file().expect("it was just made");
        self.filling = match stat.st_size >= REFLINK_FROM && self.target.clone_extents(source, target) {
            true => Filling::Cloned,
            false => Filling::Written,
        };
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        match self.filling {
            Filling::Written => self.builder.data(bytes),
            Filling::Cloned | Filling::Linked => Ok(()),
        }
    }

    fn end_file(&mut self) -> Result<()> {
        match self.filling {
            Filling::Written | Filling::Cloned => self.builder.end_file(),
            Filling::Linked => Ok(()),
        }
    }
}

/// Looks whether a tree has canonical metadata, and keeps the first flaw.
pub(super) struct Metadata {
    owner: (u32, u32),
    pub flaw: Option<String>,
}

impl Metadata {
    pub fn new(owner: (u32, u32)) -> Self {
        Metadata { owner, flaw: None }
    }

    fn look(&mut self, name: &CStr, stat: &FileStat) {
        if self.flaw.is_none() {
            self.flaw = tree::flaw(stat, self.owner).map(|flaw| format!("{} {flaw}", name.to_string_lossy()));
        }
    }
}

impl Visitor for Metadata {
    fn directory(&mut self, name: &CStr, source: BorrowedFd) -> Result<()> {
        self.look(name, &fstat(source)?);
        Ok(())
    }

    fn symlink(&mut self, name: &CStr, _: &OsStr, parent: BorrowedFd) -> Result<()> {
        self.look(name, &fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?);
        Ok(())
    }

    fn file(&mut self, name: &CStr, _: &File, stat: &FileStat) -> Result<()> {
        self.look(name, stat);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
