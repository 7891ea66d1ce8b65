//! The main job: a running system clones itself to a disk, and the clone is a whole system.

use std::path::Path;

use crate::env::{BINARY, TestEnv, digest, fixture};
use crate::mounted_root::assert_is_the_fixture;
use crate::source::{Firmware, Source, boot_area};
use crate::vm::{BOOT, LONG, Machine, QUICK, Start, Vm};

const INSTALL: &str = "/run/current-system/bin/install-to-disk";

#[test]
fn a_running_uefi_system_clones_itself_and_leaves_its_disk_as_it_was() {
    clone("uefi", Firmware::Uefi, Start::Uefi, assert_an_esp_of);
}

#[test]
fn a_running_bios_system_with_grub_for_vda_clones_itself_to_vdb_and_leaves_vda_as_it_was() {
    clone("bios", Firmware::Bios, Start::Bios, |clone, toplevel| {
        let menu = clone.sh("cat /boot/grub/grub.cfg");
        assert!(menu.contains(&format!("init={toplevel}/init")), "{menu}");
    });
}

fn clone(variant: &str, firmware: Firmware, start: Start, look: impl FnOnce(&mut Vm, &str)) {
    let env = TestEnv::new();
    let system = fixture(variant);
    let source = Source::make(Path::new(BINARY), &system.root, &system.toplevel, firmware, &env.path(""));
    let target = env.image("target.img", 3072);
    let boot_before = boot_area(&source.image);

    let mut running = Machine::new(source.start()).disk(&source.image).disk(&target).start();
    running.wait_shell(BOOT);
    running.long_sh(BOOT, "systemctl is-system-running --wait");
    let own_id = running.sh("cat /etc/machine-id");
    for disk in ["/dev/vda", "/dev/vda2", "/dev/vda1"] {
        let (status, words) = running.sh_within(QUICK, &format!("{INSTALL} --yes {disk}"));
        assert_eq!(status, 3, "{disk}: {words}");
    }
    let (status, words) = running.sh_within(QUICK, &format!("{INSTALL} /dev/vdb"));
    assert_eq!(status, 3, "without --yes: {words}");

    // On a read-only root it has no excuse to write, and what it writes past the root shows.
    running.sh("journalctl --relinquish-var; umount /boot 2>/dev/null; sync; mount -o remount,ro /");
    let before = digest(&source.image);
    let (status, words) = running.sh_within(LONG, &format!("{INSTALL} --yes /dev/vdb"));
    let after = digest(&source.image);
    assert_eq!(status, 0, "{words}");
    assert_eq!(before, after, "the source disk changed");
    assert!(boot_area(&source.image) == boot_before, "the boot code of the source disk changed");
    let left = running.sh("findmnt --list --output SOURCE,TARGET; losetup --all");
    assert!(!left.contains("vdb"), "still in use: {left}");
    running.power_off();

    let mut clone = Machine::new(start).disk(&target).start();
    clone.wait_serial("login:", BOOT);
    clone.wait_shell(BOOT);
    assert_a_whole_system(&mut clone, variant, &own_id);
    look(&mut clone, &system.toplevel);
    clone.power_off();
    assert_is_the_fixture(&env, &target, variant);
}

/// The checks that a machine which merely boots would fail; [`assert_is_the_fixture`] looks at its store once it is off.
#[track_caller]
pub fn assert_a_whole_system(clone: &mut Vm, variant: &str, own_id: &str) {
    let system = fixture(variant);
    let toplevel = &system.toplevel;
    assert_eq!(clone.long_sh(BOOT, "systemctl is-system-running --wait || systemctl --failed"), "running");
    assert_eq!(clone.sh("readlink -f /run/booted-system"), *toplevel);
    assert_eq!(clone.sh("readlink -f /run/current-system"), *toplevel);
    assert_eq!(clone.sh("readlink /nix/var/nix/profiles/system"), "system-1-link");
    assert_eq!(clone.sh("readlink -f /nix/var/nix/profiles/system"), *toplevel);
    assert!(clone.sh("cat /proc/cmdline").contains(&format!("init={toplevel}/init")));
    assert_eq!(clone.sh("findmnt --noheadings --output LABEL --mountpoint /"), "nixos");
    let id = clone.sh("cat /etc/machine-id");
    assert!(id.len() == 32 && id != own_id, "the machine's id is {id:?}, the source's {own_id:?}");
}

/// What systemd-boot starts this system by.
#[track_caller]
pub fn assert_an_esp_of(clone: &mut Vm, toplevel: &str) {
    let entries = clone.sh("grep -H . /boot/loader/entries/*");
    assert!(entries.contains(&format!("init={toplevel}/init")), "{entries}");
    assert!(clone.sh("cat /boot/loader/loader.conf").contains("default nixos-generation-1.conf"));
    for (key, file) in [("linux", "kernel"), ("initrd", "initrd")] {
        let entry = "/boot/loader/entries/nixos-generation-1.conf";
        clone.sh(&format!(
            "on_esp=/boot$(sed -n 's/^{key} *//p' {entry}); cmp \"$on_esp\" /run/current-system/{file}"
        ));
    }
    assert_eq!(
        clone.sh("findmnt --noheadings --output LABEL,FSTYPE /boot").split_whitespace().collect::<Vec<_>>(),
        ["ESP", "vfat"]
    );
    clone.sh("test -e /boot/EFI/BOOT/BOOTX64.EFI");
}
