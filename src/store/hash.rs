//! The SHA-256 of a NAR, as the Nix database writes it.

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use nixos_install_via_sha256::{BLOCK, Kernel, States};

/// The SHA-256 of a store object's NAR. Prints as `sha256:` and 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NarHash(pub [u8; 32]);

/// A text that is no hash.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0:?} is not a NAR hash; it should be sha256: and 64 hex digits")]
pub struct NarHashError(String);

impl FromStr for NarHash {
    type Err = NarHashError;

    fn from_str(text: &str) -> Result<Self, NarHashError> {
        let error = || NarHashError(text.to_owned());
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let mut hash = [0; 32];
        if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(error());
        }
        for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = str::from_utf8(pair).map_err(|_| error())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
        }
        Ok(NarHash(hash))
    }
}

impl fmt::Display for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<String> for NarHash {
    type Error = NarHashError;
    fn try_from(text: String) -> Result<Self, NarHashError> {
        text.parse()
    }
}

impl From<NarHash> for String {
    fn from(hash: NarHash) -> String {
        hash.to_string()
    }
}

/// Hashes what is written through it.
pub struct Hashing<W> {
    inner: W,
    kernel: Kernel,
    // One message has one lane.
    states: States,
    /// The beginning of a block that is not whole yet.
    rest: [u8; BLOCK],
    size: u64,
}

impl<W: Write> Hashing<W> {
    pub fn new(inner: W) -> Self {
        let mut states = States::default();
        states.start(0);
        Hashing { inner, kernel: Kernel::best(), states, rest: [0; BLOCK], size: 0 }
    }

    /// Returns the hash and the number of bytes.
    pub fn finish(mut self) -> (NarHash, u64) {
        let size = self.size;
        // The end of a message by FIPS 180-4: a one bit, zeros, and the length in bits.
        let zeros = (BLOCK * 2 - 9 - size as usize % BLOCK) % BLOCK;
        let mut padding = [0; 2 * BLOCK];
        padding[0] = 0x80;
        padding[zeros + 1..][..8].copy_from_slice(&(size * 8).to_be_bytes());
        self.update(&padding[..zeros + 9]);
        (NarHash(self.states.digest(0)), size)
    }

    fn update(&mut self, mut bytes: &[u8]) {
        let begun = self.size as usize % BLOCK;
        self.size += bytes.len() as u64;
        if begun > 0 {
            let (more, others) = bytes.split_at(bytes.len().min(BLOCK - begun));
            self.rest[begun..][..more.len()].copy_from_slice(more);
            if begun + more.len() < BLOCK {
                return;
            }
            self.states.compress(self.kernel, &[(0, &self.rest)]);
            bytes = others;
        }
        let (blocks, rest) = bytes.split_at(bytes.len() / BLOCK * BLOCK);
        self.states.compress(self.kernel, &[(0, blocks)]);
        self.rest[..rest.len()].copy_from_slice(rest);
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_through_is_hashed_and_no_more() {
        let mut room = [0; 3];
        let mut hashing = Hashing::new(&mut room[..]);
        assert!(hashing.write_all(b"abcd").is_err());
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hashing.finish(), (abc.parse().unwrap(), 3));
    }

    #[test]
    fn messages_of_every_length_in_any_pieces_hash_as_the_sha2_package_says() {
        use sha2::{Digest, Sha256};
        let bytes: Vec<u8> = (0..70_000_u32).map(|number| ((number * 31) >> 3) as u8).collect();
        for length in (0..300).chain([4096, 65_535, 65_536, 70_000]) {
            for pieces in [1, 63, 64, 65, 1000, 70_000] {
                let mut hashing = Hashing::new(io::sink());
                bytes[..length].chunks(pieces).for_each(|piece| hashing.write_all(piece).unwrap());
                let (hash, size) = hashing.finish();
                assert_eq!(size, length as u64);
                assert_eq!(
                    hash.0.as_slice(),
                    Sha256::digest(&bytes[..length]).as_slice(),
                    "{length} by {pieces}"
                );
            }
        }
    }
}
