//! Frames: where in a stream of bytes one thing ends and the next begins.
//!
//! What is read is not trusted: a length is bounded before it is believed, and memory is taken as the
//! bytes come.

use std::io::{ErrorKind, Read, Write};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sys::pack;

/// The longest message. The largest systems have some ten thousand paths, with a few hundred bytes each.
pub const MESSAGE_LIMIT: usize = 16 << 20;
/// The longest piece of data, and so what a writer holds back at the most.
pub const DATA_LIMIT: usize = 256 << 10;

// Below this, packing would gain less than a packet.
const PACK_FROM: usize = 512;
const PACK_LEVEL: i32 = 3;

const MESSAGE: u8 = 0;
const PACKED: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;

/// Bytes that are no frames, or frames out of place.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum WireError {
    #[error("the other end was cut off")]
    HungUp,
    #[error("the other end is not understood: {0}")]
    Garbled(&'static str),
    #[error(
        "the other end speaks version {0} and this program version {ours}; use the program of the system \
         that is deployed",
        ours = super::VERSION
    )]
    Version(u32),
}

/// Tells whether an error is that the link was cut.
pub fn is_cut(error: &anyhow::Error) -> bool {
    let is_cut =
        |kind| matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof);
    error.chain().any(|cause| {
        cause.downcast_ref() == Some(&WireError::HungUp)
            || cause.downcast_ref::<std::io::Error>().is_some_and(|cause| is_cut(cause.kind()))
    })
}

/// One thing that was said.
#[derive(Debug, PartialEq)]
pub enum Frame {
    /// A message, still encoded.
    Message(Vec<u8>),
    /// A piece of what the last message announced.
    Data(Vec<u8>),
    /// The last piece was the last.
    End,
}

/// Writes frames. Nothing is held back but by the sink itself.
pub struct Writer<W>(pub W);

impl<W: Write> Writer<W> {
    /// Says a message, all of it at once.
    pub fn message(&mut self, message: &impl Serialize) -> Result<()> {
        let bytes = postcard::to_stdvec(message).context("encoding a message")?;
        if bytes.len() > MESSAGE_LIMIT {
            bail!("a message of {} bytes is too long to be sent", bytes.len());
        }
        match bytes.len() {
            0..PACK_FROM => self.frame(MESSAGE, &[&bytes]),
            length => {
                let length = (length as u32).to_le_bytes();
                self.frame(PACKED, &[&length, &pack::pack(&bytes, &[], PACK_LEVEL)?])
            }
        }?;
        self.0.flush().context("sending")
    }

    /// Says a piece of data, at most [`DATA_LIMIT`] bytes.
    pub fn data(&mut self, bytes: &[u8]) -> Result<()> {
        debug_assert!(bytes.len() <= DATA_LIMIT);
        self.frame(DATA, &[bytes])
    }

    /// Says that this was all the data.
    pub fn end(&mut self) -> Result<()> {
        self.frame(END, &[])
    }

    fn frame(&mut self, kind: u8, parts: &[&[u8]]) -> Result<()> {
        let length = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut head = (length as u32).to_le_bytes().to_vec();
        head.push(kind);
        let mut write = || parts.iter().try_fold(self.0.write_all(&head)?, |(), part| self.0.write_all(part));
        write().map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => WireError::HungUp.into(),
            _ => anyhow::Error::new(error).context("sending"),
        })
    }
}

/// Reads frames.
pub struct Reader<R>(pub R);

