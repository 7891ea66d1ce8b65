//! The built binary in made-up worlds: directories, disks and virtual machines.

#[allow(dead_code)] // the stories use it as they come
mod vm;
