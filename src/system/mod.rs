//! A NixOS system in a root: its profile, its first directories, and running it.

pub mod activate;
pub mod claim;
pub mod container;
pub mod deployment;
pub mod enter;
pub mod etc;
pub mod extra_files;
pub mod host_keys;
pub mod identity;
pub mod inhibitors;
pub mod init;
pub mod modules;
pub mod profile;
pub mod rescue;
