//! Deltas on their way: made once, ahead of their time, and read by all connections that need them.
//!
//! A parcel is a file without a name, which grows while it is read. What is ahead of the slowest reader
//! is bounded by who orders; memory stays flat.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::store::PathInfo;
use crate::store::copy::open_store;
use crate::store::delta::{self, Archive, Base, Rewriting};
use crate::store::path::StorePath;
use crate::sys::file::spool;

// zstd's levels: the fastest that is worth it, and where more no longer pays on any link.
const LEVELS: std::ops::RangeInclusive<i32> = 1..=9;
const FIRST_LEVEL: i32 = 2;
// A connection that takes more bytes a second is as fast as a processor packs. If it has to be waited
// for all the same, then for the other end to unpack, and what is smaller does not help.
const FAST: f64 = (16 << 20) as f64;

/// What is made, and those who make it.
pub struct Parcels {
    store: OwnedFd,
    /// Whether a parcel is kept for connections that come later.
    keep: bool,
    orders: Mutex<Orders>,
    ordered: Condvar,
    level: AtomicI32,
}

#[derive(Default)]
struct Orders {
    waiting: VecDeque<Order>,
    known: HashMap<Key, Weak<Parcel>>,
    kept: Vec<Arc<Parcel>>,
    closed: bool,
}

type Key = (StorePath, Option<StorePath>);

struct Order {
    parcel: Arc<Parcel>,
    info: PathInfo,
    base: Option<PathInfo>,
}

fn key(info: &PathInfo, base: Option<&PathInfo>) -> Key {
    (info.path.clone(), base.map(|base| base.path.clone()))
}

impl Order {
    fn key(&self) -> Key {
        key(&self.info, self.base.as_ref())
    }
}

/// The delta to one path, as far as it is made.
pub struct Parcel {
    file: File,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    written: u64,
    end: Option<Result<(), String>>,
}

impl Parcels {
    /// Makes parcels of what is in the store of `root`, for one connection or for `several`.
    pub fn new(root: &Path, several: bool) -> Result<Parcels> {
        Ok(Parcels {
            store: open_store(root)?,
            keep: several,
            orders: Mutex::default(),
            ordered: Condvar::new(),
            level: FIRST_LEVEL.into(),
        })
    }

    /// Runs `job` while all cores make what it orders.
    pub fn with_workers<T>(&self, job: impl FnOnce() -> T) -> T {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| self.work());
            }
            let _close = Close(self);
            job()
        })
    }

    /// Returns the parcel of a path, made from `base` where there is one; it may not be begun yet.
    pub fn order(&self, info: &PathInfo, base: Option<&PathInfo>) -> Result<Arc<Parcel>> {
        let key = key(info, base);
        let mut orders = self.orders();
        if let Some(parcel) = orders.known.get(&key).and_then(Weak::upgrade) {
            return Ok(parcel);
        }
        let parcel = Arc::new(Parcel::new()?);
        orders.known.insert(key, Arc::downgrade(&parcel));
        if self.keep {
            orders.kept.push(parcel.clone());
        }
        orders.waiting.push_back(Order { parcel: parcel.clone(), info: info.clone(), base: base.cloned() });
        self.ordered.notify_one();
        Ok(parcel)
    }

    /// Hears how long a connection waited for parcels, how long for its link to take them, and how many
    /// bytes a second it took: what is packed from now on is packed faster, or smaller.
    pub fn balance(&self, starved: Duration, blocked: Duration, rate: f64) {
        let level = self.level.load(Ordering::Relaxed);
        let level = match () {
            () if rate > FAST => level - 1,
            () if starved > blocked * 2 => level - 1,
            () if blocked > starved * 2 => level + 1,
            () => level,
        };
        self.level.store(level.clamp(*LEVELS.start(), *LEVELS.end()), Ordering::Relaxed);
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().expect("no worker panics with it")
    }

    fn work(&self) {
        loop {
            let mut orders = self.orders();
            let order = loop {
                if let Some(order) = orders.waiting.pop_front() {
                    if Arc::strong_count(&order.parcel) > 1 {
                        break order;
                    }
                    // The connection that wanted it has failed.
                    orders.known.remove(&order.key());
                    continue;
                }
                if orders.closed {
                    return;
                }
                orders = self.ordered.wait(orders).expect("no worker panics with it");
            };
            drop(orders);
            let made = self.make(&order).map_err(|error| format!("{error:#}"));
            order.parcel.finish(made);
        }
    }

    fn make(&self, order: &Order) -> Result<()> {
        let archive = |path: &StorePath| -> Result<Archive> {
            let store = self.store.try_clone().context("opening the store")?;
            Archive::of(store, OsStr::new(path.base_name())).with_context(|| format!("reading {path}"))
        };
        let new = archive(&order.info.path)?;
        if new.size() != order.info.nar_size.0 {
            let path = &order.info.path;
            return Err(anyhow!(
                "{path} is damaged: its NAR has {} bytes, the database says {}; repair it with nix-store \
                 --repair-path {path}",
                new.size(),
                order.info.nar_size.0
            ));
        }
        let level = self.level.load(Ordering::Relaxed);
        let mut out = io::BufWriter::with_capacity(64 << 10, &*order.parcel);
        let base = order.base.as_ref().map(|base| Ok::<_, anyhow::Error>((archive(&base.path)?, base)));
        match base.transpose()? {
            Some((archive, base)) => {
                let rewriting = Rewriting::between(base, &order.info);
                let base = Base { archive: &archive, rewriting: &rewriting };
                delta::encode(&new, Some(&base), level, &mut out)
            }
            None => delta::encode(&new, None, level, &mut out),
        }
        .with_context(|| format!("reading {}", order.info.path))?;
        out.flush().context("writing a temporary file")
    }
}

