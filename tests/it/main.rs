//! The built binary in made-up worlds: directories, disks and virtual machines.

mod ansible;
mod archive;
mod booted;
mod daemon;
#[allow(dead_code)] // what one story needs or another
mod debian;
mod deploy_dir;
mod deploy_ssh;
mod dir;
mod disk;
mod disk_machine;
mod door;
mod doorway;
mod env;
mod fleet;
mod generate;
mod hostile;
mod image;
mod initrd;
mod link;
mod login;
mod machine;
mod machines;
mod modules;
mod mounted_root;
mod network;
mod qemu;
mod readme;
mod real_nix;
mod report;
mod rescue;
mod script;
mod shape;
mod source;
mod space;
mod ssh;
mod sshd;
#[allow(dead_code)] // the demo uses the rest
mod vm;
mod wait;
mod wire;
mod wires;
