//! Images: made on this machine, whose kernel need not read partition tables itself, and booted.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::clone::assert_a_whole_system;
use crate::env::{TestEnv, fixture, tool};
use crate::vm::{BOOT, Machine, QUICK, Start};

#[test]
fn an_image_that_is_interrupted_is_gone() {
    let env = TestEnv::new();
    let words = fixture("bios").words("install-to-disk", &["--image-size", "3G", "disk.img"]);
    let mut run = env.start(&words);
    wait_until("the copy is under way", || {
        fs::metadata(env.path(".disk.img.part")).is_ok_and(|meta| meta.blocks() * 512 > 96 << 20)
    });
    kill(Pid::from_raw(run.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(1));
    assert_eq!(fs::read_dir(env.path("")).unwrap().count(), 0);
    wait_until("what it held is free", || !still_attached(&env));
}

#[test]
fn an_image_made_here_after_one_that_was_killed_boots_on_bios() {
    let env = TestEnv::new();
    let words = fixture("bios").words("install-to-disk", &["--image-size", "3G", "disk.img"]);

    let mut killed = env.start(&words);
    // Into the copying: what is mounted then is in use. The new file systems alone are smaller.
    let growing = env.path(".disk.img.part");
    wait_until("the copy is under way", || {
        fs::metadata(&growing).is_ok_and(|meta| meta.blocks() * 512 > 96 << 20)
    });
    assert!(still_attached(&env));
    killed.kill().unwrap();
    killed.wait().unwrap();
    wait_until("what the dead one held is free", || !still_attached(&env));
    assert!(!env.path("disk.img").exists(), "half an image has the name of a whole one");

    let mounts = || fs::read_to_string("/proc/mounts").unwrap();
    env.run(&words).ok();
    assert!(!still_attached(&env), "a loop device still holds the image");
    assert!(!mounts().contains("/run/nixos-install-via"), "left mounted: {}", mounts());
    let left: Vec<_> = fs::read_dir(env.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["disk.img"]);

    let mut machine = Machine::new(Start::Bios).disk(&env.path("disk.img")).start();
    machine.wait_serial("login:", BOOT);
    machine.wait_shell(BOOT);
    assert_a_whole_system(&mut machine, "bios", "");
    machine.power_off();
}

/// Does a loop device stand on a file of this test?
fn still_attached(env: &TestEnv) -> bool {
    let dir = env.path("");
    tool("losetup", &["--list", "--noheadings", "--output", "BACK-FILE"]).contains(dir.to_str().unwrap())
}

#[track_caller]
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + QUICK;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(5));
    }
}
