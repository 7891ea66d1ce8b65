//! The terminal: what is said there, and questions, some with answers that are not shown.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::sync::Mutex;

use anyhow::{Context, Result};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use super::secret::Secret;

// Longer than any passphrase that cryptsetup takes from a terminal.
const LONGEST: usize = 1024;

/// How the terminal was before a question, until it is so again.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Says a line to whoever listens. That nobody does is no reason to stop: what is under way goes on to its end.
pub fn tell(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Says something that is no whole line, or several.
pub fn tell_part(text: impl fmt::Display) {
    let _ = write!(io::stderr(), "{text}");
}

/// Tells whether somebody is there to answer.
pub fn is_there() -> bool {
    io::stdin().is_terminal()
}

/// Asks for a line that may be seen while it is typed.
pub fn ask(question: &str) -> Result<String> {
    tell_part(format_args!("{question} "));
    let stdin = io::stdin();
    let line = stdin.as_fd().try_clone_to_owned().and_then(|fd| read_line(&mut File::from(fd)));
    let line = line.context("reading the answer")?;
    Ok(String::from_utf8_lossy(line.bytes()).trim().to_owned())
}

/// Asks for a line and does not show it while it is typed.
pub fn ask_secret(question: &str) -> Result<Secret> {
    let stdin = io::stdin();
    let settings = tcgetattr(&stdin).context("asking on the terminal")?;
    let mut hidden = settings.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    *BEFORE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(settings);
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &hidden).context("hiding what is typed")?;
    // Only now: an answer typed between the question and the change would be shown, and lost.
    tell_part(format_args!("{question} "));
    // Not through the buffer of the standard library, which would keep a copy.
    let line = stdin.as_fd().try_clone_to_owned().and_then(|fd| read_line(&mut File::from(fd)));
    restore();
    tell("");
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::{Command, Stdio};

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::pty::openpty;
    use nix::sys::termios::{LocalFlags, tcgetattr};

    use super::ask_secret;
    use crate::wait;

    const ASKS: &str = "sys::terminal::tests::asks";

    #[test]
    #[ignore = "it is the other end of the_echo_is_off_before_the_question_is_seen"]
    fn asks() {
        assert_eq!(ask_secret("Passphrase:").unwrap().bytes(), b"answer");
    }

    // Nothing can be written to a pipe that is full: the question waits, and the echo must not.
    #[test]
    fn the_echo_is_off_before_the_question_is_seen() {
        let terminal = openpty(None, None).unwrap();
        let (mut screen, full) = std::io::pipe().unwrap();
        let flags = OFlag::from_bits_retain(fcntl(&full, FcntlArg::F_GETFL).unwrap());
        fcntl(&full, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).unwrap();
        while std::io::Write::write(&mut &full, &[b' '; 4096]).is_ok() {}
        fcntl(&full, FcntlArg::F_SETFL(flags)).unwrap();
        let mut other = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", ASKS, "--ignored", "--nocapture"])
            .stdin(terminal.slave)
            .stdout(Stdio::null())
            .stderr(full)
            .spawn()
            .unwrap();
        wait::until("the echo is off", || {
            assert!(other.try_wait().unwrap().is_none(), "it did not wait for an answer");
            let echoes = tcgetattr(&terminal.master).unwrap().local_flags.contains(LocalFlags::ECHO);
            (!echoes).then_some(())
        });
        std::io::Write::write_all(&mut File::from(terminal.master), b"answer\n").unwrap();
        let mut seen = String::new();
        std::io::Read::read_to_string(&mut screen, &mut seen).unwrap();
        assert!(other.wait().unwrap().success(), "{}", seen.trim());
    }
}
