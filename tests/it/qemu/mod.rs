//! Stories with virtual machines, of which few run at a time.
//!
//! A machine may miss what its host had no time for, so these are tried again when they fail, and told of then.

mod booted;
pub mod clone;
mod clone_luks;
mod deploy;
mod gpt_auto;
mod image;
mod install;
mod install_luks;
mod install_memory;
mod install_networks;
mod interrupted;
mod kexec;
mod modules;
mod network_machine;
mod script;
