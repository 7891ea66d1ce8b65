//! The built binary in made-up worlds: directories, disks and virtual machines.

mod ansible;
mod archive;
mod booted;
mod clone;
mod daemon;
#[allow(dead_code)] // what one story needs or another
mod debian;
mod deploy_dir;
mod deploy_ssh;
mod deploy_vm;
mod dir;
mod disk;
mod disk_machine;
mod door;
mod doorway;
mod env;
mod fleet;
mod generate;
mod gpt_auto;
mod hostile;
mod image;
mod install_luks;
mod install_vm;
mod interrupted;
mod kexec;
mod link;
mod login;
mod luks;
mod machine;
mod machines;
mod modules;
mod network;
mod network_machine;
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
