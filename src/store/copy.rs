//! The copy engine: store paths from one root into the store of another.
//!
//! Each byte is read once: what is written is what is hashed, and the hash is compared with the
//! database before the path gets its name. Paths grow in a hidden directory of the target's store and
//! are renamed into place; one sync at the end covers all of them.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, renameat};
use nix::sys::stat::{FileStat, Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::check::Checker;
use super::hash::NarHash;
use super::lanes::{self, Digest, Stream, Work};
use super::nar::{NarStream, Visitor};
use super::path::StorePath;
use super::tree::{self, Builder};
use super::{PathInfo, links::Links};
use crate::progress::{Event, Progress};
use crate::size::Bytes;
use crate::sys::ioctl;

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Copied {
    pub copied: usize,
    /// Paths that were there already, hashed again and found whole.
    pub kept: usize,
}

/// A source that is not what its database says.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum CopyError {
    #[error(
        "{path} is damaged in the source: its contents hash to {found} and the database says {expected}; \
         repair it with nix-store --repair-path, then run the command again"
    )]
    Corrupted { path: StorePath, expected: NarHash, found: NarHash },
    #[error(
        "{path} is valid in the source's database and missing from its store; \
         repair it with nix-store --repair-path, then run the command again"
    )]
    Missing { path: StorePath },
}

// Nix's garbage collector deletes what it does not know, so a leftover does no harm.
const STAGING: &CStr = c".install-via";

/// Copies `paths` from the root `from` into the root `to`, and returns when all is on the disk.
///
/// What an earlier run left in place is hashed again, and kept if it is whole. Nothing is registered.
pub fn closure(paths: &[PathInfo], from: &Path, to: &Path, progress: &dyn Progress) -> Result<Copied> {
    let source_dir = from.join("nix/store");
    let target_dir = to.join("nix/store");
    fs::create_dir_all(&target_dir).with_context(|| format!("creating {}", target_dir.display()))?;
    let source = File::open(&source_dir).with_context(|| format!("opening {}", source_dir.display()))?;
    let target = File::open(&target_dir).with_context(|| format!("opening {}", target_dir.display()))?;
    let staging = Staging::new(target.as_fd()).with_context(|| format!("preparing {}", target_dir.display()))?;
    // Files of an optimised store have a link in .links too, and only a third one is shared with.
    let optimised = source_dir.join(".links").exists();
    let mut waiting: Vec<Job> = paths.iter().map(|info| job(info, target.as_fd())).collect();
    waiting.sort_by_key(|job| job.info.nar_size);
    progress.event(Event::Start { total: paths.iter().map(|info| info.nar_size).sum() });
    let workshop = Workshop {
        dir: staging.dir.as_fd(),
        links: Links::new(staging.links.as_fd(), if optimised { 2 } else { 1 }),
        exact_modes: tree::exact_modes(staging.dir.as_fd())?,
        reflink: AtomicBool::new(true),
    };
    let work = Copying {
        source: source.as_fd(),
        target: target.as_fd(),
        workshop: &workshop,
        waiting: Mutex::new(waiting),
        copied: Mutex::new(Copied::default()),
        progress,
    };
    lanes::run(&work)?;
    let copied = *work.copied.lock().expect("no worker panics with it");
    drop(work);
    staging.remove()?;
    nix::unistd::syncfs(&target).with_context(|| format!("writing out {}", target_dir.display()))?;
    progress.event(Event::Finish);
    Ok(copied)
}

/// Returns about how much room `paths` take in a file system with blocks of 4 KiB.
pub fn space_needed(paths: &[PathInfo], from: &Path) -> Result<Bytes> {
    // Names and inodes cost too; a file is a fifth larger than its share of the archive at worst, on
    // average far less. Small files waste half a block.
    let dir = from.join("nix/store");
    let store = File::open(&dir).with_context(|| format!("opening {}", dir.display()))?;
    let mut sum = Sum::default();
    for info in paths {
        let name = CString::new(info.path.base_name()).expect("a store path holds no NUL");
        // What is missing is found, and told, by the copy.
        let _ = sum.add(store.as_fd(), &name, None);
    }
    Ok(sum.bytes)
}

const BLOCK: u64 = 4096;
const INODE: u64 = 256;

#[derive(Default)]
struct Sum {
    bytes: Bytes,
    shared: std::collections::HashSet<(u64, u64)>,
}

