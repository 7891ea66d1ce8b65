//! The terminal: questions whose answers are not shown.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::sync::Mutex;

use anyhow::{Context, Result};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use super::secret::Secret;

// Longer than any passphrase that cryptsetup takes from a terminal.
const LONGEST: usize = 1024;

/// How the terminal was before a question, until it is so again.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Tells whether somebody is there to answer.
pub fn is_there() -> bool {
    io::stdin().is_terminal()
}

/// Asks for a line and does not show it while it is typed.
pub fn ask_secret(question: &str) -> Result<Secret> {
    eprint!("{question} ");
    let stdin = io::stdin();
    let settings = tcgetattr(&stdin).context("asking on the terminal")?;
    let mut hidden = settings.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    *BEFORE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(settings);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &hidden).context("hiding what is typed")?;
    // Not through the buffer of the standard library, which would keep a copy.
    let line = stdin.as_fd().try_clone_to_owned().and_then(|fd| read_line(&mut File::from(fd)));
    restore();
    eprintln!();
    line.context("reading the answer")
}

/// Puts the terminal back as it was before a question; to be called whatever ends the program.
pub fn restore() {
    if let Some(settings) = BEFORE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take() {
        // There is nobody left to tell of a failure.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &settings);
    }
}

/// Reads a line byte by byte: what follows it is left to the next reader.
fn read_line(input: &mut impl Read) -> io::Result<Secret> {
    let mut line = Vec::with_capacity(LONGEST);
    let mut byte = [0];
    while line.len() < LONGEST && input.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    Ok(Secret::new(line))
}
