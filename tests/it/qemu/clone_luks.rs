//! A root that is encrypted: the passphrase is asked for, and the system is at home on its own disk.
//!
//! The system is the one of `gpt_auto.rs`, and so is what it promises: nothing on a disk has a
//! name, the disk that boots is the second one, and a larger disk is filled.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::deploy_ssh::assert_undamaged;
use crate::env::{BINARY, TestEnv, fixture, holds};
use crate::real_nix;
use crate::source::{Firmware, Source};
use crate::vm::{BOOT, LONG, Machine, QUICK, Start, Vm};

const INSTALL: &str = "/run/current-system/bin/install-to-disk --yes";
const SIZE: u64 = 3072;
const PASSPHRASE: &str = "correct horse battery staple";
/// What one store path of the fixture holds.
pub const ODD: &str = "a store path that is a plain file";
// What is open, and nothing.
const OPENED: &str = "dmsetup ls; ls /dev/mapper";
const NOTHING: &str = "No devices found\ncontrol";
const TYPESCRIPT: &str = "/run/typescript";
pub const PROMPT: &str = "Please enter passphrase for disk";

#[test]
fn an_encrypted_clone_asks_for_its_passphrase_and_fills_a_larger_disk() {
    let env = TestEnv::new();
    let system = fixture("luks");
    let source =
        Source::make(Path::new(BINARY), &system.root, &system.toplevel, Firmware::UefiUnnamed, &env.path(""));
    let target = env.image("target.img", SIZE);

    // Its own root is not encrypted, and nobody is asked.
    let mut original = Machine::new(source.start()).disk(&source.image).disk(&target).start();
    original.wait_serial("login:", BOOT);
    original.wait_shell(BOOT);
    assert!(!original.serial().contains(PROMPT));
    let own_id = original.sh("cat /etc/machine-id");
    original.sh("echo original > /root/whose; echo original > /boot/whose; modprobe dm_crypt");
    passphrases_that_are_none(&mut original);
    assert!(is_empty(&target), "something was written before there was a passphrase");

    // Typed on a terminal, and the installation is killed in the copy: what it had opened is closed.
    original.long_sh(
        LONG,
        &format!(
            "rm -f {TYPESCRIPT}; {{ {}; sleep 180; }} 2>/dev/null | script -qefc '{INSTALL} /dev/vdb' {TYPESCRIPT} >/dev/null 2>&1 &
        for _ in $(seq 900); do ! grep -qs 'Copy and check' {TYPESCRIPT} || break; sleep 0.2; done
        grep 'Passphrase for the encrypted root: *.$' {TYPESCRIPT}
        dmsetup ls | grep nixos-install-via
        pkill -9 -x nixos-install-v
        for _ in $(seq 100); do dmsetup ls | grep -q nixos-install-via || break; sleep 0.2; done",
            typing([PASSPHRASE, PASSPHRASE])
        ),
    );
    assert_eq!(original.sh(OPENED), NOTHING, "left open by an installation that was killed");
    original.sh(&format!("! grep --text battery {TYPESCRIPT}"));

    original.sh(&format!("printf %s '{PASSPHRASE}' >/run/passphrase"));
    original.long_sh(LONG, &format!("{INSTALL} --plan script /dev/vdb >/run/plan.sh"));
    let (status, said) = original.sh_within(QUICK, "sh /run/plan.sh --yes");
    assert!(status == 3 && said.contains("name a file that holds it in KEY_FILE"), "{status}: {said}");
    original.long_sh(LONG, "KEY_FILE=/run/passphrase sh /run/plan.sh --yes");
    assert_eq!(original.sh("blkid --match-tag TYPE --output value /dev/vdb2"), "crypto_LUKS");
    assert_eq!(original.sh(OPENED), NOTHING, "left open by the script");

    let said = original
        .long_sh(LONG, &format!("{INSTALL} --disk-encryption-key root=/run/passphrase /dev/vdb 2>&1"));
    assert!(said.contains("Encrypt partition 2, root, with LUKS; the system opens it as root"), "{said}");
    assert!(!said.contains("battery"), "{said}");
    assert_eq!(original.sh(OPENED), NOTHING);
    original.power_off();
    assert!(!holds(&target, PASSPHRASE), "the passphrase stands on the disk");
    assert!(holds(&source.image, ODD) && !holds(&target, ODD), "what is on the root can be read");

    let mut clone = Machine::new(Start::Uefi).disk(&target).start();
    is_at_home(&mut clone, "vda");
    assert_ne!(clone.sh("cat /etc/machine-id"), own_id);
    // There is no device mapper here, so its own Nix looks at its store.
    let closure = real_nix::closure(&system.root, &system.toplevel).join("\n");
    let listed = clone.sh("ls -A /nix/store | grep -vx .links | sed 's|^|/nix/store/|' | LC_ALL=C sort");
    assert_eq!(listed, closure, "the store directory");
    let (status, words) = clone.sh_within(LONG, "nix-store --verify --check-contents");
    assert_undamaged(status, &words);
    // The disk below the root that is mounted is no place for another system.
    let (status, words) = clone.sh_within(QUICK, &format!("{INSTALL} /dev/vda"));
    assert_eq!(status, 3, "{words}");
    assert!(words.contains("/dev/mapper/root") || words.contains("root (dm-0)"), "{words}");
    clone.power_off();

    File::options().write(true).open(&target).unwrap().set_len((2 * SIZE) << 20).unwrap();
    let mut clone = Machine::new(Start::Uefi).disk(&source.image).disk(&target).boot_from(1).start();
    is_at_home(&mut clone, "vdb");
    clone.sh("test ! -e /root/whose && test ! -e /boot/whose");
    assert_eq!(clone.sh("readlink -f /run/booted-system"), system.toplevel);
    let mib = |clone: &mut Vm, command: &str| clone.sh(command).trim().parse::<u64>().unwrap() >> 20;
    let partition = mib(&mut clone, "lsblk --noheadings --bytes --nodeps --output SIZE /dev/vdb2");
    assert!(partition > 2 * SIZE - 400, "the root partition has {partition} MiB");
    let mapping = mib(&mut clone, "lsblk --noheadings --bytes --nodeps --output SIZE /dev/mapper/root");
    assert_eq!(mapping, partition - 16, "the mapping is the partition but for the header");
    let files = mib(&mut clone, "findmnt --noheadings --bytes --output SIZE --mountpoint /");
    assert!(files > mapping * 9 / 10, "the root file system has {files} of {mapping} MiB");
    clone.sh("sgdisk --verify /dev/vdb | grep 'No problems found'");
    clone.power_off();
}

