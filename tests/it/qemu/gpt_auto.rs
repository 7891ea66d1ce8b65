//! A system whose disk has no names: original and clone in one machine, each at home on its own disk.
//!
//! systemd-boot says in an EFI variable which partition it came from, and systemd looks for the
//! root and the ESP on that disk. The disk that boots is always the second one, so that
//! whoever takes the first, or any, is caught.

use std::fs::File;
use std::path::Path;

use crate::env::{BINARY, TestEnv, fixture};
use crate::source::{Firmware, Source};
use crate::vm::{BOOT, LONG, Machine, QUICK, Start, Vm};

const INSTALL: &str = "/run/current-system/bin/install-to-disk --yes";
const SIZE: u64 = 3072;

#[test]
fn original_and_clone_find_their_own_disks_side_by_side_and_a_larger_disk_is_filled() {
    let env = TestEnv::new();
    let system = fixture("gpt-auto");
    let source =
        Source::make(Path::new(BINARY), &system.root, &system.toplevel, Firmware::UefiUnnamed, &env.path(""));
    let target = env.image("target.img", SIZE);

    let mut original = Machine::new(source.start()).disk(&source.image).disk(&target).start();
    is_at_home(&mut original, "vda");
    let own_id = original.sh("cat /etc/machine-id");
    original.sh("echo original > /root/whose; echo original > /boot/whose");
    original.long_sh(LONG, &format!("{INSTALL} /dev/vdb"));
    let names = original.sh("udevadm settle; lsblk --noheadings --output LABEL /dev/vda /dev/vdb");
    assert_eq!(names.trim(), "", "a file system has a label");
    original.power_off();

    let mut original = Machine::new(Start::Uefi).disk(&target).disk(&source.image).boot_from(1).start();
    is_at_home(&mut original, "vdb");
    assert_eq!(original.sh("cat /root/whose /boot/whose"), "original\noriginal");
    assert_eq!(original.sh("cat /etc/machine-id"), own_id);
    original.power_off();

    // The clone's first boot, on a disk that has become twice as large.
    File::options().write(true).open(&target).unwrap().set_len((2 * SIZE) << 20).unwrap();
    let mut clone = Machine::new(Start::Uefi).disk(&source.image).disk(&target).boot_from(1).start();
    is_at_home(&mut clone, "vdb");
    clone.sh("test ! -e /root/whose && test ! -e /boot/whose");
    assert_ne!(clone.sh("cat /etc/machine-id"), own_id);
    assert_eq!(clone.sh("readlink -f /run/booted-system"), system.toplevel);
    let mib = |clone: &mut Vm, command: &str| clone.sh(command).trim().parse::<u64>().unwrap() >> 20;
    let partition = mib(&mut clone, "lsblk --noheadings --bytes --output SIZE /dev/vdb2");
    assert!(partition > 2 * SIZE - 400, "the root partition has {partition} MiB");
    let files = mib(&mut clone, "findmnt --noheadings --bytes --output SIZE --mountpoint /");
    assert!(files > partition * 9 / 10, "the root file system has {files} of {partition} MiB");
    clone.sh("sgdisk --verify /dev/vdb | grep 'No problems found'");
    clone.power_off();
}

/// Waits for a machine whose root and ESP are the ones of the disk that it was booted from.
#[track_caller]
fn is_at_home(machine: &mut Vm, disk: &str) {
    machine.wait_serial("login:", BOOT);
    machine.wait_shell(BOOT);
    let state = machine.long_sh(BOOT, "systemctl is-system-running --wait || systemctl --failed");
    assert_eq!(state, "running");
    // It ends with 1 where it finds nothing.
    let named = machine.sh_within(QUICK, "findmnt --fstab --noheadings");
    assert_eq!(named, (1, String::new()), "fstab names something");
    // The ESP is mounted when somebody looks into it.
    let mounted = machine.sh(
        "ls /boot >/dev/null; for at in / /boot; do findmnt --noheadings --types ext4,vfat --output SOURCE --mountpoint $at; done",
    );
    assert_eq!(mounted, format!("/dev/{disk}2\n/dev/{disk}1"));
}
