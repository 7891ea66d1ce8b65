//! A running ssh: its pipes, its last words, and how it ended.

use std::collections::VecDeque;
use std::io::{BufReader, Read};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow};

use super::askpass::Desk;
use crate::progress::printable;

// What is kept of stderr for an error: enough for ssh's complaint, short enough for one screen.
const TAIL_LINES: usize = 10;
// Longer than any sentence of ssh's; the rest of such a line is dropped.
const LINE_LIMIT: usize = 1024;
// Once its streams have ended, ssh itself ends at once, unless something is wrong with it.
const PATIENCE: Duration = Duration::from_secs(5);
// What ssh ends with when the failure is its own and not the far end's.
const OWN_FAILURE: i32 = 255;

/// A connection as its owner holds it. Dropped, it is cut.
pub struct Connection {
    child: Child,
    tail: Arc<Mutex<VecDeque<String>>>,
    reader: Option<JoinHandle<()>>,
    // Open for as long as ssh may ask something.
    _desk: Option<Desk>,
}

pub type Pipes = (ChildStdin, BufReader<ChildStdout>);

impl Connection {
    /// Starts a client. Each line of its stderr goes to `heard`, safe to be shown.
    pub fn start(
        command: Command,
        desk: Option<Desk>,
        heard: impl Fn(&str) + Send + 'static,
    ) -> Result<(Pipes, Connection)> {
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let (started, child) = mpsc::channel();
        let lines = Arc::clone(&tail);
        // A child dies with the thread that started it: this one, which lives for as long as ssh does.
        let reader = thread::spawn(move || {
            if let Some(stderr) = spawn(command, &started) {
                each_line(stderr, |line| {
                    heard(line);
                    let mut tail = lines.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    tail.push_back(line.to_owned());
                    if tail.len() > TAIL_LINES {
                        tail.pop_front();
                    }
                });
            }
        });
        let mut child: Child = child.recv().expect("the thread tells before anything else")?;
        let input = child.stdin.take().expect("stdin is piped");
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Ok(((input, output), Connection { child, tail, reader: Some(reader), _desk: desk }))
    }

    /// Waits for the end, once both streams are closed. A failure comes with the last words that were said.
    pub fn finish(mut self) -> Result<()> {
        let status = self.child.wait().context("waiting for ssh")?;
        if status.success() { Ok(()) } else { Err(self.told(status)) }
    }

    /// Returns why the streams ended before their time.
    pub fn broken(mut self) -> Error {
        match self.ended() {
            Some(status) => self.told(status),
            None => anyhow!("the far end fell silent, and ssh did not end{}", self.last_words()),
        }
    }

    /// Returns the status once the streams have ended, if it comes.
    fn ended(&mut self) -> Option<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < deadline => sleep(Duration::from_millis(10)),
                ended => return ended.ok().flatten(),
            }
        }
    }

    fn told(&mut self, status: ExitStatus) -> Error {
        // Its last lines may still be on their way, or be kept by a child of its own.
        let deadline = Instant::now() + PATIENCE;
        while self.reader.as_ref().is_some_and(|reader| !reader.is_finished()) && Instant::now() < deadline {
            sleep(Duration::from_millis(10));
        }
        let words = self.last_words();
        match status.code() {
            Some(OWN_FAILURE) => anyhow!("ssh could not connect, or lost the connection{words}"),
            Some(0) => anyhow!("the far end ended before it was done{words}"),
            _ => anyhow!("the far end ended with {status}{words}"),
        }
    }

    fn last_words(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        tail.iter().map(|line| format!("\n    {line}")).collect()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Of one that has ended already there is nothing to kill and nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the client and hands it over, all but its stderr.
fn spawn(mut command: Command, started: &mpsc::Sender<Result<Child>>) -> Option<ChildStderr> {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let program = command.get_program().to_string_lossy().into_owned();
    let child = child.with_context(|| format!("starting {program}, the OpenSSH client"));
    let (child, stderr) = match child {
        Ok(mut child) => {
            let stderr = child.stderr.take();
            (Ok(child), stderr)
        }
        Err(error) => (Err(error), None),
    };
    started.send(child).ok().and(stderr)
}

/// Hands over each line of what somebody says, safe to be shown and of bounded length.
fn each_line(mut input: impl Read, mut heard: impl FnMut(&str)) {
    let mut line = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = input.read(&mut buffer) {
        for &byte in &buffer[..count] {
            match byte {
                b'\n' => said(&mut line, &mut heard),
                _ if line.len() < LINE_LIMIT => line.push(byte),
                _ => (),
            }
        }
    }
    said(&mut line, &mut heard);
}

fn said(line: &mut Vec<u8>, heard: &mut impl FnMut(&str)) {
    let text = printable(String::from_utf8_lossy(line).trim_end());
    if !text.is_empty() {
        heard(&text);
    }
    line.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> (Pipes, Connection) {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Connection::start(command, None, |_| ()).unwrap()
    }

    #[test]
    fn an_end_is_told_with_the_last_words() {
        for (script, told) in [
            ("exit 0", None),
            (
                "echo no route >&2; exit 255",
                Some("ssh could not connect, or lost the connection\n    no route"),
            ),
            (
                "printf '\\033[2Jx\\r\\n\\nlast' >&2; exit 3",
                Some("the far end ended with exit status: 3\n    \\u{1b}[2Jx\n    last"),
            ),
            ("kill -9 $$", Some("the far end ended with signal: 9 (SIGKILL)")),
        ] {
            let (pipes, connection) = sh(script);
            drop(pipes);
            let error = connection.finish().err().map(|error| error.to_string());
            assert_eq!(error.as_deref(), told, "{script}");
        }
        let (_pipes, connection) = sh("exit 0");
        assert_eq!(connection.broken().to_string(), "the far end ended before it was done");
    }

    #[test]
    fn lines_are_bounded_and_the_tail_is_short() {
        let mut lines = Vec::new();
        let long = "x".repeat(3 * LINE_LIMIT);
        each_line(format!("{long}\nshort").as_bytes(), |line| lines.push(line.to_owned()));
        assert_eq!(lines, [&long[..LINE_LIMIT], "short"]);
        let (pipes, connection) = sh("for i in $(seq 30); do echo $i >&2; done; exit 1");
        drop(pipes);
        let error = connection.finish().unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1 + TAIL_LINES, "{error}");
        assert!(error.ends_with("\n    30"), "{error}");
    }

    #[test]
    fn one_that_is_dropped_is_gone() {
        let (pipes, connection) = sh("exec sleep 60");
        let id = connection.child.id();
        drop((pipes, connection));
        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn a_client_that_is_missing_is_named() {
        let error = Connection::start(Command::new("/nowhere/ssh"), None, |_| ()).err().unwrap();
        assert_eq!(error.to_string(), "starting /nowhere/ssh, the OpenSSH client");
    }
}
