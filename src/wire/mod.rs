//! The conversation of two ends of this program, over any two streams of bytes.
//!
//! A frame is a little-endian u32, how long what follows is; a byte, of which kind; and the rest:
//!
//! ```text
//! %0 message       one of `Ask` or `Answer`, in postcard's encoding, at most 16 MiB
//! %1 u32 frame     the same in so many bytes, packed as a zstd frame
//! %2 bytes         data, at most 256 KiB
//! %3               the end of the data
//! ```
//!
//! The near end asks and the far end answers; each question has its answer before the next is asked,
//! but for a closure, which is sent without a pause:
//!
//! ```text
//! conversation = Hello / Hello { Look / Facts | Missing / Missing | copy | Deploy / deployed
//!                | Confirm / Ended | Reboot / Restarting | Examine / Target
//!                | Jump data data / Jumping | Install / installed }
//! copy         = Receive { Nar data | Again } End / { Unusable } Received
//! deployed     = [ Started ] Ended
//! installed    = { Begins | Wanted / [ copy ] | WantsExtraFiles / data } Installed
//! ```
//!
//! The copy within an installation is the answer to what is wanted, and left out where that is nothing.
//!
//! `Output` and `Warning` may stand before every answer, and `Failed` in place of every one: it is the
//! last thing said. The data behind a `Nar` are a delta ([`crate::store::delta`]), with or without a
//! base. On `Unusable` the near end says `Again` and sends from there on; the far end passes over all
//! that comes before it.
//!
//! What the other end says is not trusted: lengths are bounded before they are believed, paths and
//! hashes are parsed, positions are checked, text is bounded and printed without control characters.

mod answers;
pub mod client;
pub mod frame;
pub mod message;
pub mod parcels;
pub mod receiving;
pub mod sending;
pub mod server;

/// 3: `Facts` has switch inhibitors, and `Ended` may be refused. 2: a machine gets another system: `Examine`, `Jump`, `Install`. 1: first.
pub const VERSION: u32 = 3;
