//! The bytes to and from a daemon, in both directions at once.
//!
//! Neither side waits for the other with a full pipe: while we send, what comes is taken.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::DaemonError;

const PIECE: usize = 64 << 10;
// What a daemon that is ending may need to say its last words.
const GRACE: u8 = 200; // milliseconds

/// A connection to a daemon.
pub struct Channel {
    input: File,
    output: File,
    unread: Vec<u8>,
    // Where in `unread` the next message begins.
    start: usize,
}

impl Channel {
    pub fn new(input: OwnedFd, output: OwnedFd) -> Result<Channel> {
        for fd in [&input, &output] {
            let flags = fcntl(fd, FcntlArg::F_GETFL).context("looking at a connection")?;
            let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
            fcntl(fd, FcntlArg::F_SETFL(flags)).context("preparing a connection")?;
        }
        Ok(Channel { input: input.into(), output: output.into(), unread: Vec::new(), start: 0 })
    }

    /// What has come and was not consumed.
    pub fn unread(&self) -> &[u8] {
        &self.unread[self.start..]
    }

    pub fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start == self.unread.len() {
            self.unread.clear();
            self.start = 0;
        }
    }

    /// Waits for more to come.
    pub fn receive(&mut self) -> Result<(), DaemonError> {
        loop {
            wait(&mut [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
            if self.take()? {
                return Ok(());
            }
        }
    }

    /// Waits until some of `bytes` are sent or something has come, and returns how many were sent.
    pub fn exchange(&mut self, bytes: &[u8]) -> Result<usize, DaemonError> {
        let mut fds = [
            PollFd::new(self.input.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.output.as_fd(), PollFlags::POLLOUT),
        ];
        wait(&mut fds, PollTimeout::NONE)?;
        if fds[0].any().unwrap_or(true) {
            self.take()?;
        }
        match self.output.write(bytes) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                self.last_words();
                Err(DaemonError::HungUp)
            }
            other => other.map_err(failed),
        }
    }

    // It reads no more; why, it may have said or be about to say.
    fn last_words(&mut self) {
        let limit = self.unread.len() + PIECE;
        while self.unread.len() < limit {
            let mut fds = [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)];
            if !matches!(poll(&mut fds, PollTimeout::from(GRACE)), Ok(1..)) || self.take().is_err() {
                return;
            }
        }
    }

    // Takes what is there; false if it was nothing.
    fn take(&mut self) -> Result<bool, DaemonError> {
        self.unread.drain(..self.start);
        self.start = 0;
        let end = self.unread.len();
        self.unread.resize(end + PIECE, 0);
        let result = self.input.read(&mut self.unread[end..]);
        self.unread.truncate(end + *result.as_ref().unwrap_or(&0));
        match result {
            Ok(0) => Err(DaemonError::HungUp),
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Err(DaemonError::HungUp),
            Err(error) => Err(failed(error)),
        }
    }
}

fn wait(fds: &mut [PollFd], timeout: PollTimeout) -> Result<(), DaemonError> {
    match poll(fds, timeout) {
        Err(Errno::EINTR) | Ok(_) => Ok(()),
        Err(error) => Err(failed(error.into())),
    }
}

fn failed(error: std::io::Error) -> DaemonError {
    DaemonError::Failed(error.to_string())
}
