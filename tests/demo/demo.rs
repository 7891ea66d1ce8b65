//! `make demo`: a running system clones itself to an empty disk, and the clone boots.
//!
//! KEEP=1 keeps the clone's disk and prints how to play with it.

#[allow(dead_code)] // the tests use the rest
#[path = "../it/source.rs"]
mod source;
#[allow(dead_code)]
#[path = "../it/vm.rs"]
mod vm;

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use source::{Firmware, Source};
use vm::{BOOT, LONG, Machine, Start, Vm};

const DISK_SIZE: u64 = 3 << 30;

fn main() {
    let begin = Instant::now();
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("build");
    let (binary, fixture, work) =
        (build.join("nixos-install-via"), build.join("fixture/uefi"), build.join("demo"));
    let toplevel = fs::read_to_string(fixture.join("toplevel")).expect("make has built the fixture");
    let toplevel = toplevel.trim();
    if work.exists() {
        fs::remove_dir_all(&work).expect("build/demo is ours");
    }
    fs::create_dir_all(&work).expect("build/ can be written");
    let stage = |words: &str| println!("\n[{:>3} s] {words}", begin.elapsed().as_secs());

    stage("A machine to start from: install-to-dir makes its root, which becomes the disk /dev/vda.");
    say(&[&format!("nixos-install-via install-to-dir --system {toplevel} source-root")]);
    let source = Source::make(&binary, &fixture.join("root"), toplevel, Firmware::Uefi, &work);
    let target = work.join("clone.img");
    File::create(&target).and_then(|file| file.set_len(DISK_SIZE)).expect("build/demo can be written");

    stage("It boots in QEMU, with an empty second disk /dev/vdb. No network, no KVM: this takes a while.");
    let mut running = Machine::new(source.start()).disk(&source.image).disk(&target).start();
    running.wait_shell(BOOT);
    show(&mut running, "readlink /run/current-system");
    show(&mut running, "lsblk --output NAME,SIZE,FSTYPE,LABEL,MOUNTPOINTS /dev/vda /dev/vdb");

    stage("The running system installs itself on /dev/vdb, with what it has in its own closure.");
    show(&mut running, "/run/current-system/bin/install-to-disk --yes /dev/vdb");
    show(&mut running, "blkid /dev/vdb1 /dev/vdb2");
    running.power_off();

    stage(
        "The first machine is off. A second one has only the new disk, and UEFI firmware that has never seen it.",
    );
    let mut clone = Machine::new(Start::Uefi).disk(&target).start();
    clone.wait_serial("login:", BOOT);
    stage("It boots to a login prompt:");
    let serial = clone.serial();
    let greeting = serial.find("<<< Welcome").unwrap_or(0);
    say(&serial[greeting..].lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>());
    clone.wait_shell(BOOT);
    show(&mut clone, "findmnt --real --output TARGET,SOURCE,FSTYPE,LABEL");
    show(&mut clone, "readlink /run/booted-system");
    let booted = clone.sh("readlink /run/booted-system");
    assert_eq!(booted, toplevel, "the clone booted another system");
    show(&mut clone, "nix-store --verify --check-contents");
    clone.power_off();

    stage("Done: the clone is the system it was cloned from, every byte of its store as the database says.");
    let keep = std::env::var("KEEP").is_ok_and(|keep| !keep.is_empty());
    if keep {
        println!("\nIts disk is {}. To play with it (Ctrl-A X ends it):\n", target.display());
        println!("{}", vm::command_to_play(&target));
    } else {
        fs::remove_dir_all(&work).expect("build/demo is ours");
        println!("\n`make demo KEEP=1` keeps its disk to play with.");
    }
}

/// Runs a command in the machine, as if typed there, and shows what it says.
fn show(machine: &mut Vm, command: &str) {
    say(&[&format!("# {command}")]);
    let (status, words) = machine.sh_within(LONG, command);
    say(&words.lines().collect::<Vec<_>>());
    assert_eq!(status, 0, "`{command}` ended with {status}");
}

fn say(lines: &[&str]) {
    for line in lines {
        println!("        {line}");
    }
}
