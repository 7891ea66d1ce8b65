//! Looks at a machine that is to run another system.

use std::env;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};

use super::{disk, is_kind, names_in, read_line};
use crate::facts::target::{Firmware, RunsFrom, TargetDisk, TargetFacts};
use crate::size::Bytes;
use crate::system::host_keys;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const SECURE_BOOT: &str = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
// Attributes come before the value of an EFI variable.
const ATTRIBUTES: usize = 4;
// What is no disk of the machine: memory, images, other layers, drives without a table of their own.
const NO_DISKS: [&str; 9] = ["ram", "zram", "sr", "fd", "loop", "dm-", "md", "nbd", "mtdblock"];

/// Looks at this machine. `rescue` tells whether this is the rescue of this program.
pub fn target(rescue: bool) -> Result<TargetFacts> {
    let name = nix::sys::utsname::uname().context("asking the kernel what this machine is")?;
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let memory = text("/proc/meminfo");
    let host_keys = if rescue { Vec::new() } else { host_keys::read(Path::new("/"))? };
    Ok(TargetFacts {
        machine: name.machine().to_string_lossy().into_owned(),
        boot_id: fs::read_to_string(BOOT_ID).with_context(|| format!("reading {BOOT_ID}"))?.trim().to_owned(),
        kernel: name.release().to_string_lossy().into_owned(),
        kernel_parameters: text("/proc/cmdline").trim().to_owned(),
        os: pretty_name(&text("/etc/os-release")),
        firmware: firmware(),
        lockdown: lockdown(&text("/sys/kernel/security/lockdown")),
        container: container(),
        model: model(),
        kexec_disabled: text("/proc/sys/kernel/kexec_load_disabled").trim() == "1",
        watchdog: armed_watchdog(Path::new("/sys/class/watchdog")),
        memory: meminfo(&memory, "MemTotal"),
        available_memory: meminfo(&memory, "MemAvailable"),
        runs_from: match rescue {
            true => RunsFrom::Rescue,
            false => runs_from(&text("/proc/self/mountinfo")),
        },
        disks: disks()?,
        network: super::network()?,
        reached: reached(),
        host_keys: host_keys.into_iter().filter_map(|key| key.public).collect(),
        hardware: super::hardware()?,
    })
}

/// Looks at every whole disk of this machine.
fn disks() -> Result<Vec<TargetDisk>> {
    let mut disks = Vec::new();
    for name in names_in("/sys/class/block") {
        let class = Path::new("/sys/class/block").join(&name);
        let is_part = class.join("partition").exists();
        let is_empty = read_line(&class.join("size")).is_none_or(|size| size == "0");
        if is_part || is_empty || NO_DISKS.iter().any(|kind| is_kind(&name, kind)) {
            continue;
        }
        let place = fs::canonicalize(&class).map(|path| path.to_string_lossy().into_owned());
        let node = format!("/dev/{}", name.replace('!', "/"));
        // One that cannot be read, such as a broken one, is no place for a system either.
        if let Ok(facts) = disk(Path::new(&node)) {
            disks.push(TargetDisk { place: place_of(&place.unwrap_or_default()), name, facts });
        }
    }
    Ok(disks)
}

/// Returns where a disk is attached, from its path in `/sys`, without what a kernel numbers as it likes.
fn place_of(path: &str) -> String {
    let path = path.strip_prefix("/sys/devices/").unwrap_or(path);
    path.split("/block/").next().unwrap_or(path).to_owned()
}

fn firmware() -> Firmware {
    if !Path::new("/sys/firmware/efi").exists() {
        return Firmware::Bios;
    }
    let bits = read_line(Path::new("/sys/firmware/efi/fw_platform_size"));
    let secure_boot = fs::read(SECURE_BOOT).is_ok_and(|bytes| bytes.get(ATTRIBUTES) == Some(&1));
    Firmware::Uefi { bits: bits.and_then(|bits| bits.parse().ok()).unwrap_or(64), secure_boot }
}

/// Returns the mode in brackets, out of all there are.
fn lockdown(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(mode, _)| mode.to_owned())
}

