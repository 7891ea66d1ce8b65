//! How a directory that holds a system gets another one, as the next generation of its profile.

use std::fmt;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{Plan, Purpose, Step, Summary, Wishes};
use crate::facts::{DirFacts, SystemFacts};
use crate::failure::refused;
use crate::size::Bytes;
use crate::store::path::StorePath;
use crate::system::claim::Directory;

/// One thing to do in a root that holds a system already.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "camelCase")]
pub enum DeployStep {
    CopyMissing {
        paths: usize,
        /// Paths of the whole closure.
        of: usize,
        bytes: Bytes,
    },
    RegisterMissing {
        paths: usize,
    },
    /// Switch the profile.
    Generation {
        system: StorePath,
        number: u64,
    },
    /// Lead `sbin/init` to the same part of the new system.
    Init {
        system: StorePath,
        part: String,
    },
    /// Remove generations, and what nothing leads to any more.
    Clean {
        generations: Vec<u64>,
        paths: usize,
        bytes: Bytes,
    },
}

impl fmt::Display for DeployStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeployStep::CopyMissing { paths, of, bytes } => {
                write!(f, "Copy and check {paths} of {of} store paths, {bytes}")
            }
            DeployStep::RegisterMissing { paths } => {
                write!(f, "Register {} in the Nix database", count(*paths, "store path"))
            }
            DeployStep::Generation { system, number } => {
                write!(f, "Make {} generation {number} of the system profile", system.name())
            }
            DeployStep::Init { system, part } => write!(f, "Lead sbin/init to {part} of {}", system.name()),
            DeployStep::Clean { generations, paths, bytes } => {
                f.write_str("Remove ")?;
                if !generations.is_empty() {
                    write!(f, "{} and ", count(generations.len(), "generation"))?;
                }
                write!(f, "{}, {bytes}", count(*paths, "store path"))
            }
        }
    }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// What is asked for besides the system.
#[derive(Clone, Copy, Debug)]
pub struct DeployWishes {
    /// Whether it may be another machine's system.
    pub force: bool,
}

/// Refuses a directory that `install-to-dir` has not completed.
pub fn takes_deployments(dir: &Path, state: &Directory) -> Result<()> {
    let shown = dir.display();
    Err(refused(match state {
        Directory::Complete { .. } => return Ok(()),
        Directory::Absent => {
            format!("{shown} does not exist; install-to-dir makes it and puts a system into it")
        }
        Directory::Empty => format!("{shown} is empty; install-to-dir puts a system into it"),
        Directory::Interrupted { .. } => {
            format!("{shown} holds an unfinished installation; run install-to-dir again to complete it")
        }
        Directory::Foreign { entry } => {
            format!("{shown} holds {entry:?} and was not made by install-to-dir; choose a directory that was")
        }
    }))
}

/// Decides how the wanted system gets into the directory. There are no steps if there is nothing to do.
pub fn deploy_to_dir(
    wishes: &Wishes,
    deploy: DeployWishes,
    dir: &Path,
    facts: &DirFacts,
    closure: Summary,
) -> Result<Plan> {
    if !deploy.force {
        same_machine(dir, &facts.current, &facts.wanted)?;
    }
    if facts.free < facts.missing_space {
        return Err(refused(format!(
            "{} has {} free and what is missing there needs {}; make room, or remove older generations with --keep",
            dir.display(),
            facts.free,
            facts.missing_space
        )));
    }
    let mut steps = Vec::new();
    if facts.missing > 0 {
        let (paths, bytes) = (facts.missing, facts.missing_bytes);
        steps.push(DeployStep::CopyMissing { paths, of: closure.paths, bytes });
        steps.push(DeployStep::RegisterMissing { paths });
    }
    let system = &wishes.system;
    if facts.current.system != *system {
        steps.push(DeployStep::Generation { system: system.clone(), number: facts.generation });
    }
    steps.extend(
        facts.init.iter().map(|part| DeployStep::Init { system: system.clone(), part: part.clone() }),
    );
    if !facts.old.is_empty() || facts.garbage > 0 {
        steps.push(DeployStep::Clean {
            generations: facts.old.clone(),
            paths: facts.garbage,
            bytes: facts.garbage_bytes,
        });
    }
    let mut steps: Vec<Step> = steps.into_iter().map(Step::Deploy).collect();
    if !steps.is_empty() {
        steps.push(Step::Finish { dir: dir.to_owned() });
    }
    Ok(Plan {
        purpose: Purpose::Deploy,
        system: system.clone(),
        from: wishes.from.clone(),
        target: dir.to_owned(),
        closure,
        before: vec![format!("{}", facts.current.system.name())],
        after: vec![format!(
            "generation {}, {}; nixos-install-via enter {} runs it",
            facts.generation,
            system.name(),
            dir.display()
        )],
        notes: match steps.is_empty() {
            true => vec![format!("{} has this system already; there is nothing to do", dir.display())],
            false => Vec::new(),
        },
        steps,
    })
}

