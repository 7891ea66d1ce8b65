//! `--plan script` under UEFI, which takes a kernel with vfat: a running system clones itself by the script.

use std::path::Path;

use crate::env::{BINARY, TestEnv, digest, fixture};
use crate::mounted_root::assert_is_the_fixture;
use crate::qemu::clone::{assert_a_whole_system, assert_an_esp_of};
use crate::source::{Firmware, Source, boot_area, esp};
use crate::vm::{BOOT, LONG, Machine, QUICK, Start};

const BINARY_INSTALLS: &str = "/run/current-system/bin/install-to-disk";
const SCRIPT: &str = "/run/plan.sh";
const LOG: &str = "/run/plan.log";

#[test]
fn a_running_uefi_system_clones_itself_by_the_script() {
    let env = TestEnv::new();
    let system = fixture("uefi");
    let source =
        Source::make(Path::new(BINARY), &system.root, &system.toplevel, Firmware::Uefi, &env.path(""));
    let target = env.image("target.img", 3072);
    let boot_before = boot_area(&source.image);

    let mut running = Machine::new(source.start()).disk(&source.image).disk(&target).start();
    running.wait_shell(BOOT);
    running.long_sh(BOOT, "systemctl is-system-running --wait");
    let own_id = running.sh("cat /etc/machine-id");
    // Something to be lost.
    running.sh(
        "printf 'label: gpt\\nsize=64M\\nsize=64M\\n' | sfdisk --quiet /dev/vdb; mkfs.vfat -n OLD /dev/vdb2",
    );
    // On a read-only root it has no excuse to write, and what it writes past the root shows.
    running.sh(
        "journalctl --relinquish-var; umount /boot 2>/dev/null; udevadm settle; sync; mount -o remount,ro /",
    );
    let before = [&source.image, &target].map(|image| running.frozen(|| digest(image)));
    running.long_sh(BOOT, &format!("{BINARY_INSTALLS} --plan script /dev/vdb >{SCRIPT}"));

    // It knows what the binary knows: the disk in use, and the labels that will be there twice.
    running.sh(&format!("sed 's|^target=/dev/vdb$|target=/dev/vda|' {SCRIPT} >/run/own-disk.sh; ! cmp -s {SCRIPT} /run/own-disk.sh"));
    let (status, words) = running.sh_within(QUICK, "sh /run/own-disk.sh --yes");
    assert!(status == 3 && words.contains("/dev/vda is in use, at: /"), "status {status}: {words}");
    for asking in [BINARY_INSTALLS.to_owned() + " /dev/vdb", format!("sh {SCRIPT}")] {
        let (status, words) = running.sh_within(BOOT, &asking);
        let note = "note: /dev/vda1 has the label ESP too, /dev/vda2 has the label nixos too; do not boot";
        assert!(status == 3 && words.contains(note) && words.contains("no terminal"), "{asking}: {words}");
    }
    let now = [&source.image, &target].map(|image| running.frozen(|| digest(image)));
    assert_eq!(before, now, "something was written before there was a yes");

    // As the terminal does on Ctrl-C, in the copy. The half-made root, labelled like the running one, is not seen.
    let left = running.long_sh(
        LONG,
        &format!(
            "env --default-signal=INT setsid sh {SCRIPT} --yes >{LOG} 2>&1 & \
             until grep -q 'Copy and check' {LOG}; do kill -0 $! || {{ cat {LOG}; exit 1; }}; sleep 0.2; done; sleep 1; \
             kill -s INT -- -$!; wait $!; echo status $?; udevadm settle; findmnt --list | grep -e vdb -e install-via; \
             ls -d /run/nixos-install-via.* 2>/dev/null; lsblk --noheadings --raw --output NAME /dev/vdb; readlink /dev/disk/by-label/nixos"
        ),
    );
    assert_eq!(left, "status 130\nvdb\n../../vda2", "{}", running.sh(&format!("cat {LOG}")));
    assert_eq!(running.frozen(|| esp(&target)), None, "after Ctrl-C in the copy, the disk has a table");

    let (status, words) = running.sh_within(LONG, &format!("sh {SCRIPT} --yes"));
    assert_eq!(status, 0, "{words}");
    assert!(words.contains("done: /dev/vdb boots nixos-system-"), "{words}");
    let after = running.frozen(|| digest(&source.image));
    assert_eq!(before[0], after, "the source disk changed");
    assert!(boot_area(&source.image) == boot_before, "the boot code of the source disk changed");
    let left = running.sh("findmnt --list --output SOURCE,TARGET; losetup --all; ls /run");
    assert!(!left.contains("vdb") && !left.contains("install-via"), "left behind: {left}");
    running.power_off();

    let mut clone = Machine::new(Start::Uefi).disk(&target).start();
    clone.wait_serial("login:", BOOT);
    clone.wait_shell(BOOT);
    assert_a_whole_system(&mut clone, "uefi", &own_id);
    assert_an_esp_of(&mut clone, &system.toplevel);
    clone.power_off();
    assert_is_the_fixture(&env, &target, "uefi");
}