/// Lets the workers go, whatever ends the job.
struct Close<'a>(&'a Parcels);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        let mut orders = self.0.orders();
        orders.closed = true;
        orders.waiting.clear();
        self.0.ordered.notify_all();
    }
}

impl Parcel {
    fn new() -> Result<Parcel> {
        let file = spool().context("making a temporary file")?;
        Ok(Parcel { file, state: Mutex::default(), changed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no worker panics with it")
    }

    fn finish(&self, end: Result<(), String>) {
        self.state().end = Some(end);
        self.changed.notify_all();
    }

    /// Waits until something is there to be read at `at`, and reads it. Nothing is read at the end.
    pub fn read_at(&self, at: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut state = self.state();
        while state.written <= at {
            match &state.end {
                Some(Ok(())) => return Ok(0),
                Some(Err(error)) => return Err(anyhow!("{error}")),
                None => state = self.changed.wait(state).expect("no worker panics with it"),
            }
        }
        let count = buffer.len().min(usize::try_from(state.written - at).unwrap_or(usize::MAX));
        drop(state);
        self.file.read_exact_at(&mut buffer[..count], at).context("reading a temporary file")?;
        Ok(count)
    }
}

impl Write for &Parcel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let at = self.state().written;
        let count = self.file.write_at(bytes, at)?;
        self.state().written += count as u64;
        self.changed.notify_all();
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::db::Database;
    use crate::store::testing::{Nix, dump};

    fn read(parcel: &Parcel) -> Result<Vec<u8>> {
        let (mut bytes, mut buffer) = (Vec::new(), [0; 100]);
        loop {
            match parcel.read_at(bytes.len() as u64, &mut buffer)? {
                0 => return Ok(bytes),
                count => bytes.extend_from_slice(&buffer[..count]),
            }
        }
    }

    #[test]
    fn a_parcel_is_made_once_and_read_by_all() {
        let nix = Nix::new();
        nix.fill();
        let database = Database::open(nix.root()).unwrap().unwrap();
        let infos = database.infos().unwrap();
        for several in [false, true] {
            let parcels = Parcels::new(nix.root(), several).unwrap();
            parcels.with_workers(|| {
                for info in &infos {
                    let (first, second) =
                        (parcels.order(info, None).unwrap(), parcels.order(info, None).unwrap());
                    assert!(Arc::ptr_eq(&first, &second));
                    let bytes = read(&first).unwrap();
                    assert_eq!(bytes, read(&second).unwrap());
                    let mut nar = Vec::new();
                    delta::decode(&mut &bytes[..], None, info.nar_size.0, &spool, &mut nar).unwrap();
                    assert!(nar == dump(&info.path.in_root(nix.root())), "{}", info.path);
                    drop(second);
                    let weak = Arc::downgrade(&first);
                    drop(first);
                    // The worker that made it may still hold it for a moment.
                    let third = parcels.order(info, None).unwrap();
                    assert!(!several || weak.upgrade().is_some_and(|kept| Arc::ptr_eq(&kept, &third)));
                }
            });
        }
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let nix = Nix::new();
        nix.fill();
        let database = Database::open(nix.root()).unwrap().unwrap();
        let info = database.infos().unwrap().remove(0);
        let gone = StorePath::from_base_name(&format!("{}-gone", "a".repeat(32))).unwrap();
        let parcels = Parcels::new(nix.root(), false).unwrap();
        parcels.with_workers(|| {
            let longer = PathInfo { nar_size: info.nar_size + crate::size::Bytes(8), ..info.clone() };
            for (wrong, words) in [(longer, "is damaged"), (PathInfo { path: gone, ..info.clone() }, "gone")]
            {
                let error = read(&parcels.order(&wrong, None).unwrap()).unwrap_err().to_string();
                assert!(error.contains(words), "{error}");
            }
        });
    }

    #[test]
    fn the_level_follows_the_link() {
        let nix = Nix::new();
        nix.fill();
        let parcels = Parcels::new(nix.root(), false).unwrap();
        let (short, long) = (Duration::from_millis(1), Duration::from_millis(10));
        for _ in 0..20 {
            parcels.balance(short, long, 1e6);
        }
        assert_eq!(parcels.level.load(Ordering::Relaxed), 9);
        parcels.balance(long, long, 1e6);
        assert_eq!(parcels.level.load(Ordering::Relaxed), 9);
        for (starved, blocked, rate) in [(long, short, 1e6), (short, long, 1e9)] {
            for _ in 0..20 {
                parcels.balance(starved, blocked, rate);
            }
            assert_eq!(parcels.level.load(Ordering::Relaxed), 1);
            parcels.balance(short, long, 1e6);
            assert_eq!(parcels.level.load(Ordering::Relaxed), 2);
        }
    }
}
