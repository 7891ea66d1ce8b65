//! Ctrl-C and SIGTERM: a sentence that says where things stand, then the end.
//!
//! Nothing is undone here. Mounts live in a private namespace, loop devices detach with their last
//! user, children die with us: stopping at once is safe by construction, also for `kill -9`.

use std::sync::Mutex;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

static SENTENCE: Mutex<String> = Mutex::new(String::new());

/// Says from now on, when interrupted, how things stand and how to go on.
pub fn say(sentence: impl Into<String>) {
    *SENTENCE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = sentence.into();
}

/// Starts listening. To be called before any other thread exists, so that all of them inherit the mask.
pub fn listen() -> Result<()> {
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block().context("blocking signals")?;
    say("nothing was changed");
    std::thread::spawn(move || {
        let signal = signals.wait().map_or("a signal", Signal::as_str);
        let sentence = SENTENCE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        super::terminal::restore();
        eprintln!("\nerror: stopped by {signal}; {sentence}");
        std::process::exit(1);
    });
    Ok(())
}
