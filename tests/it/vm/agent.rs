//! The way into a machine: a virtio-serial port, with the agent of the fixture or of Debian behind it.
//!
//! `ping NUMBER` is answered by `NUMBER 0 0`. `run NUMBER SIZE` and a script of so many bytes are answered by
//! `NUMBER STATUS SIZE` and so many bytes of what it printed. Nothing on the way is a terminal, so nothing is echoed,
//! cut or interpreted, and QEMU keeps what is written until the agent has opened its port.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// What the port is called; the agent looks for it.
pub const PORT: &str = "tests.agent";

// Whoever waits looks at the machine as often.
const POLL: Duration = Duration::from_millis(200);

pub struct Agent {
    port: UnixStream,
    heard: Vec<u8>,
    /// Of the next request. Replies to requests that nobody waits for any more may still come.
    next: u64,
}

/// What came of a script: its status, and what it printed.
pub type Reply = (i32, Vec<u8>);

impl Agent {
    pub fn connect(socket: &Path) -> Result<Agent> {
        let port = UnixStream::connect(socket)?;
        port.set_read_timeout(Some(POLL))?;
        Ok(Agent { port, heard: Vec::new(), next: 1 })
    }

    /// Asks whether it is there, and returns the number of the question.
    pub fn ping(&mut self) -> Result<u64> {
        let number = self.number();
        self.send(format!("ping {number}\n").as_bytes())?;
        Ok(number)
    }

    /// Has it run a script, and returns the number of the request.
    pub fn run(&mut self, script: &str) -> Result<u64> {
        let number = self.number();
        self.send(format!("run {number} {}\n{script}", script.len()).as_bytes())?;
        Ok(number)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.port.write_all(bytes).context("writing to the machine's agent")
    }

    /// Returns the reply to this request or a later one if it has come, after a short wait.
    pub fn reply(&mut self, number: u64) -> Result<Option<Reply>> {
        loop {
            while let Some((reply, length)) = parse(&self.heard)? {
                let output = self.heard[length - reply.size..length].to_vec();
                self.heard.drain(..length);
                if reply.number >= number {
                    return Ok(Some((reply.status, output)));
                }
            }
            let mut buffer = [0; 64 << 10];
            match self.port.read(&mut buffer) {
                Ok(0) => bail!("the machine ended"),
                Ok(count) => self.heard.extend(&buffer[..count]),
                // A read with a time limit is interrupted when this process is stopped and goes on.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error).context("reading from the machine's agent"),
            }
        }
    }

    /// Returns what has come of a reply that is not whole, for those who tell of it.
    pub fn unfinished(&self) -> String {
        String::from_utf8_lossy(&self.heard).into_owned()
    }
}

#[derive(Debug, PartialEq)]
struct Header {
    number: u64,
    status: i32,
    size: usize,
}

/// Reads a reply, and how many bytes of what was heard it is; returns nothing of one that is not whole.
fn parse(heard: &[u8]) -> Result<Option<(Header, usize)>> {
    let Some(end) = heard.iter().position(|&byte| byte == b'\n') else { return Ok(None) };
    let line = String::from_utf8_lossy(&heard[..end]);
    let words: Vec<&str> = line.split(' ').collect();
    let header = match words[..] {
        [number, status, size] => (number.parse(), status.parse(), size.parse()),
        _ => bail!("the machine's agent said {line:?}"),
    };
    let (Ok(number), Ok(status), Ok(size)) = header else { bail!("the machine's agent said {line:?}") };
    let length = end + 1 + size;
    Ok((heard.len() >= length).then_some((Header { number, status, size }, length)))
}

#[test]
fn replies_are_read_however_they_are_cut() {
    let reply = |number, status, size| Header { number, status, size };
    let whole = b"7 1 9\n7 0 0\n\xff\n\n8 0 0\n";
    for length in 0..whole.len() {
        let expected = (length >= 15).then(|| (reply(7, 1, 9), 15));
        assert_eq!(parse(&whole[..length]).unwrap(), expected, "{length}");
    }
    assert_eq!(parse(&whole[15..]).unwrap(), Some((reply(8, 0, 0), 6)));
    for garbled in ["\n", "7 0\n", "7 0 x\n", "login: 7 0\n"] {
        assert!(parse(garbled.as_bytes()).is_err(), "{garbled:?}");
    }
}
