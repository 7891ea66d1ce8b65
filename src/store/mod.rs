//! The Nix store: paths, hashes, archives, closures, the copy engine and the database.

mod candidates;
pub mod closure;
pub mod copy;
pub mod daemon;
pub mod db;
pub mod delta;
pub mod difference;
mod flush;
pub mod gc;
pub mod hash;
mod info;
pub mod lanes;
pub mod nar;
pub mod path;
pub mod receive;
pub mod scan;
pub mod tarball;
#[cfg(test)]
pub(crate) mod testing;
pub mod tree;
pub mod verify;

pub use info::PathInfo;
