//! Deltas: a store object sent to somebody who has an older one, in few bytes.
//!
//! Both ends have the *base*, byte for byte. They look at it as one archive and rewrite in it the
//! store paths the base refers to into those the new object refers to instead ([`Rewriting`]); of
//! an object that was only rebuilt nothing is then different, and the delta is one copy. What does
//! differ is packed by zstd with the part of the base it most likely came from as a prefix.
//!
//! A delta is, in EBNF, with numbers as in LEB128 (seven bits a byte, low ones first, at most ten
//! bytes):
//!
//! ```text
//! delta  = VERSION { part } %0            a byte
//! part   = copy | raw | packed | next | keep | again
//! copy   = %1 length from                 bytes of the rewritten base's archive from there on
//! raw    = %2 length bytes
//! packed = %3 length from reach size frame
//! next   = %4 length reach size frame
//! keep   = %5 length                      this many bytes that the next parts make are kept
//! again  = %6 length from                 bytes of all that was kept, from there on
//! ```
//!
//! A frame of zstd has `size` bytes and holds `length`. In `packed` its prefix is `reach` bytes, at most
//! 16 MiB, of the rewritten base's archive from `from` on; in `next` the last `reach` bytes of the
//! `packed` or `next` that stands right before it. `raw`, `packed` and `next` make at most 4 MiB. What is
//! kept ends before more is kept. No part is empty, and nothing follows the delta.
//!
//! The parts, unpacked one behind the other, are the archive of the new object. Whether they are
//! the right one only its hash can tell, for which the receiver has to look.

mod archive;
mod bases;
mod decoder;
mod encoder;
mod mates;
mod repeats;
mod rewriting;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
mod view;

pub use archive::Archive;
pub use bases::{bases, family, version};
pub use decoder::decode;
pub use encoder::encode;
pub use rewriting::Rewriting;

/// 1: first.
pub const VERSION: u8 = 1;

const END: u8 = 0;
const COPY: u8 = 1;
const RAW: u8 = 2;
const PACKED: u8 = 3;
const NEXT: u8 = 4;
const KEEP: u8 = 5;
const AGAIN: u8 = 6;

// What is unpacked at once, and the most of the base that is held for it. Together with zstd's
// tables, and a slice that the next one leans on, this is what a delta costs in memory, at either end.
const SLICE: u64 = 4 << 20;
const REACH: u64 = 16 << 20;

/// What both ends have.
pub struct Base<'a> {
    pub archive: &'a Archive,
    pub rewriting: &'a Rewriting,
}

/// A delta that is none.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum DeltaError {
    #[error("the delta has version {0}, and this program knows {VERSION}; use the same program at both ends")]
    Version(u8),
    #[error("the delta ends too early")]
    Truncated,
    #[error("the delta needs a base and has none")]
    NoBase,
    #[error("the delta makes more or less than the {0} bytes it should")]
    Size(u64),
    #[error("the delta is damaged: {0}")]
    Bad(&'static str),
}
