//! The operating system, as we use it: programs, files, ioctls, namespaces.

pub mod backtrace;
pub mod bundle;
pub mod clock;
pub mod command;
pub mod cpio;
pub mod file;
pub mod growing;
pub mod inside;
pub mod interrupt;
pub mod ioctl;
pub mod kexec;
pub mod module;
pub mod namespace;
pub mod netlink;
pub mod own_mounts;
pub mod pack;
pub mod pieces;
pub mod power;
pub mod scratch;
pub mod secret;
pub mod shell;
pub mod terminal;
pub mod unpack;
