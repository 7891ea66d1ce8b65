//! The operating system, as we use it: programs, files, ioctls, namespaces.

pub mod command;
pub mod file;
pub mod interrupt;
pub mod inside;
pub mod namespace;
pub mod ioctl;
pub mod sha256;
