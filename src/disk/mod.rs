//! Disks: what should be on one, what is on it, and the tools that change it.

pub mod contents;
pub mod derive;
pub mod device;
pub mod format;
pub mod fstab;
pub mod holders;
pub mod image;
pub mod layout;
pub mod luks;
pub mod mount;
pub mod names;
pub mod picture;
pub mod places;
pub mod seen;
pub mod table;