/// Returns the name of a watchdog that runs. One without a device is the kernel's own, and goes with it.
fn armed_watchdog(class: &Path) -> Option<String> {
    let entries = fs::read_dir(class).into_iter().flatten().flatten();
    let mut armed = entries.map(|entry| entry.path()).filter(|watchdog| {
        let state = read_line(&watchdog.join("state"));
        watchdog.join("device").exists() && state.is_some_and(|state| state == "active")
    });
    armed.next().map(|watchdog| {
        let name = || watchdog.file_name().unwrap_or_default().to_string_lossy().into_owned();
        read_line(&watchdog.join("identity")).filter(|text| !text.is_empty()).unwrap_or_else(name)
    })
}

fn container() -> Option<String> {
    let told = read_line(Path::new("/run/systemd/container"));
    let environment = || {
        let first = fs::read("/proc/1/environ").unwrap_or_default();
        let mut words = first.split(|byte| *byte == 0);
        let word = words.find_map(|word| word.strip_prefix(b"container="))?;
        Some(String::from_utf8_lossy(word).into_owned())
    };
    let marks = [("/.dockerenv", "docker"), ("/run/.containerenv", "podman")];
    let marked =
        || marks.iter().find(|(path, _)| Path::new(path).exists()).map(|(_, kind)| (*kind).to_owned());
    let openvz = || {
        let is_it = Path::new("/proc/vz").exists() && !Path::new("/proc/bc").exists();
        is_it.then(|| "openvz".to_owned())
    };
    told.or_else(environment).or_else(marked).or_else(openvz).filter(|kind| !kind.is_empty())
}

fn model() -> Option<String> {
    let words =
        ["sys_vendor", "product_name"].map(|name| read_line(&Path::new("/sys/class/dmi/id").join(name)));
    let words: Vec<String> = words.into_iter().flatten().filter(|word| !word.is_empty()).collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// Returns a value of `/proc/meminfo`, which counts in KiB.
fn meminfo(text: &str, name: &str) -> Bytes {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = value.and_then(|value| value.split_whitespace().next()?.parse().ok());
    Bytes::kib(value.unwrap_or(0))
}

fn pretty_name(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches(['"', '\'']).to_owned()).filter(|name| !name.is_empty())
}

/// Tells where the root file system is, from mountinfo: what is written to it must be in memory.
fn runs_from(mountinfo: &str) -> RunsFrom {
    const IN_MEMORY: [&str; 3] = ["tmpfs", "ramfs", "rootfs"];
    struct Mount<'a> {
        point: &'a str,
        kind: &'a str,
        options: &'a str,
    }
    let mounts: Vec<Mount> = mountinfo
        .lines()
        .filter_map(|line| {
            let (head, tail) = line.split_once(" - ")?;
            let mut tail = tail.split(' ');
            let (kind, options) = (tail.next()?, tail.nth(1)?);
            Some(Mount { point: head.split(' ').nth(4)?, kind, options })
        })
        .collect();
    let holding = |path: &str| {
        let above = mounts.iter().filter(|mount| Path::new(path).starts_with(mount.point));
        above.max_by_key(|mount| mount.point.len())
    };
    let Some(root) = mounts.iter().rev().find(|mount| mount.point == "/") else { return RunsFrom::Disk };
    let in_memory = match root.kind {
        kind if IN_MEMORY.contains(&kind) => true,
        "overlay" => {
            let upper = root.options.split(',').find_map(|option| option.strip_prefix("upperdir="));
            // Where that is may no longer be seen; then it is taken for a disk, and kexec is the way.
            upper.and_then(holding).is_some_and(|mount| mount.point != "/" && IN_MEMORY.contains(&mount.kind))
        }
        _ => false,
    };
    if in_memory { RunsFrom::Memory } else { RunsFrom::Disk }
}

/// Returns this machine's end of the SSH connection that this process is part of.
fn reached() -> Option<(IpAddr, u16)> {
    if let Some(reached) = env::var("SSH_CONNECTION").ok().and_then(|text| own_end(&text)) {
        return Some(reached);
    }
    // sudo keeps it from us; those before sudo have it.
    let mut process = std::os::unix::process::parent_id();
    while process > 1 {
        let environ = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        let mut words = environ.split(|byte| *byte == 0);
        if let Some(word) = words.find_map(|word| word.strip_prefix(b"SSH_CONNECTION=")) {
            return own_end(&String::from_utf8_lossy(word));
        }
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // Behind the name in brackets, which may hold anything: the state, then the parent.
        process = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
    }
    None
}

