//! How a machine that runs any Linux gets another system: whether it can, and by which steps.

use anyhow::Result;

use super::{HostKeys, Plan, RemoteStep, Step};
use crate::boot::loader::Kind;
use crate::disk::luks::memory;
use crate::facts::target::{Firmware, RunsFrom, TargetDisk, TargetFacts};
use crate::facts::{Refusal, SystemFacts};
use crate::failure::refused;
use crate::size::Bytes;

// This program, a stream that is unpacked on its way to the disk, and pages that wait to be written; before there is
// a stream, what the passphrase of an encrypted disk costs at the least. What a kernel takes for itself is in no
// count of its memory.
const WORK: Bytes = Bytes::mib(160);
// This program beside a system that takes care of its own memory, at the very least.
const ALONE: Bytes = Bytes::mib(32);
const _: () = assert!(memory::LEAST.0 + memory::REST.0 <= WORK.0);

/// What the rescue needs of a machine's memory.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// The initrd, which is unpacked while it still is in memory.
    pub initrd: Bytes,
    /// The tools of the steps on the disk.
    pub tools: Bytes,
}

impl Demand {
    /// Returns the least memory that will do.
    fn least(&self) -> Bytes {
        // Of the initrd's two copies one is gone before there are tools.
        WORK + self.initrd + self.initrd.max(self.tools)
    }
}

/// Refuses a machine that no way leads to: one of another kind, or one whose firmware would not start the system.
pub fn can_be_replaced(host: &str, facts: &TargetFacts, wanted: &SystemFacts, loader: Kind) -> Result<()> {
    let machine = wanted.platform.as_deref().and_then(|platform| platform.split('-').next());
    if let Some(machine) = machine.filter(|machine| *machine != facts.machine) {
        return Err(refused(format!(
            "{host} is {} and the system is for {machine}; install one that was built for it",
            facts.machine
        )));
    }
    if let Some(kind) = &facts.container {
        return Err(refused(format!(
            "{host} is a container ({kind}), whose kernel belongs to its host; install onto a machine of its own"
        )));
    }
    match (facts.firmware, loader) {
        (Firmware::Bios, Kind::SystemdBoot | Kind::GrubEfi | Kind::Lanzaboote) => Err(refused(format!(
            "{host} was started by a BIOS and {loader} needs UEFI; give the system GRUB with a device, or start the machine by UEFI"
        ))),
        (Firmware::Uefi { .. }, Kind::GrubBios) => Err(refused(format!(
            "{host} was started by UEFI and the system's GRUB is for a BIOS; give the system systemd-boot or GRUB for EFI"
        ))),
        (Firmware::Uefi { bits: 32, .. }, _) => {
            Err(refused(format!("the UEFI of {host} has 32 bits, and starts no boot loader of this system")))
        }
        _ => Ok(()),
    }
}

/// Refuses a machine that could not start the rescue, or not with so much memory.
pub fn can_jump(host: &str, facts: &TargetFacts, demand: Demand) -> Result<()> {
    if facts.kexec_disabled {
        return Err(refused(format!(
            "{host} forbids to start another kernel until its next boot (kernel.kexec_load_disabled); \
             take that setting away and restart it"
        )));
    }
    if let Firmware::Uefi { secure_boot: true, .. } = facts.firmware {
        return Err(refused(format!(
            "{host} has Secure Boot, which starts no kernel that its maker has not signed; switch it off in the firmware"
        )));
    }
    if let Some(mode) = facts.lockdown.as_deref().filter(|mode| *mode != "none") {
        return Err(refused(format!(
            "the kernel of {host} is locked down ({mode}) and starts no kernel that is not signed; \
             restart it without lockdown="
        )));
    }
    if let Some(watchdog) = &facts.watchdog {
        return Err(refused(format!(
            "the watchdog of {host} ({watchdog}) is armed and would restart it amid the installation; \
             disarm it first (RuntimeWatchdogSec=off in systemd, or stop the program that feeds it)"
        )));
    }
    if facts.memory < demand.least() {
        return Err(refused(format!(
            "{host} has {} of memory and this system's rescue needs {}; give it more, or install a system with a smaller kernel",
            facts.memory,
            demand.least()
        )));
    }
    Ok(())
}

