//! `enter --boot` where a systemd is around it: the directory is one of its machines.

use std::path::Path;

use crate::env::{BINARY, TestEnv, fixture};
use crate::source::{Firmware, Source};
use crate::vm::{BOOT, LONG, Machine};

#[test]
fn a_machine_boots_a_copy_of_itself_as_one_of_its_machines() {
    let env = TestEnv::new();
    let system = fixture("uefi");
    let source =
        Source::make(Path::new(BINARY), &system.root, &system.toplevel, Firmware::Uefi, &env.path(""));
    let mut vm = Machine::new(source.start()).disk(&source.image).start();
    vm.wait_shell(BOOT);
    let copy = "/run/current-system/bin/install-to-dir";
    vm.long_sh(LONG, &format!("{copy} --yes /var/copy"));
    let own_id = vm.sh("cat /etc/machine-id");
    vm.sh(&format!(
        "tool=$(sed -n 's|^exec \\([^ ]*\\) .*|\\1|p' {copy})
        systemd-run --quiet --unit box --remain-after-exit \"$tool\" enter --boot /var/copy"
    ));
    let up = "until systemctl --machine fixture-uefi is-system-running --wait 2>/dev/null; do
            systemctl show box --property SubState | grep -q running || { journalctl --unit box; exit 1; }
            sleep 1
        done";
    assert_eq!(vm.long_sh(BOOT, up).lines().last(), Some("running"));
    assert!(vm.sh("machinectl list").contains("fixture-uefi"));
    let other_id = vm.sh("cat /var/copy/etc/machine-id");
    assert!(other_id.len() == 32 && other_id != own_id, "{other_id}");

    vm.sh("machinectl poweroff fixture-uefi");
    vm.long_sh(BOOT, "while systemctl show box --property SubState | grep -q running; do sleep 1; done");
    assert_eq!(vm.sh("systemctl show box --property ExecMainStatus"), "ExecMainStatus=0");
    vm.power_off();
}
