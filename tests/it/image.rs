//! Images: made on this machine, whose kernel need not read partition tables itself.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::env::{TestEnv, fixture, tool};
use crate::wait;

#[test]
fn an_image_that_is_interrupted_is_gone() {
    let env = TestEnv::new();
    let words = fixture("bios").words("install-to-disk", &["--image-size", "3G", "disk.img"]);
    let mut run = env.start(&words);
    wait::until("the copy is under way", || {
        fs::metadata(env.path(".disk.img.part")).ok().filter(|meta| meta.blocks() * 512 > 96 << 20)
    });
    kill(Pid::from_raw(run.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(1));
    assert_eq!(fs::read_dir(env.path("")).unwrap().count(), 0);
    wait::until("what it held is free", || (!still_attached(&env)).then_some(()));
}

/// Does a loop device stand on a file of this test?
pub fn still_attached(env: &TestEnv) -> bool {
    let dir = env.path("");
    tool("losetup", &["--list", "--noheadings", "--output", "BACK-FILE"]).contains(dir.to_str().unwrap())
}
