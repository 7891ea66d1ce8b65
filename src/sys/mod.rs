//! The operating system, as we use it: programs, files, ioctls, namespaces.

pub mod command;
pub mod file;
pub mod sha256;
