//! The dead man of a rescue: when a machine goes back to its old system because nobody comes.
//!
//! [`DeadMan`] decides, of instants that it is told. [`Visits`] is the one that all of a rescue shares.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::sys::clock::Clock;

/// Where the initrd of a rescue has the host keys of its machine.
pub const HOST_KEYS: &str = "host-keys";

/// What is to be done about the machine.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// Nothing, and there is no need to ask again before this has passed.
    Wait(Duration),
    /// The old system is whole and nobody has come, or come back.
    Reboot,
}

/// Who has been there, and whether there still is an old system to go back to.
#[derive(Clone, Debug)]
pub struct DeadMan {
    timeout: Duration,
    /// Since when nobody is there, where nobody is.
    alone: Instant,
    present: usize,
    touched: bool,
}

impl DeadMan {
    pub fn new(timeout: Duration, now: Instant) -> Self {
        DeadMan { timeout, alone: now, present: 0, touched: false }
    }

    /// Somebody has shown to be the one that is waited for.
    pub fn arrived(&mut self) {
        self.present += 1;
    }

    pub fn left(&mut self, now: Instant) {
        self.present = self.present.saturating_sub(1);
        self.alone = now;
    }

    /// The disk is not what it was: from here on, there is nothing to go back to.
    pub fn touched(&mut self) {
        self.touched = true;
    }

    pub fn verdict(&self, now: Instant) -> Verdict {
        if self.touched || self.present > 0 {
            return Verdict::Wait(self.timeout);
        }
        match self.timeout.saturating_sub(now.saturating_duration_since(self.alone)) {
            Duration::ZERO => Verdict::Reboot,
            left => Verdict::Wait(left),
        }
    }
}

/// The dead man, shared by the door that tells it who comes and the thread that waits for its verdict.
pub struct Visits {
    clock: Arc<dyn Clock>,
    dead_man: Mutex<DeadMan>,
}

/// Somebody who is there for as long as this is.
pub struct Visit(Arc<Visits>);

impl Visits {
    pub fn new(timeout: Duration, clock: Arc<dyn Clock>) -> Arc<Self> {
        let dead_man = Mutex::new(DeadMan::new(timeout, clock.now()));
        Arc::new(Visits { clock, dead_man })
    }

    pub fn arrive(self: &Arc<Self>) -> Visit {
        self.dead_man().arrived();
        Visit(Arc::clone(self))
    }

    /// To be called before the first byte of the disk is written.
    pub fn touched(&self) {
        self.dead_man().touched();
    }

    pub fn verdict(&self) -> Verdict {
        self.dead_man().verdict(self.clock.now())
    }

    /// Returns when the machine is to go back to its old system, which may be never.
    pub fn wait(&self) {
        while let Verdict::Wait(time) = self.verdict() {
            self.clock.sleep(time);
        }
    }

    // What is in there holds whatever has become of the thread that changed it last.
    fn dead_man(&self) -> MutexGuard<'_, DeadMan> {
        self.dead_man.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.dead_man().left(self.0.clock.now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock::testing::Stepped;

    enum Event {
        Arrived,
        Left,
        Touched,
    }
    use Event::*;

    #[test]
    fn a_machine_goes_back_when_nobody_has_been_there_for_as_long_and_the_disk_is_as_it_was() {
        let wait = |seconds| Verdict::Wait(Duration::from_secs(seconds));
        for (events, asked, verdict) in [
            (&[][..], 0, wait(60)),
            (&[], 59, wait(1)),
            (&[], 60, Verdict::Reboot),
            (&[], 1000, Verdict::Reboot),
            // Somebody is there, for however long.
            (&[(50, Arrived)], 1000, wait(60)),
            // The time begins anew when they leave.
            (&[(50, Arrived), (100, Left)], 100, wait(60)),
            (&[(50, Arrived), (100, Left)], 159, wait(1)),
            (&[(50, Arrived), (100, Left)], 160, Verdict::Reboot),
            // One of two is enough.
            (&[(50, Arrived), (60, Arrived), (100, Left)], 1000, wait(60)),
            (&[(50, Arrived), (60, Arrived), (100, Left), (110, Left)], 169, wait(1)),
            (&[(50, Arrived), (60, Arrived), (100, Left), (110, Left)], 170, Verdict::Reboot),
            (&[(50, Arrived), (100, Left), (120, Arrived)], 1000, wait(60)),
            // There is nothing to go back to.
            (&[(10, Touched)], 1000, wait(60)),
            (&[(50, Arrived), (60, Touched), (100, Left)], 1000, wait(60)),
            // A clock that steps back tells nothing.
            (&[(50, Arrived), (100, Left)], 90, wait(60)),
        ] {
            let start = Instant::now();
            let at = |seconds| start + Duration::from_secs(seconds);
            let mut dead_man = DeadMan::new(Duration::from_secs(60), start);
            for (time, event) in events {
                match event {
                    Arrived => dead_man.arrived(),
                    Left => dead_man.left(at(*time)),
                    Touched => dead_man.touched(),
                }
            }
            assert_eq!(dead_man.verdict(at(asked)), verdict, "at {asked} with {} events", events.len());
        }
    }

    #[test]
    fn the_verdict_is_waited_for_while_visits_come_and_go() {
        let seconds = Duration::from_secs;
        let clock = Arc::new(Stepped::start());
        let visits = Visits::new(seconds(60), clock.clone());
        let (first, later) = (visits.arrive(), Arc::clone(&visits));
        clock.at(seconds(90), move || drop(first));
        clock.at(seconds(140), move || drop(later.arrive()));
        visits.wait();
        assert_eq!(clock.passed(), seconds(200));
        assert_eq!(visits.verdict(), Verdict::Reboot);
        visits.touched();
        assert_eq!(visits.verdict(), Verdict::Wait(seconds(60)));
    }
}