/// Refuses a machine that runs from memory and has none left to install with.
pub fn can_hold_tools(host: &str, facts: &TargetFacts, tools: Bytes) -> Result<()> {
    let need = tools + ALONE;
    match facts.available_memory < need {
        false => Ok(()),
        true => Err(refused(format!(
            "what {host} runs leaves {} of its memory, and the tools for its disk need {need}; stop what it need not run, or start it from its disk",
            facts.available_memory
        ))),
    }
}

/// Decides which host keys a machine is given for the system; none were wished for where `wish` is none, and `brings` tells
/// that some are among the extra files, which have the last word.
///
/// Those of a system in memory are made at each of its boots, or are the same on every machine that it was started on.
pub fn host_keys(
    host: &str,
    facts: &TargetFacts,
    wish: Option<HostKeys>,
    brings: bool,
) -> Result<Option<HostKeys>> {
    match (wish, facts.runs_from) {
        (None, _) if brings => Ok(None),
        (Some(HostKeys::New), _) | (None, RunsFrom::Memory) => Ok(Some(HostKeys::New)),
        (Some(HostKeys::Keep), RunsFrom::Memory) if facts.host_keys.is_empty() => Err(refused(format!(
            "{host} has no host keys in /etc/ssh that the system could keep; leave out --host-keys, and it gets a new one"
        ))),
        _ => Ok(Some(HostKeys::Keep)),
    }
}

/// Which disk it may be.
#[derive(Debug, PartialEq)]
pub enum Choice<'a> {
    This(&'a TargetDisk),
    /// It has to be asked.
    OneOf(Vec<&'a TargetDisk>),
}

/// Finds the disk that was `named`, as its machine calls it, or else the only one there is.
///
/// Where the machine runs from a disk, what holds that disk goes with the jump; `stays` says that there is none.
pub fn disk_of<'a>(
    host: &str,
    facts: &'a TargetFacts,
    named: Option<&str>,
    stays: bool,
) -> Result<Choice<'a>> {
    let reasons = |disk: &TargetDisk| {
        let all = disk.facts.refusals.iter();
        let lasting = all.filter(|refusal| stays || disk.lasting_refusals().any(|other| other == *refusal));
        lasting.map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    let is_free = |disk: &&TargetDisk| disk.is_usable() && reasons(disk).is_empty();
    let list = |disks: &[&TargetDisk]| {
        let names = disks.iter().map(|disk| format!("/dev/{} ({})", disk.name, disk.facts.size));
        names.collect::<Vec<_>>().join(", ")
    };
    if let Some(named) = named {
        // A layout has one disk; whoever has read it compares what it calls that one.
        let device = named.split_once("=/dev/").map(|(_, name)| name);
        let name = device.or_else(|| named.strip_prefix("/dev/")).unwrap_or(named);
        let is_it = |disk: &&TargetDisk| disk.name == name || disk.facts.serial.as_deref() == Some(named);
        let Some(disk) = facts.disks.iter().find(is_it) else {
            let all: Vec<&TargetDisk> = facts.disks.iter().collect();
            return Err(refused(format!("{host} has no disk {named}; it has {}", list(&all))));
        };
        return match is_free(&disk) {
            true => Ok(Choice::This(disk)),
            false => Err(refused(format!(
                "/dev/{} of {host} is no place for a system: {}",
                disk.name,
                reasons(disk)
            ))),
        };
    }
    // A stick that somebody left in it is not meant.
    let fixed: Vec<&TargetDisk> =
        facts.disks.iter().filter(is_free).filter(|disk| !disk.facts.removable).collect();
    match fixed.as_slice() {
        [] => Err(refused(format!("{host} has no disk that a system could be put onto"))),
        [disk] => Ok(Choice::This(disk)),
        _ => Ok(Choice::OneOf(fixed)),
    }
}

