//! What starts the system: its boot loader.

pub mod loader;