impl Sum {
    fn add(&mut self, parent: BorrowedFd, name: &CStr, kind: Option<nix::dir::Type>) -> nix::Result<()> {
        self.bytes += Bytes(INODE);
        match kind {
            Some(nix::dir::Type::Symlink) => Ok(()),
            Some(nix::dir::Type::Directory) => self.directory(parent, name),
            _ => {
                let stat = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
                match stat.st_mode & nix::libc::S_IFMT {
                    nix::libc::S_IFDIR => self.directory(parent, name)?,
                    nix::libc::S_IFREG if stat.st_nlink < 3 || self.shared.insert((stat.st_dev, stat.st_ino)) => {
                        self.bytes += Bytes(stat.st_size.cast_unsigned()).round_up(Bytes(BLOCK));
                    }
                    _ => {}
                }
                Ok(())
            }
        }
    }

    fn directory(&mut self, parent: BorrowedFd, name: &CStr) -> nix::Result<()> {
        self.bytes += Bytes(BLOCK);
        let (dir, entries) = tree::list(tree::open_dir(parent, name)?)?;
        entries.iter().try_for_each(|entry| self.add(dir.as_fd(), &entry.name, entry.kind))
    }
}

/// The hidden directory that paths grow in.
struct Staging<'a> {
    store: BorrowedFd<'a>,
    dir: OwnedFd,
    links: OwnedFd,
}

impl<'a> Staging<'a> {
    fn new(store: BorrowedFd<'a>) -> Result<Self> {
        tree::remove(store, STAGING).context("removing what an earlier run left")?;
        let make = |parent: BorrowedFd, name: &CStr| -> Result<OwnedFd> {
            mkdirat(parent, name, Mode::S_IRWXU).with_context(|| format!("making {name:?}"))?;
            tree::open_dir(parent, name).with_context(|| format!("opening {name:?}"))
        };
        let dir = make(store, STAGING)?;
        // A set-group-ID store would hand its group down to all that is made in it.
        nix::sys::stat::fchmod(&dir, Mode::S_IRWXU).context("setting a mode")?;
        let group = Some(nix::unistd::getegid());
        nix::unistd::fchown(&dir, Some(nix::unistd::geteuid()), group).context("setting an owner")?;
        let links = make(dir.as_fd(), c".links")?;
        Ok(Staging { store, dir, links })
    }

    fn remove(self) -> Result<()> {
        tree::remove(self.store, STAGING).context("removing the temporary directory")
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        // After a failure; the next run would do it too.
        let _ = tree::remove(self.store, STAGING);
    }
}

#[derive(Clone, Copy)]
struct Job<'a> {
    info: &'a PathInfo,
    present: bool,
}

fn job<'a>(info: &'a PathInfo, target: BorrowedFd) -> Job<'a> {
    Job { info, present: tree::kind(target, &name_of(info)).is_ok() }
}

fn name_of(info: &PathInfo) -> CString {
    CString::new(info.path.base_name()).expect("a store path holds no NUL")
}

/// Where files are made, and what is known about how.
struct Workshop<'a> {
    dir: BorrowedFd<'a>,
    links: Links<'a>,
    exact_modes: bool,
    reflink: AtomicBool,
}

struct Copying<'a> {
    source: BorrowedFd<'a>,
    target: BorrowedFd<'a>,
    workshop: &'a Workshop<'a>,
    // The largest last, which is taken first.
    waiting: Mutex<Vec<Job<'a>>>,
    copied: Mutex<Copied>,
    progress: &'a dyn Progress,
}

/// One path on its way.
enum Journey<'a> {
    Check(Job<'a>, NarStream<BorrowedFd<'a>, Checker>),
    Copy(Job<'a>, NarStream<BorrowedFd<'a>, Copier<'a>>),
}

impl Stream for Journey<'_> {
    fn pull(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Journey::Check(_, nar) => nar.pull(buffer),
            Journey::Copy(_, nar) => nar.pull(buffer),
        }
    }
}

impl<'a> Work for Copying<'a> {
    type Stream = Journey<'a>;

    fn next(&self, _idle: bool) -> Option<Journey<'a>> {
        let job = self.waiting.lock().expect("no worker panics with it").pop()?;
        let name = OsStr::new(job.info.path.base_name());
        if job.present {
            let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
            return Some(Journey::Check(job, NarStream::new(self.target, name, Checker::new(owner))));
        }
        let workshop = self.workshop;
        let copier = Copier { builder: None, workshop, way: Way::Write };
        Some(Journey::Copy(job, NarStream::new(self.source, name, copier)))
    }

    fn done(&self, journey: Journey<'a>, digest: Result<Digest>) -> Result<()> {
        match journey {
            Journey::Check(job, nar) => {
                let whole = digest.is_ok_and(|digest| matches(job.info, &digest)) && nar.visitor.flaw.is_none();
                if whole {
                    self.copied().kept += 1;
                    return Ok(());
                }
                tree::remove(self.target, &name_of(job.info))?;
                let again = Job { present: false, ..job };
                self.waiting.lock().expect("no worker panics with it").push(again);
                Ok(())
            }
            Journey::Copy(job, _) => self.publish(job.info, digest),
        }
    }

    fn advance(&self, bytes: u64) {
        self.progress.advance(bytes);
    }
}

