//! The machines that deployments are tested with are what they are taken for: real Nix, real systemd, real cables.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::env::System;
use crate::login::Login;
use crate::machine::{Machine, closure, deployment};
use crate::real_nix;
use crate::wait;

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// Sends what a system has and the machine lacks, by the real Nix at both ends of an SSH connection.
#[track_caller]
fn send(login: &Login, name: &str) {
    try_send(login, name).unwrap_or_else(|words| panic!("sending {name}: {words}"));
}

fn try_send(login: &Login, name: &str) -> Result<(), String> {
    // Nix writes into the root it reads from, and fails when two begin with that.
    let (system, own) = (deployment(name), closure("a"));
    let missing = closure(name).into_iter().filter(|path| !own.contains(path));
    let store = real_nix::store(&system.root);
    let turn = File::create(system.root.with_extension("lock")).expect("it is beside the build");
    turn.lock().expect("files can be locked");
    let mut export = Command::new("nix-store");
    export.env("NIX_CONFIG", real_nix::CONFIG).args(["--store", &store, "--export"]).args(missing);
    let export = export.output().expect("there is nix-store");
    drop(turn);
    assert!(export.status.success(), "{}", String::from_utf8_lossy(&export.stderr));
    let mut import = login.ssh("NIX_REMOTE=daemon nix-store --import");
    let import = import.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut import = import.expect("there is ssh");
    // Where the machine goes away, its last words are what counts.
    import.stdin.take().expect("it is piped").write_all(&export.stdout).ok();
    let import = import.wait_with_output().expect("it ends");
    if import.status.success() { Ok(()) } else { Err(text(&import)) }
}

/// Runs a system's switch-to-configuration as a transient unit, and returns its status and its words.
fn switch(machine: &Machine, system: &System, action: &str) -> (i32, String) {
    let program = format!("{}/bin/switch-to-configuration", system.toplevel);
    let output = machine.try_run(&format!("systemd-run --quiet --collect --wait --pipe {program} {action}"));
    (output.status.code().expect("systemd-run ends by itself"), text(&output))
}

fn set_profile(machine: &Machine, system: &System) {
    machine.run(&format!("nix-env --profile /nix/var/nix/profiles/system --set {}", system.toplevel));
}

/// What a switch may change: the system, its units, and what the boot loader starts.
fn state(machine: &Machine) -> String {
    machine.run(
        "readlink /run/current-system /etc/static; cat /run/greeting /boot/loader/loader.conf; ls /boot/loader/entries
        systemctl show --property Id,ActiveState,InvocationID '*.service' | grep -v session; ls -l /etc /nix/var/nix/profiles",
    )
}

#[test]
fn a_machine_is_a_whole_system_with_ssh_and_a_nix_daemon() {
    let machine = Machine::booted();
    let (a, b) = (deployment("a"), deployment("b"));
    let whoami =
        machine.login().ssh("id -un; cat /etc/hostname; readlink /run/current-system").output().unwrap();
    assert_eq!(text(&whoami), format!("root\nfixture-deploy\n{}\n", a.toplevel));
    assert_eq!(machine.run("systemctl is-system-running; test -f /etc/NIXOS"), "running");
    assert_eq!(
        machine.run("readlink /run/booted-system /nix/var/nix/profiles/system-1-link | uniq"),
        a.toplevel
    );
    assert_eq!(machine.run("ls /nix/store | sort").lines().count(), closure("a").len());

    // As on NixOS only the daemon writes to the store, and only when asked.
    machine.try_run("touch /nix/store/x").status.success().then(|| panic!("the store is writable"));
    assert_eq!(machine.try_run("systemctl is-active nix-daemon.service").stdout, b"inactive\n");
    send(machine.login(), "b");
    machine.run("systemctl is-active nix-daemon.service");
    let clean = machine.run("nix-store --verify --check-contents");
    assert!(!clean.contains("modified") && !clean.contains("disappeared"), "{clean}");
    machine.run(&format!("nix-store --check-validity $(nix-store --query --requisites {})", b.toplevel));
}

