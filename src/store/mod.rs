//! The Nix store: paths, hashes, archives, closures, the copy engine and the database.

pub mod closure;
pub mod copy;
pub mod scan;
pub mod verify;
pub mod db;
pub mod hash;
pub mod path;
