//! How long a wait for a machine goes on: by what the machine computes, for that is the same on a busy host.
//!
//! Real time only ends what would hang for ever, as a machine does that computes nothing.

use std::fs;
use std::time::{Duration, Instant};

/// What a machine needs at most to boot, in processor time: four times what it takes.
pub const BOOT: Duration = Duration::from_secs(120);
/// For what takes a moment.
pub const QUICK: Duration = Duration::from_secs(60);
/// For whole installations.
pub const LONG: Duration = Duration::from_secs(600);
/// The far end of every wait, in real time: beside much other work, machines take ten times as long.
pub const BACKSTOP: Duration = Duration::from_secs(40 * 60);

// The kernel counts processor time in these, to everybody.
const TICKS_PER_SECOND: u64 = 100;

/// A wait that is under way.
pub struct Patience<F> {
    computed: F,
    limit: Duration,
    start: Duration,
    begun: Instant,
}

impl<F: Fn() -> Option<Duration>> Patience<F> {
    /// Begins a wait for what `computed` tells the processor time of, if it is there.
    pub fn new(limit: Duration, computed: F) -> Self {
        let start = computed().unwrap_or_default();
        Patience { computed, limit, start, begun: Instant::now() }
    }

    /// Returns all the processor time until now, if what is waited for is there.
    pub fn computed(&self) -> Option<Duration> {
        (self.computed)()
    }

    /// Says how long the wait took, for whoever reads what came of a test.
    pub fn over(&self, what: &str) {
        let computed = self.computed().unwrap_or_default().saturating_sub(self.start);
        let (computed, passed) = (computed.as_secs_f32(), self.begun.elapsed().as_secs_f32());
        eprintln!("{passed:7.1} s, {computed:.1} of them computing: {what}");
    }

    /// Returns the sentence that the wait ends with, once it was waited for long enough.
    pub fn at_end(&self) -> Option<String> {
        let computed = self.computed()?.saturating_sub(self.start);
        if computed >= self.limit {
            return Some(format!("in {} s of computing", computed.as_secs()));
        }
        let passed = self.begun.elapsed();
        (passed >= BACKSTOP)
            .then(|| format!("in {} s, {} of them computing", passed.as_secs(), computed.as_secs()))
    }
}

/// Returns the processor time that a process has used, if it is there.
pub fn computed_by(pid: u32) -> Option<Duration> {
    processor_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads the time in user and in kernel mode, of all threads, from `/proc/PID/stat`.
fn processor_time(stat: &str) -> Option<Duration> {
    // The name, which is in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let ticks: u64 = times.next()?.parse::<u64>().ok()? + times.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

#[test]
fn a_wait_ends_with_what_was_computed() {
    use std::cell::Cell;

    let computed = Cell::new(Some(Duration::from_secs(5)));
    let patience = Patience::new(Duration::from_secs(10), || computed.get());
    for (now, ends) in
        [(Some(5), false), (Some(14), false), (None, false), (Some(15), true), (Some(99), true)]
    {
        computed.set(now.map(Duration::from_secs));
        assert_eq!(patience.at_end().is_some(), ends, "{now:?}");
    }
}

#[test]
fn processor_time_is_read_behind_any_name() {
    let fields = "S 1 2 3 4 5 6 7 8 9 10 250 50 7 7 20 0";
    for name in ["qemu", "a (b) c", ") 1 2"] {
        assert_eq!(processor_time(&format!("17 ({name}) {fields}")), Some(Duration::from_secs(3)), "{name}");
    }
    assert_eq!(processor_time("17 (qemu) S 1"), None);
    let busy = || (0..50_000_000_u64).fold(0_u64, |sum, next| std::hint::black_box(sum ^ next));
    while computed_by(std::process::id()).expect("it runs") < Duration::from_millis(10) {
        busy();
    }
}
