//! Bytes that come in pieces, read as one stream.

use std::io::{self, Read};

/// Reads what `next` returns, one piece behind the other, until it returns none.
pub struct Pieces<F> {
    next: F,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
}

impl<F: FnMut() -> io::Result<Option<Vec<u8>>>> Pieces<F> {
    pub fn new(next: F) -> Self {
        Pieces { next, piece: Vec::new(), at: 0, ended: false }
    }
}

impl<F: FnMut() -> io::Result<Option<Vec<u8>>>> Read for Pieces<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() && !self.ended {
            match (self.next)()? {
                Some(piece) => (self.piece, self.at) = (piece, 0),
                None => self.ended = true,
            }
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

    #[test]
    fn pieces_are_one_stream_that_ends_once() {
        let mut coming = vec![Ok(None), Ok(Some(vec![3])), Ok(Some(vec![])), Ok(Some(vec![1, 2]))];
        let mut pieces = Pieces::new(|| coming.pop().expect("nobody asks behind the end"));
        let mut bytes = Vec::new();
        pieces.read_to_end(&mut bytes).unwrap();
        assert_eq!((bytes, pieces.read(&mut [0]).unwrap()), (vec![1, 2, 3], 0));
        let mut broken = Pieces::new(|| Err(io::Error::other("cut off")));
        assert_eq!(broken.read(&mut [0]).unwrap_err().to_string(), "cut off");
    }
}
