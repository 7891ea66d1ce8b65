//! Paths as they come in: into a running system through its Nix daemon, into another root directly.

mod announced;
mod direct;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::frame::{Frame, Incoming, Reader, WireError, decode};
use super::message::{Ask, Similar};
use crate::size::Bytes;
use crate::store::PathInfo;
use crate::store::copy::open_store;
use crate::store::daemon::{self, Daemon, Signatures, Substitute};
use crate::store::db::Database;
use crate::store::delta::{self, Archive, Base, Rewriting};
use crate::store::hash::Hashing;
use crate::store::path::StorePath;
use crate::sys::file::spool;

// A daemon tells of an error when a stream ends, so one stream is not the whole closure; nor is what
// a cut link leaves unregistered.
const BATCH: Bytes = Bytes::mib(128);
// A lie about what is similar would be told in as many words as there are paths in the largest store.
const SIMILAR_LIMIT: usize = 20_000;
// What a delta may be larger than what it makes: a few bytes each part.
const DELTA_SPARE: u64 = 1 << 20;

/// The store of a root, about to receive.
pub struct Store {
    /// Where a running system's daemon is asked; it keeps what was asked about.
    daemon: Option<Daemon<'static>>,
    bases: Bases,
}

/// What deltas may be made from.
struct Bases {
    root: PathBuf,
    similar: BTreeMap<StorePath, PathInfo>,
}

/// A delta made something else than it should. What it was made from is not what the database says.
#[derive(Debug, thiserror::Error)]
#[error("the delta to path {index} is of no use")]
pub struct Unusable {
    pub index: u32,
    /// The first path that is not known to be valid.
    pub from: u32,
}

impl Store {
    /// Opens the store of a root: through the daemon where it is this machine's own.
    pub fn of(root: &Path) -> Result<Store> {
        let daemon = if root == Path::new("/") { Some(connect()?) } else { None };
        Ok(Store { daemon, ..Store::direct(root) })
    }

    /// Opens the store of a machine that runs from memory: its daemon's, if it has one.
    pub fn of_memory() -> Result<Store> {
        let root = Path::new("/");
        if root.join("nix/var/nix/db/db.sqlite").exists() && Path::new("/etc/nix").exists() {
            return Store::of(root);
        }
        Ok(Store::direct(root))
    }

    /// Opens the store of a root that no daemon serves.
    pub fn direct(root: &Path) -> Store {
        Store { daemon: None, bases: Bases { root: root.to_owned(), similar: BTreeMap::new() } }
    }

    /// Returns positions of the paths that are not valid. Valid or not, from now on no garbage
    /// collection takes any of `paths` while this value lives.
    pub fn missing(&mut self, paths: &[StorePath], substitute: bool) -> Result<(Vec<u32>, Vec<Similar>)> {
        if let Some(daemon) = &mut self.daemon {
            daemon.add_temp_roots(paths)?;
        }
        let valid = self.valid(paths, if substitute { Substitute::Yes } else { Substitute::No })?;
        let missing: Vec<u32> =
            (0..).zip(paths).filter(|(_, path)| !valid.contains(path)).map(|(index, _)| index).collect();
        if let Some(database) = Database::open(&self.bases.root)? {
            self.bases.similar = similar(&database, missing.iter().map(|&index| &paths[index as usize]))?;
        }
        let similar = self.bases.similar.values();
        let similar =
            similar.map(|info| Similar { path: info.path.clone(), nar_hash: info.nar_hash }).collect();
        Ok((missing, similar))
    }

    /// Returns which of `paths` are valid, and may return others that are.
    fn valid<'p>(
        &mut self,
        paths: impl IntoIterator<Item = &'p StorePath>,
        substitute: Substitute,
    ) -> Result<BTreeSet<StorePath>> {
        match &mut self.daemon {
            Some(daemon) => daemon.query_valid_paths(paths, substitute),
            None => match Database::open(&self.bases.root)? {
                Some(database) => Ok(database.all()?.into_iter().collect()),
                None => Ok(BTreeSet::new()),
            },
        }
    }

    /// Takes `paths`, each after all it refers to, from the one at `from` on; to the end of what comes.
    ///
    /// [`Unusable`] is an error after which it can be called again, for the rest.
    pub fn receive(&mut self, paths: &[PathInfo], from: u32, input: &mut Reader<impl Read>) -> Result<()> {
        let outside = announced::check(paths)?;
        let valid = self.valid(outside.iter().copied(), Substitute::No)?;
        if outside.iter().any(|reference| !valid.contains(reference)) {
            bail!(WireError::Garbled("a path refers to one that is not valid"));
        }
        match self.daemon {
            Some(_) => self.receive_by_daemon(paths, from, input),
            None => direct::receive(&self.bases, &valid, paths, from, input),
        }
    }

    fn receive_by_daemon(
        &mut self,
        paths: &[PathInfo],
        from: u32,
        input: &mut Reader<impl Read>,
    ) -> Result<()> {
        // Not the daemon that keeps: an error amid a stream ends a connection, and its roots with it.
        let mut daemon = connect()?;
        let mut stream = Stream { input, count: paths.len() };
        let mut rest = &paths[from as usize..];
        while !rest.is_empty() {
            let (batch, others) = rest.split_at(batch(rest));
            let first = (paths.len() - rest.len()) as u32;
            let position: BTreeMap<&StorePath, u32> =
                (first..).zip(batch).map(|(index, info)| (&info.path, index)).collect();
            daemon.add_multiple_to_store(batch, Signatures::Waive, &mut |info, sink| {
                let index = position[&info.path];
                let base = stream.advance_to(index)?;
                let mut data = Incoming::new(stream.input);
                match base {
                    None => delta::decode(&mut data, None, info.nar_size.0, &spool, sink)?,
                    Some(base) => {
                        let unusable = Unusable { index, from: first };
                        self.apply(unusable, info, &base, &mut data, sink)?;
                    }
                }
                data.finish()
            })?;
            rest = others;
        }
        stream.end()
    }

    /// Writes what a delta makes, once it is known to make the right thing.
    fn apply(
        &self,
        unusable: Unusable,
        info: &PathInfo,
        base: &StorePath,
        data: &mut impl Read,
        sink: &mut dyn Write,
    ) -> Result<()> {
        let limit = info.nar_size.0 + DELTA_SPARE;
        let mut delta = spool().context("making a temporary file")?;
        if io::copy(&mut data.take(limit + 1), &mut delta).context("keeping a delta")? > limit {
            bail!(WireError::Garbled("a delta is larger than what it makes"));
        }
        let base = self.bases.open(base, info)?;
        let base = base.as_base();
        let mut hashing = Hashing::new(io::sink());
        delta.rewind().context("reading a delta")?;
        let made = delta::decode(&mut delta, Some(&base), info.nar_size.0, &spool, &mut hashing);
        if made.is_err() || hashing.finish() != (info.nar_hash, info.nar_size.0) {
            bail!(unusable);
        }
        delta.rewind().context("reading a delta")?;
        delta::decode(&mut delta, Some(&base), info.nar_size.0, &spool, sink)
    }
}