/// Each is refused in a sentence before anything is written.
fn passphrases_that_are_none(machine: &mut Vm) {
    machine.sh("cd /run; printf 'text\\n' >newline; : >empty; printf x >good");
    for (words, status, sentence) in [
        (
            "",
            3,
            "there is no terminal to ask for its passphrase on; name a file that holds it with --disk-encryption-key root=FILE",
        ),
        ("--disk-encryption-key root", 2, "write what the system opens and the file of its passphrase"),
        ("--disk-encryption-key swap=/run/good", 2, "nothing in the layout is encrypted as swap; it is root"),
        ("--disk-encryption-key root=/run/none", 2, "reading the key in /run/none: No such file"),
        ("--disk-encryption-key root=/run/empty", 2, "the passphrase in /run/empty is empty"),
        ("--disk-encryption-key root=/run/newline", 2, "ends with a newline, which nobody can type at boot"),
    ] {
        let (code, said) = machine.sh_within(QUICK, &format!("{INSTALL} {words} /dev/vdb 2>&1"));
        assert!(code == status && said.contains(sentence), "{words} ended with {code}: {said}");
    }
    let typed = format!(
        "rm -f {TYPESCRIPT}; {{ {}; sleep 2; }} | script -qefc '{INSTALL} /dev/vdb' {TYPESCRIPT} 2>&1",
        typing(["one", "two"])
    );
    let (code, said) = machine.sh_within(QUICK, &typed);
    assert!(code == 3 && said.contains("the two passphrases differ; nothing was changed"), "{code}: {said}");
}

/// Types a passphrase, and one when it is to be typed again; each a while after it is asked for in `TYPESCRIPT`, because
/// what was typed before counts for nothing.
fn typing([first, again]: [&str; 2]) -> String {
    let wait =
        |question: &str| format!("until grep -qs '{question}' {TYPESCRIPT}; do sleep 0.2; done; sleep 1");
    format!("{}; echo '{first}'; {}; echo '{again}'", wait("Passphrase for"), wait("Once more"))
}

fn is_empty(image: &Path) -> bool {
    std::fs::metadata(image).unwrap().blocks() == 0
}

/// Unlocks a machine, and waits until it runs with the root and the ESP of the disk that it was booted from.
#[track_caller]
fn is_at_home(machine: &mut Vm, disk: &str) {
    machine.wait_serial(PROMPT, BOOT);
    machine.type_serial(PASSPHRASE);
    machine.wait_serial("login:", BOOT);
    machine.wait_shell(BOOT);
    let state = machine.long_sh(BOOT, "systemctl is-system-running --wait || systemctl --failed");
    assert_eq!(state, "running");
    assert_eq!(machine.sh("findmnt --noheadings --output SOURCE --mountpoint /"), "/dev/mapper/root");
    let beneath =
        machine.sh("lsblk --noheadings --inverse --list --output NAME,TYPE,FSTYPE /dev/mapper/root");
    assert!(beneath.contains(&format!("{disk}2")), "{beneath}");
    let esp = machine
        .sh("ls /boot >/dev/null; findmnt --noheadings --types vfat --output SOURCE --mountpoint /boot");
    assert_eq!(esp, format!("/dev/{disk}1"));
}
