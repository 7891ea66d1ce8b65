//! How a running NixOS machine gets another system.

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{Plan, Purpose, Step, Summary};
use crate::facts::{HostFacts, SystemFacts};
use crate::failure::refused;
use crate::size::Bytes;
use crate::store::path::StorePath;
use crate::system::deployment::Action;
use crate::system::inhibitors::{self, Inhibitors};

/// One thing to do on another machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "camelCase")]
pub enum RemoteStep {
    /// Send what is missing there.
    Send {
        paths: usize,
        /// Paths of the whole closure.
        of: usize,
        bytes: Bytes,
        /// How many are made from older ones that are there.
        deltas: usize,
    },
    /// Run the system, and look whether it does.
    Activate {
        system: StorePath,
    },
    /// Reach the machine by a new connection.
    Confirm {
        seconds: u32,
    },
    /// Make the system the profile's generation and what is booted.
    Keep {
        system: StorePath,
    },
    DryActivate {
        system: StorePath,
    },
    Reboot,
    /// Start the rescue in the place of all that runs, and reach it.
    Jump {
        kernel: Bytes,
        initrd: Bytes,
        modules: usize,
    },
    /// Send into the machine's memory what the steps on its disk need.
    SendTools {
        paths: usize,
        bytes: Bytes,
    },
    /// Put the SSH host keys of the machine into the root.
    HostKeys {
        which: HostKeys,
    },
}

/// Which host keys a machine has once it runs another system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HostKeys {
    /// Those that it has had.
    Keep,
    /// One that was made for it.
    New,
}

impl HostKeys {
    /// Returns the private keys that are in `/etc/ssh` then, where the machine has had keys with these public lines.
    pub fn files(self, had: &[String]) -> Vec<PathBuf> {
        let kinds = match self {
            HostKeys::New => vec!["ed25519"],
            HostKeys::Keep => had.iter().filter_map(|line| kind_of(line)).collect(),
        };
        kinds.iter().map(|kind| format!("/etc/ssh/ssh_host_{kind}_key").into()).collect()
    }
}

/// Returns what ssh-keygen calls the kind of a key in the names of files.
fn kind_of(line: &str) -> Option<&'static str> {
    match line.split(' ').next()? {
        "ssh-ed25519" => Some("ed25519"),
        "ssh-rsa" => Some("rsa"),
        name if name.starts_with("ecdsa-sha2-") => Some("ecdsa"),
        _ => None,
    }
}

impl fmt::Display for RemoteStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RemoteStep::Send { paths, of, bytes, deltas } => {
                write!(f, "Send {paths} of {of} store paths, {bytes}")?;
                match deltas {
                    0 => Ok(()),
                    deltas => write!(f, "; of {deltas} only what differs from older ones there"),
                }
            }
            RemoteStep::Activate { system } => write!(f, "Run {}, and look whether it does", system.name()),
            RemoteStep::Confirm { seconds } => {
                write!(f, "Reach the machine anew within {seconds} s, or it goes back by itself")
            }
            RemoteStep::Keep { system } => {
                write!(f, "Make {} the system profile and the default at boot", system.name())
            }
            RemoteStep::DryActivate { system } => {
                write!(f, "Tell what running {} would change", system.name())
            }
            RemoteStep::Jump { kernel, initrd, modules } => write!(
                f,
                "Jump into the rescue: the system's own kernel, {kernel}, and an initrd of {initrd} with {modules} modules"
            ),
            RemoteStep::SendTools { paths, bytes } => {
                write!(f, "Send {paths} store paths of tools into its memory, {bytes}")
            }
            RemoteStep::HostKeys { which: HostKeys::Keep } => {
                write!(f, "Keep the machine's SSH host keys")
            }
            RemoteStep::HostKeys { which: HostKeys::New } => {
                write!(f, "Give the machine a new SSH host key")
            }
            RemoteStep::Reboot => write!(f, "Restart the machine, and look what it runs then"),
        }
    }
}

