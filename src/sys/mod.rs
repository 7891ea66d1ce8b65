//! The operating system, as we use it: programs, files, ioctls, namespaces.

pub mod command;
pub mod file;
pub mod inside;
pub mod interrupt;
pub mod ioctl;
pub mod namespace;
pub mod pack;
pub mod pieces;
pub mod scratch;
pub mod secret;
pub mod sha256;
pub mod shell;
pub mod terminal;
