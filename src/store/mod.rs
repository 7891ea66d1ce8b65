//! The Nix store: paths, hashes, archives, closures, the copy engine and the database.

pub mod hash;
mod info;
pub mod lanes;
pub mod nar;
pub mod path;
pub mod tree;

pub use info::PathInfo;