/// What is asked for besides the system.
#[derive(Clone, Debug)]
pub struct RemoteWishes {
    /// What becomes of the system; none where it is only copied.
    pub action: Option<Action>,
    pub reboot: bool,
    pub rollback: bool,
    pub confirm_timeout: u32,
    /// Whether it may be another machine's system.
    pub force: bool,
}

/// What a machine lacks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Missing {
    pub paths: usize,
    /// Their NAR sizes.
    pub bytes: Bytes,
    /// The room that they take.
    pub space: Bytes,
    pub deltas: usize,
}

/// Refuses a machine that is not meant. Before anything is asked of it that takes long.
pub fn takes_system(
    host: &str,
    wishes: &RemoteWishes,
    facts: &HostFacts,
    wanted: &SystemFacts,
    inhibitors: &Inhibitors,
) -> Result<()> {
    let machine = wanted.platform.as_deref().and_then(|platform| platform.split('-').next());
    if let Some(machine) = machine.filter(|machine| *machine != facts.machine)
        && !wishes.force
    {
        return Err(refused(format!(
            "{host} is {} and the system is for {machine}; deploy one that was built for it, or say --force",
            facts.machine
        )));
    }
    if wishes.action.is_none() {
        return Ok(());
    }
    if !facts.nixos {
        return Err(refused(format!("{host} does not run NixOS; deploy to machines that do")));
    }
    if facts.hostname != wanted.hostname && !wishes.force {
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "no name".to_owned());
        return Err(refused(format!(
            "{host} runs the system of {} and this one is of {}; name the right machine, or say --force",
            name(&facts.hostname),
            name(&wanted.hostname)
        )));
    }
    // Which of both NixOS compares with depends on its version.
    let mut changes: Vec<String> =
        facts.inhibitors.iter().flat_map(|old| inhibitors::changes(old, inhibitors)).collect();
    changes.dedup();
    match wishes.action.is_some_and(Action::activates) && !changes.is_empty() {
        false => Ok(()),
        true => Err(refused(format!(
            "{host} cannot run {} without a restart, for critical components differ: {}; deploy it with --boot --reboot",
            wanted.system.name(),
            changes.join(", ")
        ))),
    }
}

/// Decides how a machine gets the wanted system. There are no steps if there is nothing to do.
pub fn deploy_via_ssh(
    host: &str,
    from: &std::path::Path,
    wanted: &StorePath,
    wishes: &RemoteWishes,
    facts: &HostFacts,
    missing: Missing,
    closure: Summary,
) -> Result<Plan> {
    if facts.free < missing.space {
        return Err(refused(format!(
            "{host} has {} free for its store and what is missing there needs {}; make room, for instance with \
             nix-collect-garbage -d",
            facts.free, missing.space
        )));
    }
    let steps = steps(wanted, wishes, facts, missing, closure.paths);
    let runs = |system: &Option<StorePath>| system.as_ref().map_or("nothing", StorePath::name).to_owned();
    let booted = facts.booted.as_ref().filter(|booted| Some(*booted) != facts.running.as_ref());
    let mut before = vec![format!("runs {}", runs(&facts.running))];
    before.extend(booted.map(|system| format!("was booted with {}", system.name())));
    before.extend(
        facts.profile.as_ref().map(|(number, system)| format!("generation {number}, {}", system.name())),
    );
    Ok(Plan {
        purpose: Purpose::Deploy,
        system: wanted.clone(),
        from: from.to_owned(),
        target: host.into(),
        closure,
        before,
        after: vec![match wishes.action {
            None | Some(Action::DryActivate) => "the same, with the new store paths".to_owned(),
            Some(Action::Switch) => format!("runs {}, also after a restart", wanted.name()),
            Some(Action::Test) => format!("runs {}, until it is restarted", wanted.name()),
            Some(Action::Boot) if wishes.reboot => format!("runs {}, restarted", wanted.name()),
            Some(Action::Boot) => format!("runs {} when it is restarted", wanted.name()),
        }],
        notes: match steps.is_empty() {
            true => vec![format!("{host} has this system already; there is nothing to do")],
            false => Vec::new(),
        },
        steps: steps.into_iter().map(Step::Remote).collect(),
    })
}

