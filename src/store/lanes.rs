//! The hash engine: many archives at once, on all cores.
//!
//! Each worker thread drives up to 16 streams. A stream fills its lane's buffer (reading, and
//! perhaps writing, as it goes), then all lanes are hashed side by side. A lane that ends takes the
//! next stream at once, so lanes stay busy. Memory is one small buffer a lane.
//!
//! The lanes of a worker advance together, so a long stream beside fifteen others would still run
//! when all else has ended. A worker therefore keeps a long one in little company, or alone.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::Result;

use super::hash::NarHash;
use nixos_install_via_sha256::{BLOCK, Kernel, States};

const BUFFER: usize = 32 << 10;
// 0x80, zeros and the length take at most two blocks.
const PADDING: usize = 2 * BLOCK;
// More workers than this wait for the disk together, and only cost memory.
const WORKERS: usize = 16;
// How many bytes a worker does between two words about its progress.
const REPORT: u64 = 1 << 20;

/// Returns what a byte of each of so many lanes costs, in units of reading and writing one.
fn cost(lanes: u64) -> u64 {
    const ONE: u64 = 2;
    const ALL: u64 = 4;
    lanes + (ONE * lanes).min(ALL)
}

/// Bytes that can be asked for.
pub trait Stream {
    /// Fills `buffer`; fewer bytes than asked for means the stream has ended.
    fn pull(&mut self, buffer: &mut [u8]) -> Result<usize>;
    /// Returns how long the whole is said to be; 0 where nobody knows. Only speed depends on it.
    fn expected(&self) -> u64;
}

/// What was hashed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Digest {
    pub hash: NarHash,
    pub size: u64,
}

/// A queue of streams and what to do with their digests; called from all workers.
pub trait Work: Sync {
    type Stream: Stream;
    /// Returns the next stream; long ones first make all workers end together.
    fn next(&self) -> Result<Option<Self::Stream>>;
    /// Takes a stream that ended or failed. An error here stops all workers.
    fn done(&self, stream: Self::Stream, digest: Result<Digest>) -> Result<()>;
    fn advance(&self, bytes: u64);
}

/// Runs until no stream is left, or returns the first error. `total` is what the streams expect together.
pub fn run<W: Work>(work: &W, total: u64) -> Result<()> {
    let workers = thread::available_parallelism().map_or(1, |count| count.get().min(WORKERS));
    // A lane holds two descriptors for each level of its tree.
    crate::sys::file::raise_open_files();
    run_with(work, total, Kernel::best(), workers)
}

fn run_with<W: Work>(work: &W, total: u64, kernel: Kernel, workers: usize) -> Result<()> {
    let stop = AtomicBool::new(false);
    let outlook = Outlook { left: AtomicU64::new(total), longest: (0..workers).map(|_| 0.into()).collect() };
    let first = Mutex::new(None);
    thread::scope(|scope| {
        for number in 0..workers {
            let (outlook, stop, first) = (&outlook, &stop, &first);
            scope.spawn(move || {
                if let Err(error) = Worker::new(work, kernel, number, outlook).run(stop) {
                    stop.store(true, Ordering::Relaxed);
                    first.lock().expect("no worker panics with it").get_or_insert(error);
                }
            });
        }
    });
    first.into_inner().expect("no worker panics with it").map_or(Ok(()), Err)
}

/// What the workers know of each other, in bytes.
struct Outlook {
    /// What is left of everything.
    left: AtomicU64,
    /// What is left of each worker's longest stream.
    longest: Vec<AtomicU64>,
}

struct Worker<'a, W: Work> {
    work: &'a W,
    kernel: Kernel,
    states: States,
    lanes: Vec<Lane<W::Stream>>,
    number: usize,
    outlook: &'a Outlook,
    unreported: u64,
}

struct Lane<S> {
    stream: Option<S>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    size: u64,
    ended: bool,
}

impl<'a, W: Work> Worker<'a, W> {
    fn new(work: &'a W, kernel: Kernel, number: usize, outlook: &'a Outlook) -> Self {
        let lane = || Lane {
            stream: None,
            buffer: vec![0; BUFFER + PADDING].into(),
            start: 0,
            end: 0,
            size: 0,
            ended: false,
        };
        let lanes = (0..kernel.lanes()).map(|_| lane()).collect();
        Worker { work, kernel, states: States::default(), lanes, number, outlook, unreported: 0 }
    }

    fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            for number in 0..self.lanes.len() {
                self.prepare(number)?;
            }
            if self.lanes.iter().all(|lane| lane.stream.is_none()) {
                break;
            }
            self.hash();
            self.finish()?;
            if self.unreported >= REPORT {
                self.report();
            }
        }
        self.report();
        Ok(())
    }

    fn report(&mut self) {
        let bytes = std::mem::take(&mut self.unreported);
        // Streams may turn out longer than they were expected to be.
        let less = |left: u64| Some(left.saturating_sub(bytes));
        let _ = self.outlook.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        self.work.advance(bytes);
    }

    // Tells whether the longest stream of this worker, with one more beside it, would still end before
    // all workers are through with what is left, or before another worker's longest.
    fn has_time(&self) -> bool {
        let alive = || self.lanes.iter().filter(|lane| lane.stream.is_some());
        let company = alive().count() as u64;
        let own = alive().map(Lane::left).max().unwrap_or(0);
        let longest = &self.outlook.longest;
        longest[self.number].store(own, Ordering::Relaxed);
        let all = longest.iter().map(|longest| longest.load(Ordering::Relaxed)).max().unwrap_or(0);
        let share = self.outlook.left.load(Ordering::Relaxed) / longest.len() as u64;
        let lanes = self.lanes.len() as u64;
        // A database may claim any size.
        let end = (share / lanes).saturating_mul(cost(lanes)).max(all.saturating_mul(cost(1)));
        company == 0 || own.saturating_mul(cost(company + 1)) <= end
    }

    // Gives the lane at least one block to hash, of a new stream if need be.
    fn prepare(&mut self, number: usize) -> Result<()> {
        loop {
            if self.lanes[number].stream.is_none() && !self.has_time() {
                return Ok(());
            }
            let lane = &mut self.lanes[number];
            if lane.stream.is_none() {
                let Some(stream) = self.work.next()? else { return Ok(()) };
                (lane.start, lane.end, lane.size, lane.ended) = (0, 0, 0, false);
                lane.stream = Some(stream);
                self.states.start(number);
            }
            if lane.end - lane.start >= BLOCK {
                return Ok(());
            }
            match lane.refill() {
                Ok(count) => {
                    self.unreported += count as u64;
                    return Ok(());
                }
                Err(error) => {
                    let stream = lane.stream.take().expect("it was just pulled from");
                    self.work.done(stream, Err(error))?;
                }
            }
        }
    }

    fn hash(&mut self) {
        let alive = || self.lanes.iter().enumerate().filter(|(_, lane)| lane.stream.is_some());
        let shortest = alive().map(|(_, lane)| lane.end - lane.start).min().unwrap_or(0);
        let length = shortest / BLOCK * BLOCK;
        let inputs: Vec<(usize, &[u8])> =
            alive().map(|(number, lane)| (number, &lane.buffer[lane.start..lane.start + length])).collect();
        self.states.compress(self.kernel, &inputs);
        for lane in self.lanes.iter_mut().filter(|lane| lane.stream.is_some()) {
            lane.start += length;
        }
    }

    fn finish(&mut self) -> Result<()> {
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            if lane.ended
                && lane.start == lane.end
                && let Some(stream) = lane.stream.take()
            {
                let digest = Digest { hash: NarHash(self.states.digest(number)), size: lane.size };
                self.work.done(stream, Ok(digest))?;
            }
        }
        Ok(())
    }
}

impl<S: Stream> Lane<S> {
    fn left(&self) -> u64 {
        self.stream.as_ref().map_or(0, |stream| stream.expected().saturating_sub(self.size))
    }

    fn refill(&mut self) -> Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let space = BUFFER - self.end;
        let stream = self.stream.as_mut().expect("only lanes with a stream are refilled");
        let count = stream.pull(&mut self.buffer[self.end..BUFFER])?;
        self.end += count;
        self.size += count as u64;
        if count < space {
            self.ended = true;
            self.pad();
        }
        Ok(count)
    }

    // The end of a message by FIPS 180-4: a one bit, zeros, and the length in bits.
    fn pad(&mut self) {
        let padded = (self.end + 9).next_multiple_of(BLOCK);
        self.buffer[self.end..padded].fill(0);
        self.buffer[self.end] = 0x80;
        self.buffer[padded - 8..padded].copy_from_slice(&(self.size * 8).to_be_bytes());
        self.end = padded;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest as _, Sha256};

    struct Bytes(Vec<u8>, usize);

    impl Stream for Bytes {
        fn pull(&mut self, buffer: &mut [u8]) -> Result<usize> {
            anyhow::ensure!(self.0.first() != Some(&255), "no");
            let count = buffer.len().min(self.0.len() - self.1);
            buffer[..count].copy_from_slice(&self.0[self.1..self.1 + count]);
            self.1 += count;
            Ok(count)
        }

        // Wrong on purpose, now and then.
        fn expected(&self) -> u64 {
            self.0.len() as u64 / 3 * 5
        }
    }

    struct Queue(Mutex<Vec<Vec<u8>>>, Mutex<(usize, usize)>);

    impl Work for Queue {
        type Stream = Bytes;
        fn next(&self) -> Result<Option<Bytes>> {
            Ok(self.0.lock().unwrap().pop().map(|bytes| Bytes(bytes, 0)))
        }
        fn done(&self, stream: Bytes, digest: Result<Digest>) -> Result<()> {
            let mut seen = self.1.lock().unwrap();
            match digest {
                Ok(digest) => {
                    assert_eq!(digest.hash.0.as_slice(), Sha256::digest(&stream.0).as_slice());
                    assert_eq!(digest.size, stream.0.len() as u64);
                    seen.0 += 1;
                }
                Err(_) => seen.1 += 1,
            }
            Ok(())
        }
        fn advance(&self, _: u64) {}
    }

    #[test]
    fn streams_of_every_length_hash_as_the_sha2_package_says() {
        for kernel in Kernel::available() {
            let mut lengths: Vec<usize> = (0..200).collect();
            let mut random = 1_u64;
            for _ in 0..200 {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                lengths.push((random >> 33) as usize % 200_000);
            }
            lengths.extend([BUFFER - 9, BUFFER - 8, BUFFER - 1, BUFFER, BUFFER + 1, 2 * BUFFER, 5 << 20]);
            let mut messages: Vec<Vec<u8>> = lengths
                .iter()
                .map(|&length| (0..length).map(|i| (i * 31 + length) as u8 & 0x7f).collect())
                .collect();
            let count = messages.len();
            messages.insert(50, vec![255]);
            for total in [0, 1 << 20, u64::MAX / 8] {
                let queue = Queue(Mutex::new(messages.clone()), Mutex::new((0, 0)));
                run_with(&queue, total, kernel, 2).unwrap();
                assert_eq!(*queue.1.lock().unwrap(), (count, 1));
            }
        }
    }
}
