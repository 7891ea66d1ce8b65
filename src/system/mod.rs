//! A NixOS system in a root: its profile, its first directories, and running it.

pub mod claim;
pub mod enter;
pub mod extra_files;
pub mod identity;
pub mod profile;