fn steps(
    wanted: &StorePath,
    wishes: &RemoteWishes,
    facts: &HostFacts,
    missing: Missing,
    of: usize,
) -> Vec<RemoteStep> {
    let mut steps = Vec::new();
    if missing.paths > 0 {
        let Missing { paths, bytes, deltas, .. } = missing;
        steps.push(RemoteStep::Send { paths, of, bytes, deltas });
    }
    let system = wanted.clone();
    let runs = facts.running.as_ref() == Some(wanted);
    let kept = facts.profile.as_ref().is_some_and(|(_, system)| system == wanted);
    match wishes.action {
        None => {}
        Some(Action::DryActivate) => steps.push(RemoteStep::DryActivate { system }),
        Some(Action::Test) if runs => {}
        Some(Action::Switch) if runs && kept => {}
        Some(Action::Boot) if kept && !wishes.reboot => {}
        Some(action) => {
            if action.activates() {
                steps.push(RemoteStep::Activate { system: system.clone() });
                if wishes.rollback {
                    steps.push(RemoteStep::Confirm { seconds: wishes.confirm_timeout });
                }
            }
            if action.keeps() {
                steps.push(RemoteStep::Keep { system });
            }
        }
    }
    if wishes.reboot && !(runs && facts.booted == facts.running && steps.is_empty()) {
        steps.push(RemoteStep::Reboot);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(letter: &str) -> StorePath {
        StorePath::from_base_name(&format!("{}-nixos-{letter}", letter.repeat(32))).unwrap()
    }

    fn facts() -> HostFacts {
        HostFacts {
            nixos: true,
            machine: "x86_64".into(),
            boot_id: "1".into(),
            running: Some(system("a")),
            booted: Some(system("a")),
            profile: Some((7, system("a"))),
            hostname: Some("web".into()),
            platform: Some("x86_64-linux".into()),
            free: Bytes::gib(1),
            valid: false,
            inhibitors: Default::default(),
        }
    }

    fn wanted(hostname: &str, platform: &str) -> SystemFacts {
        let (hostname, platform) = (Some(hostname.to_owned()), Some(platform.to_owned()));
        SystemFacts { system: system("b"), hostname, platform }
    }

    fn wishes(action: Option<Action>) -> RemoteWishes {
        RemoteWishes { action, reboot: false, rollback: true, confirm_timeout: 60, force: false }
    }

    fn told(wishes: &RemoteWishes, facts: &HostFacts, missing: Missing) -> Vec<String> {
        let closure = Summary { paths: 196, bytes: Bytes::gib(1), space: Bytes::gib(1) };
        let plan =
            deploy_via_ssh("web", "/".as_ref(), &system("b"), wishes, facts, missing, closure).unwrap();
        plan.steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_wish_has_its_steps() {
        let missing = Missing { paths: 12, bytes: Bytes::mib(34), space: Bytes::mib(40), deltas: 10 };
        let some = |action| wishes(Some(action));
        let send = "Send 12 of 196 store paths, 34 MiB; of 10 only what differs from older ones there";
        let run = "Run nixos-b, and look whether it does";
        let confirm = "Reach the machine anew within 60 s, or it goes back by itself";
        let keep = "Make nixos-b the system profile and the default at boot";
        let reboot = "Restart the machine, and look what it runs then";
        assert_eq!(told(&some(Action::Switch), &facts(), missing), [send, run, confirm, keep]);
        assert_eq!(told(&some(Action::Test), &facts(), missing), [send, run, confirm]);
        assert_eq!(told(&some(Action::Boot), &facts(), missing), [send, keep]);
        assert_eq!(told(&wishes(None), &facts(), missing), [send]);
        let dry = told(&some(Action::DryActivate), &facts(), Missing::default());
        assert_eq!(dry, ["Tell what running nixos-b would change"]);
        let rebooting = RemoteWishes { reboot: true, ..some(Action::Boot) };
        assert_eq!(told(&rebooting, &facts(), Missing::default()), [keep, reboot]);
        let bold = RemoteWishes { rollback: false, ..some(Action::Switch) };
        assert_eq!(told(&bold, &facts(), Missing::default()), [run, keep]);
        let runs = HostFacts { running: Some(system("b")), ..facts() };
        assert_eq!(told(&some(Action::Switch), &runs, Missing::default()), [run, confirm, keep]);
        assert_eq!(told(&some(Action::Test), &runs, Missing::default()), [""; 0]);
        let has = HostFacts { profile: Some((8, system("b"))), booted: Some(system("b")), ..runs };
        assert_eq!(told(&some(Action::Switch), &has, Missing::default()), [""; 0]);
        assert_eq!(told(&some(Action::Boot), &has, Missing::default()), [""; 0]);
        let full = HostFacts { free: Bytes::mib(39), ..facts() };
        let closure = Summary { paths: 1, bytes: Bytes(1), space: Bytes(1) };
        let plan = deploy_via_ssh("web", "/".as_ref(), &system("b"), &wishes(None), &full, missing, closure);
        assert!(plan.unwrap_err().to_string().contains("has 39 MiB free"));
    }

    #[test]
    fn a_machine_that_is_not_meant_is_refused_unless_forced() {
        let other = HostFacts { machine: "aarch64".into(), ..facts() };
        let foreign = HostFacts { nixos: false, ..facts() };
        let none = Inhibitors::new();
        for (facts, wanted, words) in [
            (&facts(), wanted("db", "x86_64-linux"), "runs the system of web and this one is of db"),
            (&other, wanted("web", "x86_64-linux"), "is aarch64 and the system is for x86_64"),
            (&foreign, wanted("web", "x86_64-linux"), "does not run NixOS"),
        ] {
            let switch = wishes(Some(Action::Switch));
            let error = takes_system("web", &switch, facts, &wanted, &none).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            let forced = takes_system("web", &RemoteWishes { force: true, ..switch }, facts, &wanted, &none);
            assert_eq!(forced.is_ok(), facts.nixos);
        }
        takes_system("web", &wishes(None), &foreign, &wanted("db", "x86_64-linux"), &none).unwrap();
        let web = wanted("web", "x86_64-linux");
        takes_system("web", &wishes(Some(Action::Switch)), &facts(), &web, &none).unwrap();
    }

    #[test]
    fn what_must_not_be_exchanged_under_a_running_system_is_refused_before_anything_is_sent() {
        let dbus = |which: &str| Inhibitors::from([("dbus-implementation".to_owned(), which.to_owned())]);
        let web = wanted("web", "x86_64-linux");
        for (running, booted, action, refused) in [
            ("dbus", "dbus", Some(Action::Switch), true),
            ("dbus", "dbus", Some(Action::Test), true),
            ("broker", "dbus", Some(Action::Switch), true),
            ("broker", "broker", Some(Action::Switch), false),
            ("dbus", "dbus", Some(Action::Boot), false),
            ("dbus", "dbus", Some(Action::DryActivate), false),
            ("dbus", "dbus", None, false),
        ] {
            let facts = HostFacts { inhibitors: [dbus(running), dbus(booted)], ..facts() };
            let taken = takes_system("web", &wishes(action), &facts, &web, &dbus("broker"));
            let words = "web cannot run nixos-b without a restart, for critical components differ: \
                         dbus-implementation (dbus, now broker); deploy it with --boot --reboot";
            assert_eq!(
                taken.err().map(|error| error.to_string()).as_deref(),
                refused.then_some(words),
                "{action:?}"
            );
        }
    }
}