impl<R: Read> Reader<R> {
    /// Returns the next frame, or none if the other end has nothing more to say.
    pub fn frame(&mut self) -> Result<Option<Frame>> {
        let mut head = [0; 4];
        match self.0.read(&mut head).context("listening")? {
            0 => return Ok(None),
            count => self.fill(&mut head[count..])?,
        }
        let length = u32::from_le_bytes(head) as usize;
        // The longest message, its kind and its length unpacked.
        if length == 0 || length > MESSAGE_LIMIT + 5 {
            bail!(WireError::Garbled("a frame has an impossible length"));
        }
        let mut kind = [0];
        self.fill(&mut kind)?;
        let limit = match kind[0] {
            MESSAGE => MESSAGE_LIMIT,
            PACKED => MESSAGE_LIMIT + 4,
            DATA => DATA_LIMIT,
            END => 0,
            _ => bail!(WireError::Garbled("a frame has an unknown kind")),
        };
        if length - 1 > limit {
            bail!(WireError::Garbled("a frame is too long"));
        }
        let bytes = self.bytes(length - 1)?;
        Ok(Some(match kind[0] {
            MESSAGE => Frame::Message(bytes),
            PACKED => Frame::Message(unpack(&bytes)?),
            DATA => Frame::Data(bytes),
            _ => Frame::End,
        }))
    }

    /// Returns the next message, or none if the other end has nothing more to say.
    pub fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        match self.frame()? {
            None => Ok(None),
            Some(Frame::Message(bytes)) => decode(&bytes).map(Some),
            Some(_) => bail!(WireError::Garbled("data come where a message should")),
        }
    }

    fn bytes(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let count = self.0.by_ref().take(length as u64).read_to_end(&mut bytes).context("listening")?;
        if count < length {
            bail!(WireError::HungUp);
        }
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        match self.0.read_exact(bytes) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => bail!(WireError::HungUp),
            other => other.context("listening"),
        }
    }
}

/// Reads a message, to its very end.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok(_) => bail!(WireError::Garbled("something follows a message")),
        Err(_) => bail!(WireError::Garbled("a message has an unknown form")),
    }
}

fn unpack(bytes: &[u8]) -> Result<Vec<u8>> {
    let Some((length, packed)) = bytes.split_first_chunk() else {
        bail!(WireError::Garbled("a packed message is too short"))
    };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MESSAGE_LIMIT {
        bail!(WireError::Garbled("a packed message is too long"));
    }
    let unpacked = pack::unpack(packed, &[], length)?;
    Ok(unpacked.ok_or(WireError::Garbled("a packed message is damaged"))?)
}

/// The data that follow a message, to their end.
pub struct Incoming<'a, R> {
    reader: &'a mut Reader<R>,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
}

impl<'a, R: Read> Incoming<'a, R> {
    pub fn new(reader: &'a mut Reader<R>) -> Self {
        Incoming { reader, piece: Vec::new(), at: 0, ended: false }
    }

