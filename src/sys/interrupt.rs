//! Ctrl-C and SIGTERM: a sentence that says where things stand, then the end.
//!
//! Nothing is undone here but a file that has no name yet. Mounts live in a private namespace, loop devices detach with their last
//! user, children die with us: stopping at once is safe by construction, also for `kill -9`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use super::terminal;

static SENTENCE: Mutex<String> = Mutex::new(String::new());
static GROWING: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Says from now on, when interrupted, how things stand and how to go on.
pub fn say(sentence: impl Into<String>) {
    *SENTENCE.lock().unwrap_or_else(PoisonError::into_inner) = sentence.into();
}

/// Removes this file when interrupted, from now on until it is [`grown`].
pub fn grows(file: &Path) {
    *GROWING.lock().unwrap_or_else(PoisonError::into_inner) = Some(file.to_owned());
}

/// Keeps the file that [`grows`] named.
pub fn grown() {
    *GROWING.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Starts listening. To be called before any other thread exists, so that all of them inherit the mask.
pub fn listen() -> Result<()> {
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block().context("blocking signals")?;
    say("nothing was changed");
    std::thread::spawn(move || {
        let signal = signals.wait().map_or("a signal", Signal::as_str);
        let sentence = SENTENCE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = GROWING.lock().unwrap_or_else(PoisonError::into_inner).take() {
            fs::remove_file(file).ok();
        }
        super::terminal::restore();
        terminal::tell(format_args!("\nerror: stopped by {signal}; {sentence}"));
        std::process::exit(1);
    });
    Ok(())
}
