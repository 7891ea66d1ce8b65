//! install-via-ssh in emulated machines, each a Debian that becomes a system of the fixture: with how little memory,
//! after how many bytes the rescue answers, and how long all of it takes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::debian::{BY_KEY, Firmware, Hardware};
use crate::env::{TestEnv, fixture, text};
use crate::login;
use crate::world::sh;

// From comfortable to scarce.
const MACHINES: [(Firmware, u32); 6] = [
    (Firmware::Uefi, 512),
    (Firmware::Uefi, 384),
    (Firmware::Uefi, 256),
    (Firmware::Bios, 512),
    (Firmware::Bios, 256),
    (Firmware::Bios, 224),
];
const MIB: f64 = (1 << 20) as f64;

/// What one installation cost.
struct Cost {
    /// Bytes that went to the machine before its rescue answered, and the seconds until then.
    before: (u64, f64),
    /// Bytes in both directions, and seconds, until the machine has answered as the new system.
    whole: (u64, f64),
}

/// Installs onto each machine and prints the table.
pub fn measure(binary: &Path) {
    println!("\ninstall-via-ssh: a Debian 12 in an emulated machine becomes a system of the tests' own\n");
    println!(
        "{:<18}{:>12}{:>16}{:>14}{:>10}{:>12}",
        "machine", "closure MiB", "MiB to rescue", "s to rescue", "s in all", "MiB in all"
    );
    for (firmware, memory) in MACHINES {
        let variant = match firmware {
            Firmware::Uefi => "uefi",
            Firmware::Bios => "bios",
        };
        let name = format!("{firmware:?} {memory} MiB");
        let (closure, installed) = install(binary, variant, firmware, memory);
        match installed {
            Ok(Cost { before, whole }) => println!(
                "{name:<18}{closure:>12.0}{:>16.1}{:>14.1}{:>10.1}{:>12.1}",
                before.0 as f64 / MIB,
                before.1,
                whole.1,
                whole.0 as f64 / MIB
            ),
            Err(sentence) => println!("{name:<18}{closure:>12.0}  {sentence}"),
        }
    }
    println!(
        "\nOnce each, without hardware acceleration: a machine of one's own is several times as fast. The memory\n\
         is what QEMU gives; MiB to the rescue are this program, the kernel and the modules. The machine has restarted and\n\
         answered as the new system at the end."
    );
}

/// Returns the MiB of the closure, and what it cost, or the sentence by which it was refused.
fn install(binary: &Path, variant: &str, firmware: Firmware, memory: u32) -> (f64, Result<Cost, String>) {
    let (env, system) = (TestEnv::new(), fixture(variant));
    let debian = Hardware::new(firmware, memory).start();
    let (config, key, errors) = (debian.config(), login::key(), env.path("errors"));
    let mut command = Command::new(binary);
    command.arg("install-via-ssh").args(system.options());
    command.args(["-F", text(&config), "-i", text(&key), "--progress", "json", "--wait-timeout", "1200"]);
    command.arg(BY_KEY).env("XDG_STATE_HOME", env.path("state")).current_dir(env.path(""));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(fs::File::create(&errors).expect("the directory is ours"));
    let (begin, bytes) = (Instant::now(), || debian.login.link.bytes());
    let mut child = command.spawn().expect("the binary was built");
    let mut before = None;
    for line in BufReader::new(child.stdout.take().expect("it is piped")).lines() {
        let event: serde_json::Value =
            serde_json::from_str(&line.expect("events are text")).expect("events are JSON");
        // The step after the jump begins once the rescue has answered.
        if event["event"] == "step" && event["number"] == 2 {
            before = Some((bytes().0, begin.elapsed().as_secs_f64()));
        }
    }
    let status = child.wait().expect("it is a child of ours");
    let (to, from) = bytes();
    let whole = (to + from, begin.elapsed().as_secs_f64());
    let said = fs::read_to_string(&errors).expect("it is ours");
    let closure = sh(r#"du -sm "$1" | cut -f1"#, &[&system.root.join("nix/store")]);
    let closure = closure.parse().expect("du counts");
    let installed = match (status.success(), before) {
        (true, Some(before)) => Ok(Cost { before, whole }),
        _ => Err(said.lines().rev().find(|line| line.contains("error: ")).unwrap_or("it failed").to_owned()),
    };
    (closure, installed)
}
