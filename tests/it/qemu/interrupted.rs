//! Kills, and power cuts, at many moments of an installation: a half-made disk never boots, and
//! running again makes it whole.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::env::{BINARY, TestEnv, digest, fixture};
use crate::mounted_root::assert_is_the_fixture;
use crate::qemu::clone::assert_a_whole_system;
use crate::source::{Firmware, Source, is_bootable};
use crate::vm::{BOOT, LONG, Machine, Start};

const INSTALL: &str = "/run/current-system/bin/install-to-disk --yes /dev/vdb";
const LOG: &str = "/run/install.log";
// The step from which on the disk boots.
const TABLE: &str = "then the partition table of";

#[test]
fn whatever_stops_an_installation_the_disk_does_not_boot_and_the_next_run_is_clean() {
    let env = TestEnv::new();
    let system = fixture("uefi");
    let source =
        Source::make(Path::new(BINARY), &system.root, &system.toplevel, Firmware::Uefi, &env.path(""));
    let target = env.image("target.img", 3072);
    let running = || Machine::new(source.start()).disk(&source.image).disk(&target).start();

    let mut vm = running();
    vm.wait_shell(BOOT);
    let own_id = vm.sh("cat /etc/machine-id");
    let begin = Instant::now();
    vm.long_sh(LONG, INSTALL);
    let whole = begin.elapsed().as_secs_f64();
    vm.sh("sync");
    assert!(is_bootable(&target));

    // Killed over the whole disk of an earlier run, which must stop booting before anything else.
    let mut kills = 0;
    for part in [0.1, 0.4, 0.7, 0.95] {
        // Only a disk that boots can be one that was left as it was.
        let before = vm.frozen(|| is_bootable(&target).then(|| digest(&target)));
        let delay = whole * part;
        let left = vm.long_sh(
            LONG,
            &format!(
                "{INSTALL} >{LOG} 2>&1 & sleep {delay:.2}; kill -9 $! && {{ wait $! 2>/dev/null; echo killed; }}; sleep 1; \
                 losetup --all; findmnt --list | grep vdb; pgrep -f /dev/vdb; sync; true"
            ),
        );
        if left.starts_with("killed") {
            kills += 1;
            assert_eq!(left.trim(), "killed", "at {part} of a run, this stayed");
            let now = vm.frozen(|| is_bootable(&target).then(|| digest(&target)));
            // A machine that is quicker by now may have come to the last steps.
            let log = vm.sh(&format!("cat {LOG}"));
            let untouched = now == before;
            assert!(
                now.is_none() || untouched || log.contains(TABLE),
                "killed at {part} of a run, the disk boots"
            );
        }
    }
    assert!(kills > 1, "the installations ended before they were killed: {}", vm.sh(&format!("cat {LOG}")));

    // At many moments a power cut would leave what is on the disk then. From the wiping on, that does not boot.
    vm.sh(&format!("{INSTALL} >{LOG} 2>&1 &"));
    let mut wiped = false;
    for moment in 1..=12 {
        sleep(Duration::from_secs_f64(whole * 0.05));
        let bootable = vm.frozen(|| is_bootable(&target));
        if wiped && bootable {
            // Only because the machine is quicker by now, and this run has come to its last steps.
            let log = vm.sh(&format!("cat {LOG}"));
            assert!(log.contains(TABLE), "cut off after {moment} twentieths of a run, the disk boots: {log}");
            break;
        }
        wiped |= !bootable;
    }
    assert!(wiped, "the disk boots all the time");

    // In the copy the power goes in earnest.
    vm.sh("pkill -9 -x nixos-install-v; while pgrep -x nixos-install-v; do sleep 0.2; done; sleep 2");
    vm.sh(&format!("{INSTALL} --progress json >{LOG} 2>&1 &"));
    vm.sh(&format!(
        "until grep -q 'Copy and check' {LOG}; do grep error: {LOG} && exit 1; sleep 0.1; done; sleep 1"
    ));
    vm.kill();
    assert!(!is_bootable(&target), "after the power cut, the disk boots");
    // The next run makes the disk whole. The half-made one stays attached meanwhile: without a table, its root
    // cannot pass for the source's.
    let mut vm = running();
    vm.wait_shell(BOOT);
    let root = vm.sh("findmnt --noheadings --output SOURCE --mountpoint /");
    assert!(root.starts_with("/dev/vda"), "the source booted from {root}");
    vm.long_sh(LONG, INSTALL);
    vm.power_off();

    let mut clone = Machine::new(Start::Uefi).disk(&target).start();
    clone.wait_serial("login:", BOOT);
    clone.wait_shell(BOOT);
    assert_a_whole_system(&mut clone, "uefi", &own_id);
    clone.power_off();
    assert_is_the_fixture(&env, &target, "uefi");
}