/// Says from which disk the machine may start what it runs now, if that is not the one that gets the system.
pub fn what_stays(facts: &TargetFacts, disk: &TargetDisk) -> Option<String> {
    let runs = |refusal: &Refusal| matches!(refusal, Refusal::Held(holder) if holder.is_running_system());
    let others = || facts.disks.iter().filter(|other| other.name != disk.name);
    let other = others().find(|other| other.facts.refusals.iter().any(runs))?;
    Some(format!(
        "what runs there now stays on /dev/{}; see to it that the firmware starts /dev/{} rather than that",
        other.name, disk.name
    ))
}

/// What is added to the plan of a disk where another machine has it.
#[derive(Clone, Debug)]
pub struct Replacement<'a> {
    pub host: &'a str,
    /// The jump before all else, where one is needed.
    pub jump: Option<RemoteStep>,
    pub tools: RemoteStep,
    pub host_keys: Option<HostKeys>,
    pub reboot: bool,
    pub notes: Vec<String>,
}

/// Turns the plan of a disk of this machine into that of a disk of another one.
pub fn replace_via_ssh(replacement: &Replacement, facts: &TargetFacts, plan: Plan) -> Plan {
    let mut steps: Vec<Step> = replacement.jump.iter().cloned().map(Step::Remote).collect();
    steps.push(Step::Remote(replacement.tools.clone()));
    for step in plan.steps {
        match step {
            // Paths are registered as they come, so that what has come is not sent again.
            Step::Register { .. } => (),
            Step::Profile { .. } => {
                let keys = replacement.host_keys.map(|which| RemoteStep::HostKeys { which });
                // Before the person's own files, which have the last word.
                let at = steps.iter().position(|step| matches!(step, Step::ExtraFiles { .. }));
                let at = at.unwrap_or(steps.len());
                steps.splice(at..at, keys.map(Step::Remote));
                steps.push(step);
            }
            step => steps.push(step),
        }
    }
    if replacement.reboot {
        steps.push(Step::Remote(RemoteStep::Reboot));
    }
    let runs = match facts.runs_from {
        RunsFrom::Disk => format!("{}, which ends", facts.os.as_deref().unwrap_or("some Linux")),
        RunsFrom::Memory => format!("{}, from memory", facts.os.as_deref().unwrap_or("some Linux")),
        RunsFrom::Rescue => "the rescue".to_owned(),
    };
    let mut before = vec![format!("{} runs {runs}", replacement.host)];
    before.extend(plan.before);
    let target = format!("{}:{}", replacement.host, plan.target.display()).into();
    let mut notes = plan.notes;
    notes.extend(replacement.notes.iter().cloned());
    Plan { target, before, notes, steps, ..plan }
}

