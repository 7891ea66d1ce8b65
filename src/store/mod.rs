//! The Nix store: paths, hashes, archives, closures, the copy engine and the database.

pub mod closure;
pub mod copy;
pub mod db;
mod flush;
pub mod hash;
mod info;
pub mod lanes;
pub mod nar;
pub mod path;
pub mod scan;
#[cfg(test)]
mod testing;
pub mod tree;
pub mod verify;

pub use info::PathInfo;
