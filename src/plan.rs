//! What will be done, decided before anything is touched.
//!
//! A [`Plan`] is plain data: it prints for people, it is JSON for programs, and a dry run is the first
//! half of a real run. [`crate::run`] performs it.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::failure::refused;
use crate::size::Bytes;
use crate::store::path::StorePath;
use crate::system::claim::Directory;

mod archive;
mod deploy;
mod disk;
mod drivers;
pub mod network;
mod remote;
mod replace;
mod script;

pub use archive::{Archive, ArchiveStep, install_to_archive};
pub use deploy::{DeployStep, DeployWishes, deploy_to_dir, takes_deployments};
pub use disk::{DiskStep, DiskWishes, install_to_disk};
pub use drivers::{Also, Drivers, Undriven, drivers, undriven};
pub use network::Carried;
pub use remote::{HostKeys, Missing, RemoteStep, RemoteWishes, deploy_via_ssh, takes_system};
pub use replace::{
    Choice, Demand, Replacement, can_be_replaced, can_hold_tools, can_jump, disk_of, host_keys,
    replace_via_ssh, what_stays,
};
pub use script::{Script, script};

/// The steps of one command, in order, and what a person should know before they are taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    pub purpose: Purpose,
    pub system: StorePath,
    /// The root the system is read from.
    pub from: PathBuf,
    pub target: PathBuf,
    pub closure: Summary,
    /// What the target is now, line by line.
    pub before: Vec<String>,
    /// What the target will be, line by line.
    pub after: Vec<String>,
    pub notes: Vec<String>,
    pub steps: Vec<Step>,
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Purpose {
    /// The target becomes a root that holds the system.
    Install,
    /// The target, which is such a root, gets the system as a new generation.
    Deploy,
    /// The target is a file, or stdout, that gets such a root as an archive.
    Archive,
}

/// How much a closure is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub paths: usize,
    /// The sum of the NAR sizes.
    pub bytes: Bytes,
    /// What it takes in a file system.
    pub space: Bytes,
}

/// One thing to do. [`fmt::Display`] says it in the imperative.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "camelCase")]
pub enum Step {
    /// Mark the directory as ours and unfinished.
    Claim {
        dir: PathBuf,
    },
    /// Create the directories that a first boot needs.
    Prepare,
    Copy {
        paths: usize,
        bytes: Bytes,
    },
    Register {
        paths: usize,
    },
    ExtraFiles {
        from: PathBuf,
    },
    Profile {
        system: StorePath,
    },
    /// Mark the directory as complete.
    Finish {
        dir: PathBuf,
    },
    #[serde(untagged)]
    Disk(DiskStep),
    #[serde(untagged)]
    Deploy(DeployStep),
    #[serde(untagged)]
    Archive(ArchiveStep),
    #[serde(untagged)]
    Remote(RemoteStep),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Claim { dir } => write!(f, "Mark {} as an unfinished installation", dir.display()),
            Step::Disk(step) => step.fmt(f),
            Step::Deploy(step) => step.fmt(f),
            Step::Remote(step) => step.fmt(f),
            Step::Archive(step) => step.fmt(f),
            Step::Prepare => f.write_str("Create the directories of a root"),
            Step::Copy { paths, bytes } => write!(f, "Copy and check {paths} store paths, {bytes}"),
            Step::Register { paths } => write!(f, "Register {paths} store paths in the Nix database"),
            Step::ExtraFiles { from } => write!(f, "Copy the extra files of {}", from.display()),
            Step::Profile { system } => write!(f, "Make {} the system profile", system.name()),
            Step::Finish { dir } => write!(f, "Mark {} as complete", dir.display()),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, target) = (self.system.name(), self.target.display());
        match self.purpose {
            Purpose::Install => writeln!(f, "Install {name} onto {target}\n")?,
            Purpose::Deploy => writeln!(f, "Deploy {name} to {target}\n")?,
            Purpose::Archive => writeln!(f, "Archive {name} as {target}\n")?,
        }
        writeln!(f, "  system  {}", self.system)?;
        writeln!(f, "  from    {}", self.from.display())?;
        writeln!(f, "  closure {} store paths, {}", self.closure.paths, self.closure.bytes)?;
        for (title, lines) in [("now", &self.before), ("then", &self.after)] {
            for (number, line) in lines.iter().enumerate() {
                let (gap, title) = if number == 0 { ("\n", title) } else { ("", "") };
                writeln!(f, "{gap}  {title:8}{line}")?;
            }
        }
        writeln!(f)?;
        for (number, step) in self.steps.iter().enumerate() {
            writeln!(f, "  {:2}. {step}", number + 1)?;
        }
        if !self.notes.is_empty() {
            writeln!(f)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  note: {note}"))
    }
}

impl Plan {
    /// Lays these extra files over the root, in the place of those that it may have had.
    pub fn bring(&mut self, files: &Path) {
        self.steps.retain(|step| !matches!(step, Step::ExtraFiles { .. }));
        let profile = self.steps.iter().position(|step| matches!(step, Step::Profile { .. }));
        let at = profile.unwrap_or(self.steps.len());
        self.steps.insert(at, Step::ExtraFiles { from: files.to_owned() });
    }
}

/// What is asked for, whatever the target is.
#[derive(Clone, Debug)]
pub struct Wishes {
    pub system: StorePath,
    pub from: PathBuf,
    pub extra_files: Option<PathBuf>,
}

/// Decides how a system gets into a directory with `free` bytes left for it.
pub fn install_to_dir(
    wishes: &Wishes,
    dir: &Path,
    state: &Directory,
    free: Bytes,
    closure: Summary,
) -> Result<Plan> {
    let shown = dir.display();
    let before = match state {
        Directory::Foreign { entry } => {
            return Err(refused(format!(
                "{shown} holds {entry:?}, which is not ours; choose an empty directory or a new one"
            )));
        }
        Directory::Absent => format!("{shown} does not exist"),
        Directory::Empty => format!("{shown} is empty"),
        Directory::Interrupted { system } => {
            format!("an unfinished installation of {}; what is there is checked and kept", system.name())
        }
        Directory::Complete { system } => format!("an installation of {}", system.name()),
    };
    if matches!(state, Directory::Absent | Directory::Empty) && free < closure.space {
        return Err(refused(format!(
            "{shown} has {free} free and the system needs {}; make room or choose another directory",
            closure.space
        )));
    }
    let mut steps = vec![Step::Claim { dir: dir.to_owned() }];
    steps.extend(fill_root(wishes, closure));
    steps.push(Step::Finish { dir: dir.to_owned() });
    Ok(Plan {
        purpose: Purpose::Install,
        system: wishes.system.clone(),
        from: wishes.from.clone(),
        target: dir.to_owned(),
        closure,
        before: vec![before],
        after: vec![format!(
            "a root that holds {}; nixos-install-via enter {shown} runs it",
            wishes.system.name()
        )],
        notes: Vec::new(),
        steps,
    })
}

/// Returns the steps that turn an empty root into one that holds the system.
fn fill_root(wishes: &Wishes, closure: Summary) -> Vec<Step> {
    let mut steps = vec![
        Step::Prepare,
        Step::Copy { paths: closure.paths, bytes: closure.bytes },
        Step::Register { paths: closure.paths },
    ];
    steps.extend(wishes.extra_files.iter().map(|from| Step::ExtraFiles { from: from.clone() }));
    steps.push(Step::Profile { system: wishes.system.clone() });
    steps
}
