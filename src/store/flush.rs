//! Writing out while copying: the disk works beside the processors, not after them.
//!
//! Left to itself the kernel keeps gigabytes in memory and writes them when the copy is over. So a
//! thread syncs the target again and again, and the copy stays no more than [`AHEAD`] before the
//! disk, which also makes its progress true on a slow stick.

use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard};

use nix::errno::Errno;
use nix::unistd::syncfs;

// Fewer bytes are not worth a sync.
const STEP: u64 = 64 << 20;
const AHEAD: u64 = 512 << 20;

#[derive(Default)]
pub struct Flush {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Bytes that were written and not yet synced.
    waiting: u64,
    over: bool,
    failed: Option<Errno>,
}

impl Flush {
    /// Runs `copy`, which tells what it writes by [`Flush::wrote`], and syncs beside it.
    ///
    /// `target` is on the file system to sync, and has an open file description of its own: the
    /// kernel tells of an error once for each.
    pub fn beside<T>(&self, target: &OwnedFd, copy: impl FnOnce() -> T) -> nix::Result<T> {
        let done = std::thread::scope(|scope| {
            scope.spawn(|| self.run(target));
            // Also when `copy` panics, or the scope would wait for ever.
            let _over = Over(self);
            copy()
        });
        self.failed().map(|()| done)
    }

    /// Says that so many bytes were written, and waits if the disk is far behind.
    pub fn wrote(&self, bytes: u64) {
        let mut state = self.lock();
        state.waiting += bytes;
        self.changed.notify_all();
        while state.waiting > AHEAD && !state.over && state.failed.is_none() {
            state = self.wait(state);
        }
    }

    /// Returns the error that a sync has met.
    pub fn failed(&self) -> nix::Result<()> {
        self.lock().failed.map_or(Ok(()), Err)
    }

    fn run(&self, target: &OwnedFd) {
        let mut state = self.lock();
        loop {
            while state.waiting < STEP && !state.over {
                state = self.wait(state);
            }
            if state.over || state.failed.is_some() {
                return;
            }
            let bytes = state.waiting;
            drop(state);
            let result = syncfs(target);
            state = self.lock();
            state.waiting -= bytes;
            state.failed = result.err();
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).expect("nobody panics with it")
    }
}

struct Over<'a>(&'a Flush);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.changed.notify_all();
    }
}
