//! Paths as they come in, into a root that no Nix uses: restored on all cores.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

use super::{Bases, Stream, Unusable, batch};
use crate::store::copy::CopyError;
use crate::store::path::StorePath;
use crate::store::receive::Inbox;
use crate::store::{PathInfo, db, delta, nar};
use crate::sys::pieces::Pieces;
use crate::wire::frame::{Frame, Reader, WireError};

// Pieces of one path that wait for a worker.
const PIECES: usize = 8;

/// Takes `paths` from the one at `from` on, and registers them. What is `valid` already is left alone.
///
/// Nobody waits for a disk: while a batch is synced and registered, the next ones come in.
pub(super) fn receive(
    bases: &Bases,
    valid: &BTreeSet<StorePath>,
    paths: &[PathInfo],
    from: u32,
    input: &mut Reader<impl Read>,
) -> Result<()> {
    let inbox = Inbox::of(&bases.root)?;
    let taking = Taking { bases, valid, inbox: &inbox, failure: Mutex::new(None) };
    let mut stream = Stream { input, count: paths.len() };
    let (read, registered) = taking.all(paths, from, &mut stream);
    match taking.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(Failure::Delta { index }) => bail!(Unusable { index, from: registered }),
        Some(Failure::Other(error)) => return Err(error),
        None => read?,
    }
    stream.end()?;
    inbox.finish()
}

/// What ends it before all has come.
enum Failure {
    /// The delta to this path was of no use.
    Delta {
        index: u32,
    },
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Other(error)
    }
}

struct Taking<'a> {
    bases: &'a Bases,
    valid: &'a BTreeSet<StorePath>,
    inbox: &'a Inbox,
    /// The first one tells; the others come of it.
    failure: Mutex<Option<Failure>>,
}

impl Taking<'_> {
    /// Hands each path to the next worker that is free; what comes is read on meanwhile. Returns also
    /// the first path that is not registered.
    fn all(&self, paths: &[PathInfo], from: u32, stream: &mut Stream<impl Read>) -> (Result<()>, u32) {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let (jobs, queue) = sync_channel::<Job>(workers);
        let queue = Mutex::new(queue);
        let (taken, finished) = channel();
        std::thread::scope(|scope| {
            for _ in 0..workers {
                let (queue, taken) = (&queue, taken.clone());
                scope.spawn(move || {
                    while let Some(job) = next(queue) {
                        let index = job.index;
                        match self.take(job) {
                            // If nobody hears it any more, there was a failure.
                            Ok(()) => drop(taken.send(index)),
                            Err(failure) => self.fail(failure),
                        }
                    }
                });
            }
            drop(taken);
            let registering = scope.spawn(move || self.register(paths, from, finished));
            let read = self.hand_out(paths, from, stream, jobs);
            (read, registering.join().expect("registering does not panic"))
        })
    }

    // The workers go with `jobs`.
    fn hand_out<'a>(
        &self,
        paths: &'a [PathInfo],
        from: u32,
        stream: &mut Stream<impl Read>,
        jobs: SyncSender<Job<'a>>,
    ) -> Result<()> {
        for (index, info) in (0..).zip(paths).skip(from as usize) {
            if self.valid.contains(&info.path) {
                continue;
            }
            let base = stream.advance_to(index)?;
            let (sender, pieces) = sync_channel(PIECES);
            if lock(&self.failure).is_some() || jobs.send(Job { index, info, base, pieces }).is_err() {
                break;
            }
            if let Err(error) = forward(stream.input, &sender) {
                // Told before the worker hears that it was cut off.
                self.fail(error.into());
                break;
            }
        }
        Ok(())
    }

    /// Registers batch by batch what was taken, each once all of it is there and on the disk. Returns the
    /// first path that is not registered.
    fn register(&self, paths: &[PathInfo], from: u32, finished: Receiver<u32>) -> u32 {
        let mut there: Vec<bool> = paths.iter().map(|info| self.valid.contains(&info.path)).collect();
        let mut first = from as usize;
        while first < paths.len() {
            let end = first + batch(&paths[first..]);
            while !there[first..end].iter().all(|there| *there) {
                let Ok(index) = finished.recv() else { return first as u32 };
                there[index as usize] = true;
            }
            let batch = paths[first..end].iter().filter(|info| !self.valid.contains(&info.path));
            let batch: Vec<PathInfo> = batch.cloned().collect();
            let registered = self.inbox.sync().and_then(|()| db::register(&self.bases.root, &batch, now()));
            if let Err(error) = registered {
                self.fail(error.into());
                break;
            }
            first = end;
        }
        first as u32
    }

    fn fail(&self, failure: Failure) {
        lock(&self.failure).get_or_insert(failure);
    }

    fn take(&self, job: Job) -> Result<(), Failure> {
        let Job { index, info, base, pieces } = job;
        // A job that was not ended was cut off.
        let mut data = Pieces::new(|| pieces.recv().map_err(|_| io::Error::other(WireError::HungUp)));
        let (size, scratch) = (info.nar_size.0, || self.inbox.scratch());
        let Some(base) = base else {
            let write = |sink: &mut dyn Write| delta::decode(&mut data, None, size, &scratch, sink);
            return Ok(self.inbox.receive(info, write)?);
        };
        let base = self.bases.open(&base, info)?;
        let base = base.as_base();
        let write = |sink: &mut dyn Write| delta::decode(&mut data, Some(&base), size, &scratch, sink);
        self.inbox.receive(info, write).map_err(|error| {
            let wrong = error.downcast_ref::<delta::DeltaError>().is_some()
                || error.downcast_ref::<nar::NarError>().is_some()
                || error.downcast_ref::<CopyError>().is_some();
            if wrong { Failure::Delta { index } } else { Failure::Other(error) }
        })
    }
}

/// Hands the data of a path to a worker, as long as it wants any.
fn forward(input: &mut Reader<impl Read>, worker: &SyncSender<Option<Vec<u8>>>) -> Result<()> {
    let mut listening = true;
    loop {
        match input.frame()? {
            Some(Frame::Data(piece)) => {
                listening = listening && worker.send(Some(piece)).is_ok();
            }
            Some(Frame::End) => {
                // It may have had enough already.
                let _ = worker.send(None);
                return Ok(());
            }
            Some(Frame::Message(_)) => bail!(WireError::Garbled("a message comes amid data")),
            None => bail!(WireError::HungUp),
        }
    }
}

/// A path for a worker.
struct Job<'a> {
    index: u32,
    info: &'a PathInfo,
    base: Option<StorePath>,
    /// Its data; none ends them.
    pieces: Receiver<Option<Vec<u8>>>,
}

fn next<'a>(queue: &Mutex<Receiver<Job<'a>>>) -> Option<Job<'a>> {
    lock(queue).recv().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