    /// Passes over what was not read.
    pub fn finish(mut self) -> Result<()> {
        while !self.ended {
            self.advance()?;
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<()> {
        match self.reader.frame()? {
            Some(Frame::Data(piece)) => (self.piece, self.at) = (piece, 0),
            Some(Frame::End) => self.ended = true,
            Some(Frame::Message(_)) => bail!(WireError::Garbled("a message comes amid data")),
            None => bail!(WireError::HungUp),
        }
        Ok(())
    }
}

impl<R: Read> Read for Incoming<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.piece.len() && !self.ended {
            self.advance().map_err(std::io::Error::other)?;
        }
        if self.ended {
            return Ok(0);
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..][..count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Writer<&mut Vec<u8>>) -> Result<()>) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut Writer(&mut bytes)).unwrap();
        bytes
    }

    fn error(bytes: &[u8]) -> WireError {
        let mut reader = Reader(bytes);
        loop {
            match reader.frame() {
                Ok(Some(_)) => (),
                Ok(None) => panic!("no error in {} bytes", bytes.len()),
                Err(error) => return error.downcast().unwrap(),
            }
        }
    }

    #[test]
    fn frames_are_read_as_they_were_written_whatever_the_pieces() {
        let long = vec!["/nix/store".to_owned(); 1000];
        let bytes = written(|writer| {
            writer.message(&7_u32)?;
            writer.message(&long)?;
            writer.data(b"some")?;
            writer.data(&[])?;
            writer.data(&[7; DATA_LIMIT])?;
            writer.end()?;
            writer.message(&"last")
        });
        assert!(bytes.len() < DATA_LIMIT + 300);
        struct Slow<'a>(&'a [u8]);
        impl Read for Slow<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                let count = buffer.len().min(3);
                self.0.read(&mut buffer[..count])
            }
        }
        let mut reader = Reader(Slow(&bytes));
        assert_eq!(reader.message().unwrap(), Some(7_u32));
        assert_eq!(reader.message().unwrap(), Some(long));
        let mut data = Vec::new();
        let mut incoming = Incoming::new(&mut reader);
        incoming.read_to_end(&mut data).unwrap();
        incoming.finish().unwrap();
        assert!(data.starts_with(b"some\x07") && data.len() == DATA_LIMIT + 4);
        assert_eq!(reader.message().unwrap(), Some("last".to_owned()));
        assert_eq!(reader.frame().unwrap(), None);
    }

    #[test]
    fn the_form_of_a_frame_does_not_change() {
        let bytes = written(|writer| {
            writer.message(&"hi")?;
            writer.data(b"x")?;
            writer.end()
        });
        assert_eq!(bytes, b"\x04\0\0\0\0\x02hi\x02\0\0\0\x02x\x01\0\0\0\x03");
    }

    #[test]
    fn lies_are_refused_before_memory_is_taken() {
        let frame = |length: u32, kind: u8, rest: &[u8]| [&length.to_le_bytes()[..], &[kind], rest].concat();
        let bomb = pack::pack(&vec![0; MESSAGE_LIMIT + 1], &[], 1).unwrap();
        let packed = |length: u32| {
            let rest = [&length.to_le_bytes()[..], &bomb].concat();
            frame(rest.len() as u32 + 1, PACKED, &rest)
        };
        let garbled = WireError::Garbled;
        for (bytes, expected) in [
            (frame(0, MESSAGE, &[]), garbled("a frame has an impossible length")),
            (frame(u32::MAX, MESSAGE, &[]), garbled("a frame has an impossible length")),
            (frame(2, 9, b"x"), garbled("a frame has an unknown kind")),
            (frame(DATA_LIMIT as u32 + 2, DATA, &[]), garbled("a frame is too long")),
            (frame(2, END, b"x"), garbled("a frame is too long")),
            (frame(MESSAGE_LIMIT as u32 + 1, MESSAGE, b"short"), WireError::HungUp),
            (frame(3, PACKED, b"xx"), garbled("a packed message is too short")),
            (packed(u32::MAX), garbled("a packed message is too long")),
            (packed(MESSAGE_LIMIT as u32), garbled("a packed message is damaged")),
            (packed(5), garbled("a packed message is damaged")),
        ] {
            assert_eq!(error(&bytes), expected);
        }
        let good = written(|writer| writer.message(&"hello"));
        for end in 1..good.len() {
            assert_eq!(error(&good[..end]), WireError::HungUp);
        }
    }

    #[test]
    fn what_is_out_of_place_is_refused() {
        let bytes = written(|writer| writer.data(b"x"));
        assert!(Reader(&bytes[..]).message::<u32>().is_err());
        let bytes = written(|writer| {
            writer.data(b"x")?;
            writer.message(&7_u32)
        });
        let mut reader = Reader(&bytes[..]);
        assert!(Incoming::new(&mut reader).read_to_end(&mut Vec::new()).is_err());
        let bytes = written(|writer| writer.data(b"x"));
        assert!(Incoming::new(&mut Reader(&bytes[..])).finish().is_err());
        assert!(decode::<u8>(&[1, 2]).is_err());
        assert!(decode::<String>(&[200, 1, b'x']).is_err());
        // A list that claims to be endless, of nothing.
        assert!(decode::<Vec<u64>>(&[0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
    }
}
