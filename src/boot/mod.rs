//! What starts the system: its boot loader, or the kernel that runs.

pub mod kexec;
pub mod loader;
