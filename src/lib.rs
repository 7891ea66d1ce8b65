//! A NixOS system that installs itself elsewhere, from its own store paths.
//!
//! Four nouns are changed: [`store`], [`disk`], [`boot`], [`system`]. Three verbs change them:
//! [`probe`] looks, [`plan`] decides, [`run`] acts. [`ssh`] takes them to another machine. The rest
//! is the edge. The binary is a thin shell around this library, which exists so that tests reach the
//! parsers and the formats.

// They panic where nobody reads any more.
#![cfg_attr(not(test), deny(clippy::print_stderr, clippy::print_stdout))]

pub mod boot;
pub mod cli;
pub mod commands;
pub mod disk;
pub mod facts;
pub mod failure;
pub mod manifest;
pub mod plan;
pub mod probe;
pub mod progress;
pub mod run;
pub mod size;
pub mod ssh;
pub mod store;
pub mod sys;
pub mod system;
pub mod templates;
pub mod wire;

#[cfg(test)]
#[path = "../tests/it/wait.rs"]
mod wait;