#[test]
fn a_system_is_switched_to_by_its_own_program() {
    let mut machine = Machine::booted();
    let (a, b) = (deployment("a"), deployment("b"));
    send(machine.login(), "b");

    let before = state(&machine);
    let (status, words) = switch(&machine, &b, "dry-activate");
    assert_eq!(status, 0, "{words}");
    assert!(words.contains("would stop the following units: greeter.service leaver.service"), "{words}");
    assert_eq!(state(&machine), before);

    // Until the next boot.
    assert_eq!(switch(&machine, &b, "test"), (0, switched()));
    assert_eq!(
        machine.run("cat /run/greeting; readlink /run/current-system"),
        format!("second\n{}", b.toplevel)
    );
    assert_eq!(
        text(&machine.try_run("systemctl is-active leaver newcomer sshd")),
        "inactive\nactive\nactive\n"
    );
    machine.reboot();
    assert_eq!(
        machine.run("cat /run/greeting; readlink /run/current-system"),
        format!("first\n{}", a.toplevel)
    );

    // At the next boot.
    set_profile(&machine, &b);
    assert_eq!(switch(&machine, &b, "boot"), (0, String::new()));
    assert_eq!(
        machine.run("cat /run/greeting; readlink /run/current-system"),
        format!("first\n{}", a.toplevel)
    );
    machine.reboot();
    assert_eq!(
        machine.run("cat /run/greeting; readlink /run/booted-system"),
        format!("second\n{}", b.toplevel)
    );

    // Both, and back.
    machine.run("nix-env --profile /nix/var/nix/profiles/system --rollback");
    let (status, words) = switch(&machine, &a, "switch");
    assert_eq!(status, 0, "{words}");
    assert_eq!(
        machine.run("cat /run/greeting; readlink /run/current-system"),
        format!("first\n{}", a.toplevel)
    );
    machine.kill();
    machine.start();
    assert_eq!(
        machine.run("cat /run/greeting; readlink /run/booted-system"),
        format!("first\n{}", a.toplevel)
    );
    assert!(machine.login().lets_in());
    machine.power_off();
}

fn switched() -> String {
    "stopping the following units: greeter.service leaver.service\nactivating the configuration...\n\
     setting up /etc...\nstarting the following units: greeter.service\n"
        .into()
}

#[test]
fn a_switch_that_fails_says_so_by_its_status() {
    let machine = Machine::booted();
    for (name, action, expected, words) in [
        ("failing-unit", "switch", 4, "the following units failed: failing.service"),
        ("failing-activation", "test", 2, "this snippet always fails"),
        ("new-init", "switch", 100, "reboot needed"),
        ("new-init", "boot", 0, ""),
    ] {
        let system = deployment(name);
        send(machine.login(), name);
        set_profile(&machine, &system);
        let (status, said) = switch(&machine, &system, action);
        assert_eq!(status, expected, "{name}: {said}");
        assert!(said.contains(words), "{name}: {said}");
        let current = machine.run("readlink /run/current-system") == system.toplevel;
        assert_eq!(current, name != "new-init", "{name}");
    }
    machine.run("flock /run/nixos/switch-to-configuration.lock sleep 100000 > /dev/null 2>&1 & sleep 0.5");
    assert_eq!(switch(&machine, &deployment("a"), "switch"), (11, "Could not acquire lock\n".into()));
}

#[test]
fn a_broken_network_is_heard_of_by_nobody_until_it_is_mended_from_inside() {
    let machine = Machine::booted();
    let (a, broken) = (deployment("a"), deployment("broken-network"));
    send(machine.login(), "broken-network");
    assert!(machine.login().lets_in());
    let (status, words) = switch(&machine, &broken, "test");
    assert_eq!(status, 0, "{words}");
    wait::until("the network is lost", || (!machine.login().is_reachable()).then_some(()));
    let (status, words) = switch(&machine, &a, "test");
    assert_eq!(status, 0, "{words}");
    wait::until("the network is back", || machine.login().is_reachable().then_some(()));
}

#[test]
fn a_link_counts_delays_and_can_be_cut() {
    let (machine, other) = (Machine::booted(), Machine::booted());
    let link = &machine.login().link;
    let (_, before) = link.bytes();
    link.shape(Duration::from_millis(20), Some(4 << 20));
    let output = machine.login().ssh("head -c 1000000 /dev/urandom").output().unwrap();
    assert_eq!(output.stdout.len(), 1_000_000);
    let (_, after) = link.bytes();
    assert!((1_000_000..1_200_000).contains(&(after - before)), "{before} to {after}");

    // What is under way when the cable is pulled arrives when it is back.
    let mut running =
        machine.login().ssh("echo here; sleep 1; echo still here").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "here");
    link.cut();
    assert!(!machine.login().is_reachable());
    assert!(other.login().lets_in(), "each machine has a link of its own");
    assert!(running.try_wait().unwrap().is_none());
    link.mend();
    assert_eq!(lines.next().unwrap().unwrap(), "still here");
    assert!(running.wait().unwrap().success());
}
