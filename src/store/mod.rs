//! The Nix store: paths, hashes, archives, closures, the copy engine and the database.

pub mod closure;
pub mod db;
pub mod hash;
pub mod path;
