//! The clock that waits go by: the machine's own, or one that a test moves.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

pub trait Clock: Send + Sync {
    fn now(&self) -> Instant;

    /// Returns when as much time has passed.
    fn sleep(&self, time: Duration);
}

/// The machine's own clock, which nobody sets.
pub struct Monotonic;

impl Clock for Monotonic {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep(&self, time: Duration) {
        thread::sleep(time);
    }
}

/// Looks every `interval` until something is there, or returns `None` once `timeout` has passed.
pub fn poll<T>(
    clock: &dyn Clock,
    timeout: Duration,
    interval: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let begun = clock.now();
    loop {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        if clock.now().saturating_duration_since(begun) >= timeout {
            return Ok(None);
        }
        clock.sleep(interval);
    }
}

#[cfg(test)]
pub mod testing {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;

    type Event = Box<dyn FnOnce() + Send>;

    /// A clock on which nobody waits: a sleep moves it on, and what is to happen meanwhile happens then.
    pub struct Stepped {
        start: Instant,
        passed: Mutex<Duration>,
        events: Mutex<VecDeque<(Duration, Event)>>,
    }

    impl Stepped {
        pub fn start() -> Stepped {
            Stepped { start: Instant::now(), passed: Mutex::default(), events: Mutex::default() }
        }

        /// Lets something happen once `time` has passed; to be called in the order of the times.
        pub fn at(&self, time: Duration, event: impl FnOnce() + Send + 'static) {
            self.events.lock().unwrap().push_back((time, Box::new(event)));
        }

        pub fn passed(&self) -> Duration {
            *self.passed.lock().unwrap()
        }
    }

    impl Clock for Stepped {
        fn now(&self) -> Instant {
            self.start + self.passed()
        }

        fn sleep(&self, time: Duration) {
            let until = self.passed() + time;
            let due = || {
                let mut events = self.events.lock().unwrap();
                let next = events.front().is_some_and(|(time, _)| *time <= until);
                if next { events.pop_front() } else { None }
            };
            while let Some((time, event)) = due() {
                *self.passed.lock().unwrap() = time;
                event();
            }
            *self.passed.lock().unwrap() = until;
        }
    }

    #[test]
    fn what_is_looked_for_is_found_when_it_is_there_and_not_later_than_the_timeout() {
        let seconds = Duration::from_secs;
        for (there_at, found) in [(0, true), (7, true), (10, true), (11, false), (1000, false)] {
            let clock = Stepped::start();
            let look = || Ok((clock.passed() >= seconds(there_at)).then_some(()));
            let got = poll(&clock, seconds(10), seconds(1), look).unwrap();
            assert_eq!((got.is_some(), clock.passed()), (found, seconds(there_at.min(10))), "{there_at}");
        }
        let clock = Stepped::start();
        let fails = || -> Result<Option<()>> { anyhow::bail!("nobody looks twice") };
        assert!(poll(&clock, seconds(10), seconds(1), fails).is_err() && clock.passed().is_zero());
    }
}