impl Plan {
    /// Returns what of a plan for another machine is done there, on the disk, and the number of its first step.
    pub fn at_far_end(&self) -> (Plan, usize) {
        let is_near =
            |step: &Step| matches!(step, Step::Remote(step) if !matches!(step, RemoteStep::HostKeys { .. }));
        let first = self.steps.iter().take_while(|step| is_near(step)).count();
        let steps = self.steps.iter().filter(|step| !is_near(step)).cloned().collect();
        (Plan { steps, ..self.clone() }, first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::target::tests::{disk, facts};
    use crate::failure::Failure;
    use crate::store::path::StorePath;

    const DEMAND: Demand = Demand { initrd: Bytes::mib(16), tools: Bytes::mib(40) };

    fn said(result: Result<()>) -> String {
        result.map_or_else(
            |error| match error.downcast_ref() {
                Some(Failure::Refused(text)) => text.clone(),
                _ => panic!("{error:#} is no refusal"),
            },
            |()| String::new(),
        )
    }

    #[test]
    fn a_machine_that_could_not_come_back_does_not_jump() {
        let secure = Firmware::Uefi { bits: 64, secure_boot: true };
        for (facts, words) in [
            (facts(), ""),
            (TargetFacts { lockdown: None, ..facts() }, ""),
            (TargetFacts { kexec_disabled: true, ..facts() }, "kexec_load_disabled"),
            (TargetFacts { firmware: secure, ..facts() }, "Secure Boot"),
            (TargetFacts { lockdown: Some("integrity".into()), ..facts() }, "locked down (integrity)"),
            (TargetFacts { watchdog: Some("iTCO_wdt".into()), ..facts() }, "(iTCO_wdt) is armed"),
            (TargetFacts { memory: Bytes::mib(216), ..facts() }, ""),
            (TargetFacts { memory: Bytes::mib(215), ..facts() }, "needs 216 MiB"),
        ] {
            let said = said(can_jump("web1", &facts, DEMAND));
            assert_eq!(said.is_empty(), words.is_empty(), "{said}");
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn a_system_goes_onto_machines_that_can_start_it() {
        let uefi = |bits| Firmware::Uefi { bits, secure_boot: false };
        let system = |platform: &str| SystemFacts {
            system: StorePath::parse("/nix/store/0c5mzqyfjhyxv5bmpanmc7dzl5cfbhzj-x").unwrap(),
            hostname: None,
            platform: Some(platform.to_owned()),
        };
        for (firmware, loader, words) in [
            (uefi(64), Kind::SystemdBoot, ""),
            (uefi(64), Kind::GrubBoth, ""),
            (uefi(64), Kind::GrubBios, "GRUB is for a BIOS"),
            (uefi(32), Kind::SystemdBoot, "32 bits"),
            (Firmware::Bios, Kind::GrubBios, ""),
            (Firmware::Bios, Kind::GrubBoth, ""),
            (Firmware::Bios, Kind::SystemdBoot, "needs UEFI"),
            (Firmware::Bios, Kind::Lanzaboote, "needs UEFI"),
        ] {
            let facts = TargetFacts { firmware, ..facts() };
            let said = said(can_be_replaced("web1", &facts, &system("x86_64-linux"), loader));
            assert_eq!(said.is_empty(), words.is_empty(), "{said}");
            assert!(said.contains(words), "{said}");
        }
        let other = said(can_be_replaced("web1", &facts(), &system("aarch64-linux"), Kind::SystemdBoot));
        assert!(other.starts_with("web1 is x86_64 and the system is for aarch64"), "{other}");
        let container = TargetFacts { container: Some("lxc".into()), ..facts() };
        let other = said(can_be_replaced("web1", &container, &system("x86_64-linux"), Kind::SystemdBoot));
        assert!(other.contains("a container (lxc)"), "{other}");
    }

    #[test]
    fn what_runs_from_memory_has_room_for_tools() {
        for (available, refused) in [(72, false), (71, true)] {
            let facts = TargetFacts { available_memory: Bytes::mib(available), ..facts() };
            let said = said(can_hold_tools("web1", &facts, Bytes::mib(40)));
            assert_eq!(
                said.contains("71 MiB of its memory, and the tools for its disk need 72 MiB"),
                refused,
                "{said}"
            );
        }
    }

    #[test]
    fn host_keys_are_kept_where_they_are_the_machines_own() {
        use HostKeys::{Keep, New};
        use RunsFrom::{Disk, Memory, Rescue};
        for (runs_from, wish, has_some, brings, expected) in [
            (Disk, None, true, false, Some(Some(Keep))),
            (Disk, Some(New), true, false, Some(Some(New))),
            // Those of a system in memory may be known to everybody.
            (Memory, None, true, false, Some(Some(New))),
            (Memory, None, false, false, Some(Some(New))),
            (Memory, Some(New), false, false, Some(Some(New))),
            (Memory, Some(Keep), true, false, Some(Some(Keep))),
            // dropbear has keys of its own, which are no use to another server.
            (Memory, Some(Keep), false, false, None),
            // It has those of the machine before, and does not name them.
            (Rescue, None, false, false, Some(Some(Keep))),
            (Rescue, Some(Keep), false, false, Some(Some(Keep))),
            // The person has seen to it.
            (Disk, None, true, true, Some(None)),
            (Memory, None, false, true, Some(None)),
            (Disk, Some(Keep), true, true, Some(Some(Keep))),
        ] {
            let known = if has_some { facts().host_keys } else { Vec::new() };
            let facts = TargetFacts { runs_from, host_keys: known, ..facts() };
            let decided = host_keys("web1", &facts, wish, brings);
            assert_eq!(decided.as_ref().ok(), expected.as_ref(), "{runs_from:?} {wish:?} {brings}");
            assert_eq!(said(decided.map(drop)).contains("leave out --host-keys"), expected.is_none());
        }
    }

    #[test]
    fn the_only_disk_is_meant_and_else_one_is_named() {
        let held = |name: &str| {
            let mut disk = disk(name, "pci0/1", Some("serial-1"), 8);
            let using = crate::disk::holders::Use::Mounted("/".into());
            let device = format!("/dev/{name}1");
            disk.facts.refusals.push(Refusal::Held(crate::disk::holders::Holder {
                device,
                layers: vec![],
                using,
            }));
            disk
        };
        let mut stick = disk("sdb", "usb1", None, 4);
        stick.facts.removable = true;
        let mut read_only = disk("sdc", "pci0/3", None, 4);
        read_only.facts.refusals.push(Refusal::ReadOnly);
        let other = disk("vdb", "pci0/2", None, 9);
        for (disks, named, stays, expected) in [
            (vec![held("vda")], None, false, "vda"),
            (vec![held("vda"), stick.clone(), read_only.clone()], None, false, "vda"),
            (vec![held("vda"), other.clone()], None, false, "vda vdb"),
            (vec![held("vda"), other.clone()], Some("/dev/vdb"), false, "vdb"),
            (vec![held("vda"), other.clone()], Some("vda"), false, "vda"),
            (vec![held("vda"), other.clone()], Some("main=/dev/vdb"), false, "vdb"),
            (vec![held("vda"), other.clone()], Some("main=/dev/vdz"), false, "has no disk main=/dev/vdz; it"),
            (vec![held("vda"), other.clone()], Some("serial-1"), false, "vda"),
            (vec![held("vda"), stick.clone()], Some("sdb"), false, "sdb"),
            (
                vec![held("vda"), other.clone()],
                Some("vdz"),
                false,
                "has no disk vdz; it has /dev/vda (8 GiB)",
            ),
            (vec![held("vda"), read_only.clone()], Some("sdc"), false, "it is read-only"),
            // What runs from memory stays, and with it what it uses.
            (vec![held("vda"), other.clone()], None, true, "vdb"),
            (vec![held("vda"), other.clone()], Some("vda"), true, "holds the root file system"),
            (vec![held("vda"), other.clone()], Some("serial-1"), true, "/dev/vda of web1 is no place"),
            (vec![held("vda")], None, true, "has no disk that"),
            (vec![], None, false, "has no disk that"),
        ] {
            let facts = TargetFacts { disks, ..facts() };
            let name = |disk: &TargetDisk| disk.name.clone();
            let said = match disk_of("web1", &facts, named, stays) {
                Ok(Choice::This(disk)) => name(disk),
                Ok(Choice::OneOf(disks)) => disks.into_iter().map(name).collect::<Vec<_>>().join(" "),
                Err(error) => error.to_string(),
            };
            let is_it = if expected.contains("  ") || expected.len() > 8 {
                said.contains(expected)
            } else {
                said == expected
            };
            assert!(is_it, "{said}: {expected}");
        }
        let disks = [held("vda"), other, stick];
        let facts = TargetFacts { disks: disks.to_vec(), ..facts() };
        let told = disks.each_ref().map(|disk| what_stays(&facts, disk));
        assert_eq!(told.each_ref().map(Option::is_some), [false, true, true]);
        assert!(
            told[1]
                .as_deref()
                .unwrap()
                .contains("stays on /dev/vda; see to it that the firmware starts /dev/vdb")
        );
    }
}