fn same_machine(dir: &Path, current: &SystemFacts, wanted: &SystemFacts) -> Result<()> {
    let name = |value: &Option<String>| value.clone().unwrap_or_else(|| "unnamed".to_owned());
    let differ = |what: &str, current: &Option<String>, wanted: &Option<String>| {
        refused(format!(
            "{} holds the system of {what} {} and this one is of {what} {}; choose another directory, \
             or say --force",
            dir.display(),
            name(current),
            name(wanted)
        ))
    };
    if current.hostname != wanted.hostname {
        return Err(differ("host", &current.hostname, &wanted.hostname));
    }
    if current.platform != wanted.platform {
        return Err(differ("platform", &current.platform, &wanted.platform));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(letter: &str, hostname: &str, platform: &str) -> SystemFacts {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        SystemFacts {
            system: StorePath::from_base_name(&format!("{}-nixos-{letter}", letter.repeat(32))).unwrap(),
            hostname: given(hostname),
            platform: given(platform),
        }
    }

    fn facts(current: SystemFacts, wanted: SystemFacts) -> DirFacts {
        DirFacts {
            current,
            wanted,
            missing: 12,
            missing_bytes: Bytes::mib(34),
            missing_space: Bytes::mib(40),
            free: Bytes::gib(1),
            generation: 3,
            old: vec![1, 2],
            garbage: 40,
            garbage_bytes: Bytes::mib(120),
            init: Some("init".into()),
        }
    }

    fn decide(facts: &DirFacts, force: bool) -> Result<Plan> {
        let wishes = Wishes { system: facts.wanted.system.clone(), from: "/".into(), extra_files: None };
        let closure = Summary { paths: 196, bytes: Bytes::gib(1), space: facts.missing_space };
        deploy_to_dir(&wishes, DeployWishes { force }, Path::new("/backup"), facts, closure)
    }

    fn steps(plan: &Plan) -> Vec<String> {
        plan.steps.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_what_is_missing_is_done() {
        let (a, b) = (system("a", "box", "x86_64-linux"), system("b", "box", "x86_64-linux"));
        let whole = facts(a.clone(), b.clone());
        assert_eq!(
            steps(&decide(&whole, false).unwrap()),
            [
                "Copy and check 12 of 196 store paths, 34 MiB",
                "Register 12 store paths in the Nix database",
                "Make nixos-b generation 3 of the system profile",
                "Lead sbin/init to init of nixos-b",
                "Remove 2 generations and 40 store paths, 120 MiB",
                "Mark /backup as complete",
            ]
        );
        let rollback = DirFacts { missing: 0, old: vec![], garbage: 0, init: None, ..whole.clone() };
        assert_eq!(
            steps(&decide(&rollback, false).unwrap()),
            ["Make nixos-b generation 3 of the system profile", "Mark /backup as complete"]
        );
        let same = DirFacts { current: b, ..rollback };
        assert_eq!(steps(&decide(&same, false).unwrap()), [""; 0]);
        let only_garbage = DirFacts { garbage: 1, ..same };
        assert_eq!(
            steps(&decide(&only_garbage, false).unwrap()),
            ["Remove 1 store path, 120 MiB", "Mark /backup as complete"]
        );
    }

    #[test]
    fn another_machine_s_system_is_refused_unless_forced() {
        let here = system("a", "box", "x86_64-linux");
        for (wanted, words) in [
            (system("b", "other", "x86_64-linux"), "host box and this one is of host other"),
            (system("b", "", "x86_64-linux"), "host box and this one is of host unnamed"),
            (
                system("b", "box", "aarch64-linux"),
                "platform x86_64-linux and this one is of platform aarch64-linux",
            ),
        ] {
            let facts = facts(here.clone(), wanted);
            let error = decide(&facts, false).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            decide(&facts, true).unwrap();
        }
    }

    #[test]
    fn what_does_not_fit_is_told_with_both_numbers() {
        let whole = facts(system("a", "", ""), system("b", "", ""));
        let tight = DirFacts { free: Bytes::mib(39), ..whole };
        let error = decide(&tight, true).unwrap_err().to_string();
        assert!(error.contains("39 MiB free") && error.contains("needs 40 MiB"), "{error}");
    }

    #[test]
    fn a_directory_that_is_not_complete_is_refused_with_what_to_do() {
        let system = system("a", "", "").system;
        for (state, words) in [
            (Directory::Absent, "install-to-dir makes it"),
            (Directory::Empty, "install-to-dir puts a system"),
            (Directory::Interrupted { system: system.clone() }, "run install-to-dir again"),
            (Directory::Foreign { entry: "thesis".into() }, "\"thesis\" and was not made"),
        ] {
            let error = takes_deployments(Path::new("/x"), &state).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        takes_deployments(Path::new("/x"), &Directory::Complete { system }).unwrap();
    }
}
