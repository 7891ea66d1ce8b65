//! The built binary in made-up worlds: directories, disks and virtual machines.

mod ansible;
mod archive;
mod booted;
mod clone;
mod daemon;
mod deploy_dir;
mod deploy_ssh;
mod deploy_vm;
mod dir;
mod disk;
mod disk_machine;
mod env;
mod fleet;
mod generate;
mod gpt_auto;
mod hostile;
mod image;
mod interrupted;
mod link;
mod login;
mod luks;
mod machine;
mod machines;
mod readme;
mod real_nix;
mod script;
mod script_vm;
mod shape;
mod source;
mod ssh;
mod sshd;
#[allow(dead_code)] // the demo uses the rest
mod vm;
mod wire;