impl Bases {
    fn open(&self, base: &StorePath, info: &PathInfo) -> Result<Old> {
        let Some(base) = self.similar.get(base) else {
            bail!(WireError::Garbled("a delta is based on a path that was not offered"))
        };
        let archive = Archive::of(open_store(&self.root)?, OsStr::new(base.path.base_name()))
            .with_context(|| format!("reading {}", base.path))?;
        Ok(Old { archive, rewriting: Rewriting::between(base, info) })
    }
}

/// Passes over all that comes until the near end says that it begins again.
pub fn skip_to_again(input: &mut Reader<impl Read>) -> Result<()> {
    loop {
        match input.frame()? {
            None => bail!(WireError::HungUp),
            Some(Frame::Message(bytes)) if decode::<Ask>(&bytes)? == Ask::Again => return Ok(()),
            Some(_) => (),
        }
    }
}

/// A base, opened.
struct Old {
    archive: Archive,
    rewriting: Rewriting,
}

impl Old {
    fn as_base(&self) -> Base<'_> {
        Base { archive: &self.archive, rewriting: &self.rewriting }
    }
}

/// Returns what is valid and of the same packages as `paths`.
fn similar<'a>(
    database: &Database,
    paths: impl Iterator<Item = &'a StorePath>,
) -> Result<BTreeMap<StorePath, PathInfo>> {
    let families: BTreeSet<String> = paths.map(|path| delta::family(path.name())).collect();
    let mut similar = BTreeMap::new();
    for path in database.all()?.into_iter().filter(|path| families.contains(&delta::family(path.name()))) {
        if similar.len() == SIMILAR_LIMIT {
            break;
        }
        if let Some(info) = database.info(&path)? {
            similar.insert(path, info);
        }
    }
    Ok(similar)
}

fn connect() -> Result<Daemon<'static>> {
    let quiet = |_: &str| ();
    let socket = Path::new(daemon::SOCKET);
    match Daemon::connect(socket, quiet) {
        Ok(daemon) => Ok(daemon),
        // A machine without the socket may still have the program.
        Err(error) => {
            let program = Path::new("/run/current-system/sw/bin/nix-daemon");
            let program = if program.exists() { program } else { Path::new("nix-daemon") };
            Daemon::start(Command::new(program).arg("--stdio"), quiet)
                .map_err(|other| error.context(format!("{other:#}; and before")))
        }
    }
}

/// Returns how many of `paths` are taken at once.
fn batch(paths: &[PathInfo]) -> usize {
    let mut size = Bytes(0);
    let many = paths.iter().take_while(|info| {
        let fits = size < BATCH;
        size += info.nar_size;
        fits
    });
    many.count()
}

/// What comes: for each path in turn what to make it from, and the data.
struct Stream<'a, R> {
    input: &'a mut Reader<R>,
    count: usize,
}

impl<R: Read> Stream<'_, R> {
    /// Passes over what comes before a path, and returns the base that it is made from.
    fn advance_to(&mut self, index: u32) -> Result<Option<StorePath>> {
        loop {
            let announced = self.announced()?;
            let (next, base) = announced.ok_or(WireError::Garbled("it ends before the last path"))?;
            if next == index {
                return Ok(base);
            }
            if next > index {
                bail!(WireError::Garbled("a path comes too early"));
            }
            Incoming::new(self.input).finish()?;
        }
    }

    fn announced(&mut self) -> Result<Option<(u32, Option<StorePath>)>> {
        match self.input.message()? {
            Some(Ask::Nar { index, base }) if (index as usize) < self.count => Ok(Some((index, base))),
            Some(Ask::Nar { .. }) => bail!(WireError::Garbled("a path comes that was not announced")),
            Some(Ask::End) => Ok(None),
            Some(_) => bail!(WireError::Garbled("a question comes amid paths")),
            None => bail!(WireError::HungUp),
        }
    }

    /// Passes over the rest.
    fn end(&mut self) -> Result<()> {
        while self.announced()?.is_some() {
            Incoming::new(self.input).finish()?;
        }
        Ok(())
    }
}
