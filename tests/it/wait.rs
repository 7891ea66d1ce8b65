//! Waiting for what others do, until it is done, however slow the machine is.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// What hangs fails then; what works never takes as long, on any machine.
pub const BACKSTOP: Duration = Duration::from_secs(30 * 60);
const POLL: Duration = Duration::from_millis(20);

/// Looks until something is there, and returns it.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < BACKSTOP, "waited in vain: {what}");
        sleep(POLL);
    }
}
