//! Images that are made on this machine boot.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::env::{TestEnv, fixture};
use crate::image::still_attached;
use crate::mounted_root::assert_is_the_fixture;
use crate::qemu::clone::assert_a_whole_system;
use crate::vm::{BOOT, Machine, Start};
use crate::wait;

#[test]
fn an_image_made_here_after_one_that_was_killed_boots_on_bios() {
    let env = TestEnv::new();
    let words = fixture("bios").words("install-to-disk", &["--image-size", "3G", "disk.img"]);

    let mut killed = env.start(&words);
    // Into the copying: what is mounted then is in use. The new file systems alone are smaller.
    let growing = env.path(".disk.img.part");
    wait::until("the copy is under way", || {
        fs::metadata(&growing).ok().filter(|meta| meta.blocks() * 512 > 96 << 20)
    });
    assert!(still_attached(&env));
    killed.kill().unwrap();
    killed.wait().unwrap();
    wait::until("what the dead one held is free", || (!still_attached(&env)).then_some(()));
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
    assert_is_the_fixture(&env, &env.path("disk.img"), "bios");
}
