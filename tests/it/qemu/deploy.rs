//! Deployments to machines with a kernel, a boot loader and a disk of their own, looked at from inside.
//!
//! The stories of `deploy_ssh.rs` that are about networks, boot loaders and power, told again where these are real.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use crate::deploy_ssh::{deploy_to_all, words};
use crate::disk_machine::DiskMachine;
use crate::env::{Ran, TestEnv};
use crate::login::Login;
use crate::machine::deployment;
use crate::vm::Vm;
use crate::wait;

// An emulated machine on a busy core answers slowly; nothing here waits for this to pass.
const PATIENCE: [&str; 2] = ["--confirm-timeout", "600"];
// The running system, the profile's, and the one that the boot loader's menu starts.
const SYSTEMS: &str = "readlink /run/current-system; readlink -f /nix/var/nix/profiles/system
    entry=$(sed -n 's/^default //p' /boot/loader/loader.conf)
    sed -n 's|^options init=\\([^ ]*\\)/init .*|\\1|p' /boot/loader/entries/$entry";

/// All that leads to a system leads to this one.
#[track_caller]
fn assert_has(vm: &mut Vm, name: &str) {
    let system = deployment(name).toplevel;
    assert_eq!(vm.sh(SYSTEMS), [system.as_str(); 3].join("\n"));
    assert_eq!(vm.sh("systemctl is-system-running || systemctl --failed"), "running");
}

/// Can one log in, and is it this system that answers?
#[track_caller]
fn assert_answers(login: &Login, name: &str) {
    let output = login.ssh("readlink /run/current-system").output().expect("there is ssh");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), deployment(name).toplevel, "{output:?}");
}

#[test]
fn a_machine_gets_a_system_and_the_first_one_again_and_comes_back_from_broken_ones() {
    let machine = DiskMachine::new();
    let (mut vm, login) = machine.start();
    for (system, more, code, said, has) in [
        ("b", PATIENCE, 0, "runs nixos-system", "b"),
        ("a", PATIENCE, 0, "runs nixos-system", "a"),
        ("broken-network", ["--confirm-timeout", "8"], 4, "nobody reached the machine within 8 s", "a"),
        ("failing-activation", PATIENCE, 4, "status 2", "a"),
    ] {
        let ran = TestEnv::new().run(words(&login, system, &more)).ended_with(code);
        ran.stderr_has(said);
        assert_has(&mut vm, has);
        assert_answers(&login, has);
    }
    vm.power_off();
    machine.assert_undamaged();
}

#[test]
fn of_three_machines_two_get_a_system_and_the_dead_one_when_it_is_back() {
    let first = DiskMachine::new();
    let (second, third) = (first.twin(), first.twin());
    // One after the other, for each keeps a core busy while it boots.
    let (mut one, login_of_one) = first.start();
    let (mut two, login_of_two) = second.start();
    let (dead, login_of_dead) = third.start();
    dead.kill();
    let deploy = |login_of_dead: &Login| {
        let ran = deploy_to_all(&[&login_of_one, login_of_dead, &login_of_two], "b", &PATIENCE);
        // What the table says of each.
        let rows = [&login_of_one, login_of_dead, &login_of_two].map(|login| {
            let mut rows = ran.stderr.lines().filter(|line| line.starts_with(&login.address()));
            rows.next_back().unwrap_or_else(|| panic!("{} is not told of: {ran}", login.address())).to_owned()
        });
        (ran, rows)
    };

    let (ran, rows) = deploy(&login_of_dead);
    let ran = ran.failed();
    assert!(rows[1].contains("  error: "), "{ran}");
    for (vm, login, row) in [(&mut one, &login_of_one, &rows[0]), (&mut two, &login_of_two, &rows[2])] {
        assert!(row.contains("runs nixos-system"), "{ran}");
        assert_has(vm, "b");
        assert_answers(login, "b");
    }

    // It knows nothing of all that.
    let (back, login_of_dead) = third.start();
    assert_answers(&login_of_dead, "a");
    let (ran, rows) = deploy(&login_of_dead);
    let ran = ran.ok();
    for (row, end) in rows.iter().zip(["already", "runs nixos-system", "already"]) {
        assert!(row.contains(end), "{ran}");
    }
    let mut vms = [one, back, two];
    for vm in &mut vms {
        assert_has(vm, "b");
    }
    vms.into_iter().for_each(Vm::power_off);
    for machine in [first, second, third] {
        machine.assert_undamaged();
    }
}

#[test]
fn whenever_the_power_of_the_machine_fails_it_boots_one_system_or_the_other() {
    let machine = DiskMachine::new();
    let (a, b) = (deployment("a").toplevel, deployment("b").toplevel);
    let (mut vm, mut login) = machine.start();
    // In the copy, while the system is activated, and when it was told to be there.
    for (moment, boots) in [("\"start\"", &a), ("activating the configuration", &a), ("\"ended\"", &b)] {
        if boots == &a {
            login.link.shape(Duration::ZERO, Some(400_000));
        }
        let env = TestEnv::new();
        let more = [&PATIENCE[..], &["--ssh-option", "ServerAliveInterval=5", "--progress", "json"]].concat();
        let mut command = env.command(words(&login, "b", &more));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let said = lines.find(|line| line.contains(moment));
        if moment == "\"start\"" {
            let (before, _) = login.link.bytes();
            wait::until("some of it is sent", || {
                (login.link.bytes().0 >= before + (200 << 10)).then_some(())
            });
        }
        vm.kill();
        // On a copy, for a look at the disk mends what the machine shall mend.
        machine.twin().assert_undamaged();
        child.kill().unwrap();
        let ran = Ran::new(format!("{command:?}"), child.wait_with_output().unwrap());
        assert!(said.is_some(), "{moment} was not said: {ran}");
        (vm, login) = machine.start();
        assert_eq!(&vm.sh("readlink /run/current-system"), boots, "after a cut at {moment}");
    }
    vm.power_off();
    machine.assert_undamaged();
}
