//! Booting the system that is in a directory, as a container of systemd-nspawn.
//!
//! The container is started by the path of the system's own init, as NixOS's containers are, so the
//! directory needs neither `/sbin/init` nor an os-release. The directory is claimed meanwhile: a
//! deployment would take a running system's place without its switch-to-configuration knowing.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;

use super::claim::Claim;
use super::{enter, init};
use crate::failure::refused;
use crate::store::path::StorePath;
use crate::sys::{command, inside, interrupt, namespace};

const NSPAWN: &str = "systemd-nspawn";
const NAME_LIMIT: usize = 64;
// By which systemd, as this machine's manager, is asked for a unit; and what its machined has made.
const BUS: &str = "/run/dbus/system_bus_socket";
const MACHINED: &str = "/run/systemd/machines";

/// Boots the system in `root` and returns the exit status of the container.
///
/// `more` are options for systemd-nspawn, behind ours. Whatever ends this process powers the container off.
pub fn boot(root: &Path, host_network: bool, more: &[OsString]) -> Result<i32> {
    let root = root.canonicalize().with_context(|| format!("finding {}", root.display()))?;
    let system = enter::system(&root)?;
    let Some(nspawn) = command::find(NSPAWN, places()) else {
        bail!(
            "there is no {NSPAWN} on this machine, which boots a directory; install it (Debian has it in \
             systemd-container), or run a command without --boot"
        );
    };
    let init = init::container_part(&root, &system);
    if !is_script(&root, &system, init) {
        return Err(refused(format!(
            "{} is activated by its initrd, which a container has not; install it on a disk or into an image, \
             or run a command without --boot",
            system.name()
        )));
    }
    let name = name(enter::hostname(&root, &system).as_deref(), &root);
    let bus = Path::new(BUS).exists();
    // Its directory may be left from another life, such as that of an image's maker.
    let host = Host { bus, machined: bus && Path::new(MACHINED).exists() };
    let _claim = Claim::hold(&root, &system)?;
    interrupt::say(format!("{name} is powered off"));
    let mut command = command::ended_by(nspawn, Signal::SIGTERM);
    command
        .arg(format!("--directory={}", root.display()))
        .args(options(&name, host, host_network))
        .args(more);
    command.arg(format!("{system}/{init}"));
    namespace::leave_terminal_signals_to_the_program()?;
    let status = command.status().with_context(|| format!("starting {NSPAWN}"))?;
    Ok(namespace::exit_code(status))
}

fn places() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/run/current-system/sw/bin".into()]).collect()
}

// What is no script is systemd itself: with a systemd stage 1, and nothing beside it that activates.
fn is_script(root: &Path, system: &StorePath, init: &str) -> bool {
    use std::io::Read;
    let path = PathBuf::from(format!("{system}/{init}"));
    let mut begin = [0; 2];
    let file = inside::open(root, &path, OFlag::O_RDONLY | OFlag::O_NONBLOCK).map(fs::File::from);
    file.and_then(|mut file| file.read_exact(&mut begin)).is_ok() && &begin == b"#!"
}

/// Who is there to be asked on this machine.
#[derive(Clone, Copy)]
struct Host {
    bus: bool,
    machined: bool,
}

fn options(name: &str, host: Host, host_network: bool) -> Vec<String> {
    let mut options = vec![
        format!("--machine={name}"),
        // What systemd as PID 1 takes for a request to power off.
        "--kill-signal=SIGRTMIN+3".to_owned(),
        format!("--register={}", if host.machined { "yes" } else { "no" }),
        // Neither side writes into the other: no journal here, no time zone there, and nothing that a
        // file beside the directory asks for.
        "--link-journal=no".to_owned(),
        "--timezone=off".to_owned(),
        "--settings=no".to_owned(),
    ];
    if !host.bus {
        // Nobody gives it a unit of its own.
        options.push("--keep-unit".to_owned());
    }
    if !host_network {
        // A second copy of a machine must not answer, mail or join a cluster in its original's place.
        options.push("--private-network".to_owned());
    }
    options
}

/// Returns a name that systemd takes for a machine: the system's host name, else the directory's.
fn name(hostname: Option<&str>, root: &Path) -> String {
    let dir = root.file_name().unwrap_or_default().to_string_lossy();
    let names = [hostname.unwrap_or(""), &dir];
    let names = names.map(|name| {
        let good: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-.".contains(*c)).collect();
        // Between two dots there is a label, and none is empty.
        let labels: Vec<&str> = good.split('.').map(|label| label.trim_matches('-')).collect();
        let good: Vec<&str> = labels.into_iter().filter(|label| !label.is_empty()).collect();
        let good = good.join(".");
        good[..good.len().min(NAME_LIMIT)].trim_end_matches(['-', '.']).to_owned()
    });
    names.into_iter().find(|name| !name.is_empty()).unwrap_or_else(|| "nixos".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_named_after_its_host_or_its_directory() {
        let long = "x".repeat(70);
        for (hostname, dir, expected) in [
            (Some("box"), "/backup/laptop", "box"),
            (Some("web.example.org"), "/x", "web.example.org"),
            (None, "/backup/my laptop_2", "mylaptop2"),
            (Some("-..-"), "/backup/.box", "box"),
            (Some("a...b"), "/x", "a.b"),
            (None, "/", "nixos"),
            (None, "/ü", "nixos"),
            (Some(&long), "/x", &long[..64]),
        ] {
            assert_eq!(name(hostname, Path::new(dir)), expected, "{hostname:?} {dir}");
        }
    }

    #[test]
    fn a_container_has_no_network_unless_asked_for_and_a_unit_where_somebody_gives_it_one() {
        let has = |bus, machined, host_network, option: &str| {
            options("x", Host { bus, machined }, host_network).iter().any(|has| has == option)
        };
        assert!(has(true, true, false, "--private-network") && !has(true, true, true, "--private-network"));
        assert!(has(true, true, false, "--register=yes") && has(true, false, false, "--register=no"));
        assert!(has(false, false, false, "--keep-unit") && !has(true, false, false, "--keep-unit"));
    }
}
