//! Verification: every valid path of a root hashed again and compared with its database.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};

use super::copy::Metadata;
use super::db::Database;
use super::lanes::{self, Digest, Stream, Work};
use super::nar::{NarError, NarStream};
use super::{PathInfo, tree};
use crate::progress::{Event, Progress};
use crate::size::Bytes;

/// What was found.
#[derive(Debug, Default)]
pub struct Verified {
    pub paths: usize,
    pub bytes: Bytes,
    /// By path.
    pub damaged: Vec<Damage>,
}

/// A valid path that is not what the database says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Damage {
    pub path: String,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    Missing,
    /// The contents hash to something else.
    Damaged,
    /// The contents are right, mode, owner or time are not.
    Metadata(String),
    Unreadable(String),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.what {
            What::Missing => write!(f, "missing: {path}"),
            What::Damaged => write!(f, "damaged: {path}"),
            What::Metadata(flaw) => write!(f, "metadata: {path}: {flaw}"),
            What::Unreadable(error) => write!(f, "unreadable: {path}: {error}"),
        }
    }
}

/// Hashes every valid path of a root again.
pub fn root(root: &Path, progress: &dyn Progress) -> Result<Verified> {
    let Some(database) = Database::open(root)? else {
        bail!("{} has no Nix database to compare with; is it the root of a system?", root.display());
    };
    paths(root, database.infos()?, progress)
}

/// Hashes some paths of a root again.
pub fn paths(root: &Path, mut infos: Vec<PathInfo>, progress: &dyn Progress) -> Result<Verified> {
    infos.sort_by_key(|info| info.nar_size);
    let dir = root.join("nix/store");
    let store = File::open(&dir).with_context(|| format!("opening {}", dir.display()))?;
    let meta = store.metadata().with_context(|| format!("looking at {}", dir.display()))?;
    let bytes: Bytes = infos.iter().map(|info| info.nar_size).sum();
    let verified = Verified { paths: infos.len(), bytes, damaged: Vec::new() };
    progress.event(Event::Start { total: bytes });
    let work = Verification {
        store: store.as_fd(),
        // The store's group is the builders'; its objects belong to the owner's own group, which is root's.
        owner: (meta.uid(), if meta.uid() == 0 { 0 } else { meta.gid() }),
        waiting: Mutex::new(infos),
        damaged: Mutex::new(Vec::new()),
        progress,
    };
    lanes::run(&work, bytes.0)?;
    progress.event(Event::Finish);
    let mut damaged = work.damaged.into_inner().expect("no worker panics with it");
    damaged.sort();
    Ok(Verified { damaged, ..verified })
}

struct Verification<'a> {
    store: BorrowedFd<'a>,
    owner: (u32, u32),
    // The largest last, which is taken first.
    waiting: Mutex<Vec<PathInfo>>,
    damaged: Mutex<Vec<Damage>>,
    progress: &'a dyn Progress,
}

struct Job<'a> {
    info: PathInfo,
    nar: NarStream<BorrowedFd<'a>, Metadata>,
}

impl Stream for Job<'_> {
    fn pull(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.nar.pull(buffer)
    }

    fn expected(&self) -> u64 {
        self.info.nar_size.0
    }
}

impl<'a> Work for Verification<'a> {
    type Stream = Job<'a>;

    fn next(&self) -> Result<Option<Job<'a>>> {
        let Some(info) = self.waiting.lock().expect("no worker panics with it").pop() else {
            return Ok(None);
        };
        let nar = NarStream::new(self.store, OsStr::new(info.path.base_name()), Metadata::new(self.owner));
        Ok(Some(Job { info, nar }))
    }

    fn done(&self, job: Job<'a>, digest: Result<Digest>) -> Result<()> {
        let Job { info, nar } = job;
        let what = match digest {
            Ok(digest) if digest.hash != info.nar_hash || digest.size != info.nar_size.0 => {
                Some(What::Damaged)
            }
            Ok(_) => nar.visitor.flaw.map(What::Metadata),
            Err(error) if is_missing(self.store, &info, &error) => Some(What::Missing),
            Err(error) => Some(What::Unreadable(format!("{error:#}"))),
        };
        let path = info.path.to_string();
        self.damaged.lock().expect("no worker panics with it").extend(what.map(|what| Damage { path, what }));
        Ok(())
    }

    fn advance(&self, bytes: u64) {
        self.progress.advance(bytes);
    }
}

fn is_missing(store: BorrowedFd, info: &PathInfo, error: &anyhow::Error) -> bool {
    let name = std::ffi::CString::new(info.path.base_name()).expect("a store path holds no NUL");
    matches!(error.downcast_ref(), Some(NarError::Missing(_))) || tree::kind(store, &name).is_err()
}
