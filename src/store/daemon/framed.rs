//! A stream of unknown length inside the protocol: frames of a length and so many bytes, ended by a length of 0.

use std::io::{self, Write};

use anyhow::Result;

use super::link::Link;
use super::{DaemonError, PathInfo};

const FRAME: usize = 64 << 10;
const HEAD: usize = 8;

/// Cuts what is written into frames and sends them, with an ear for what the daemon says meanwhile.
pub struct Framed<'a, 'b> {
    link: &'a mut Link<'b>,
    // Begins with room for the length.
    frame: Vec<u8>,
    failure: Option<DaemonError>,
}

impl<'a, 'b> Framed<'a, 'b> {
    pub fn new(link: &'a mut Link<'b>) -> Self {
        let mut frame = Vec::with_capacity(HEAD + FRAME);
        frame.resize(HEAD, 0);
        Framed { link, frame, failure: None }
    }

    /// Sends what is left and the end. After a failure there is nobody to send it to.
    pub fn end(mut self) -> Result<(), DaemonError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        self.send()?;
        self.link.send(&0_u64.to_le_bytes())
    }

    /// Returns what the daemon did to end the stream early, if it did.
    pub fn failure(&self) -> Option<&DaemonError> {
        self.failure.as_ref()
    }

    fn send(&mut self) -> Result<(), DaemonError> {
        let length = self.frame.len() - HEAD;
        if length > 0 {
            self.frame[..HEAD].copy_from_slice(&(length as u64).to_le_bytes());
            self.link.send(&self.frame)?;
            self.frame.truncate(HEAD);
        }
        Ok(())
    }
}

impl Write for Framed<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failure.is_none() && self.frame.len() == HEAD + FRAME {
            self.failure = self.send().err();
        }
        if let Some(failure) = &self.failure {
            return Err(io::Error::other(failure.clone()));
        }
        let count = bytes.len().min(HEAD + FRAME - self.frame.len());
        self.frame.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lets exactly the NAR of one path through.
pub struct Measured<'a, W> {
    inner: W,
    info: &'a PathInfo,
    left: u64,
    overflowed: bool,
}

impl<'a, W: Write> Measured<'a, W> {
    pub fn new(inner: W, info: &'a PathInfo) -> Self {
        Measured { inner, info, left: info.nar_size.0, overflowed: false }
    }

    fn wrong(&self) -> DaemonError {
        DaemonError::Size { path: self.info.path.clone(), expected: self.info.nar_size.0 }
    }

    /// Judges what was `written`; that it was too much counts more than what the writer made of that.
    pub fn end(self, written: Result<()>) -> Result<()> {
        match written {
            Err(error) if !self.overflowed => Err(error),
            Ok(()) if self.left == 0 && !self.overflowed => Ok(()),
            _ => Err(self.wrong().into()),
        }
    }
}

impl<W: Write> Write for Measured<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            self.overflowed = true;
            return Err(io::Error::other(self.wrong()));
        }
        let count = self.inner.write(bytes)?;
        self.left -= count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