/// Reads `SSH_CONNECTION`: the other end's address and port, then this one's.
fn own_end(text: &str) -> Option<(IpAddr, u16)> {
    let mut words = text.split(' ').skip(2);
    let address = words.next()?.split('%').next()?.parse().ok()?;
    // An address of the old kind, seen through a socket of the new one.
    let address = match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 => v4,
    };
    Some((address, words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_in_memory_is_known_by_its_mounts() {
        for (mountinfo, expected) in [
            ("22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n", RunsFrom::Disk),
            ("22 1 0:2 / / rw - rootfs none rw\n", RunsFrom::Memory),
            ("22 1 0:20 / / rw - tmpfs tmpfs rw,size=1g\n", RunsFrom::Memory),
            (
                "20 1 0:19 / /run/live rw - tmpfs tmpfs rw\n\
                 22 1 0:20 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/run/live/rw,workdir=/run/live/w\n",
                RunsFrom::Memory,
            ),
            // The root of a container, or of an image-based system.
            (
                "22 1 0:20 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/var/lib/x/diff,workdir=/w\n",
                RunsFrom::Disk,
            ),
            (
                "20 1 8:1 / /data rw - ext4 /dev/sda1 rw\n\
                 22 1 0:20 / / rw - overlay overlay rw,upperdir=/data/rw\n",
                RunsFrom::Disk,
            ),
            ("", RunsFrom::Disk),
        ] {
            assert_eq!(runs_from(mountinfo), expected, "{mountinfo}");
        }
    }

    #[test]
    fn what_the_kernel_and_others_write_is_read() {
        assert_eq!(lockdown("none [integrity] confidentiality\n").as_deref(), Some("integrity"));
        assert_eq!(lockdown(""), None);
        assert_eq!(meminfo("MemTotal:         494928 kB\nMemFree: 1 kB\n", "MemTotal"), Bytes::kib(494_928));
        assert_eq!(meminfo("MemTotalX: 1 kB", "MemTotal"), Bytes(0));
        assert_eq!(pretty_name("NAME=x\nPRETTY_NAME=\"Debian 12\"\n").as_deref(), Some("Debian 12"));
        assert_eq!(pretty_name("PRETTY_NAME=\n"), None);
        let place = "/sys/devices/pci0000:00/0000:00:03.0/virtio1/block/vda";
        assert_eq!(place_of(place), "pci0000:00/0000:00:03.0/virtio1");
    }

    #[test]
    fn a_watchdog_of_the_hardware_that_runs_is_told() {
        let class = tempfile::tempdir().unwrap();
        for (name, device, state, identity, told) in [
            ("watchdog0", false, "active", "Software Watchdog", None),
            ("watchdog1", true, "inactive", "iTCO_wdt", None),
            ("watchdog2", true, "active", "iTCO_wdt", Some("iTCO_wdt")),
        ] {
            let watchdog = class.path().join(name);
            fs::create_dir(&watchdog).unwrap();
            fs::write(watchdog.join("state"), format!("{state}\n")).unwrap();
            fs::write(watchdog.join("identity"), format!("{identity}\n")).unwrap();
            if device {
                fs::create_dir(watchdog.join("device")).unwrap();
            }
            assert_eq!(armed_watchdog(class.path()).as_deref(), told, "with {name}");
        }
        assert_eq!(armed_watchdog(&class.path().join("none")), None);
    }

    #[test]
    fn a_connection_tells_where_this_machine_is_reached() {
        for (text, expected) in [
            ("10.0.2.2 51022 10.0.2.15 22", Some(("10.0.2.15", 22))),
            ("fe80::1%eth0 51022 fe80::2%eth0 2222", Some(("fe80::2", 2222))),
            ("::ffff:10.0.2.2 51022 ::ffff:10.0.2.15 22", Some(("10.0.2.15", 22))),
            ("10.0.2.2 51022", None),
            ("", None),
        ] {
            let expected = expected.map(|(address, port): (&str, u16)| (address.parse().unwrap(), port));
            assert_eq!(own_end(text), expected, "{text}");
        }
    }
}
