//! The built binary in made-up worlds: directories, disks and virtual machines.

mod clone;
mod dir;
mod disk;
mod env;
mod generate;
mod gpt_auto;
mod image;
mod interrupted;
mod luks;
mod readme;
mod real_nix;
mod script;
mod script_vm;
mod shape;
mod source;
#[allow(dead_code)] // the demo uses the rest
mod vm;
