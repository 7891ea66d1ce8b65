//! Disks: what should be on one, what is on it, and the tools that change it.