fn matches(info: &PathInfo, digest: &Digest) -> bool {
    digest.hash == info.nar_hash && digest.size == info.nar_size.0
}

impl Copying<'_> {
    fn copied(&self) -> std::sync::MutexGuard<'_, Copied> {
        self.copied.lock().expect("no worker panics with it")
    }

    fn publish(&self, info: &PathInfo, digest: Result<Digest>) -> Result<()> {
        let name = name_of(info);
        let path = || info.path.clone();
        let digest = match digest {
            Ok(digest) => digest,
            Err(_) if tree::kind(self.source, &name) == Err(Errno::ENOENT) => {
                return Err(CopyError::Missing { path: path() }.into());
            }
            Err(error) => return Err(error).with_context(|| format!("copying {}", info.path)),
        };
        if !matches(info, &digest) {
            return Err(CopyError::Corrupted { path: path(), expected: info.nar_hash, found: digest.hash }.into());
        }
        renameat(self.workshop.dir, name.as_c_str(), self.target, name.as_c_str())
            .with_context(|| format!("publishing {}", info.path))?;
        self.copied().copied += 1;
        Ok(())
    }
}

/// How the bytes of the file at hand get to the target.
enum Way {
    Write,
    /// They are there, the file being another name of one that was copied.
    Link,
    /// They are there, the file system having shared them.
    Clone,
}

struct Copier<'a> {
    // Made with the first object, for opening what it needs can fail.
    builder: Option<Builder>,
    workshop: &'a Workshop<'a>,
    way: Way,
}

impl Copier<'_> {
    fn builder(&mut self) -> Result<&mut Builder> {
        if self.builder.is_none() {
            let dir = self.workshop.dir.try_clone_to_owned().context("copying a descriptor")?;
            self.builder = Some(Builder::new(dir, self.workshop.exact_modes));
        }
        Ok(self.builder.as_mut().expect("made above"))
    }
}

impl Visitor for Copier<'_> {
    fn directory(&mut self, name: &CStr, _source: BorrowedFd) -> Result<()> {
        self.builder()?.directory(name)
    }

    fn leave(&mut self) -> Result<()> {
        self.builder()?.leave()
    }

    fn symlink(&mut self, name: &CStr, target: &OsStr, _parent: BorrowedFd) -> Result<()> {
        self.builder()?.symlink(name, target)
    }

    fn file(&mut self, name: &CStr, source: &File, stat: &FileStat) -> Result<()> {
        let workshop = self.workshop;
        let builder = self.builder()?;
        let executable = stat.st_mode & 0o100 != 0;
        let linked = workshop.links.link_or_make(stat, name, builder, |builder| builder.file(name, executable))?;
        self.way = if linked {
            Way::Link
        } else if stat.st_size > 0 && workshop.clone_contents(source, self.builder()?) {
            Way::Clone
        } else {
            Way::Write
        };
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        match self.way {
            Way::Write => self.builder()?.data(bytes),
            Way::Link | Way::Clone => Ok(()),
        }
    }

    fn end_file(&mut self) -> Result<()> {
        match self.way {
            Way::Write => self.builder()?.end_file(),
            Way::Clone => self.builder()?.end_filled_file(),
            Way::Link => Ok(()),
        }
    }
}

impl Workshop<'_> {
    /// Shares the contents of a file with the one being written, where the file system can.
    fn clone_contents(&self, source: &File, builder: &Builder) -> bool {
        if !self.reflink.load(Ordering::Relaxed) {
            return false;
        }
        let cloned = builder.open_file().is_some_and(|file| ioctl::clone_file(file, source).is_ok());
        if !cloned {
            // Two file systems that cannot share one file share none.
            self.reflink.store(false, Ordering::Relaxed);
        }
        cloned
    }
}

/// Removes a link, if it is there.
pub(super) fn forget(dir: BorrowedFd, name: &CStr) -> nix::Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// Makes `to` another name of `from`.
pub(super) fn link(from: (BorrowedFd, &CStr), to: (BorrowedFd, &CStr)) -> nix::Result<()> {
    linkat(from.0, from.1, to.0, to.1, AtFlags::empty())
}
