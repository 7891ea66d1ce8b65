//! What is remembered of an installation until it is complete, so that it can go on after anything.
//!
//! In `$XDG_STATE_HOME/nixos-install-via/HOST`, or below `~/.local/state`: the plan, who the machine is, and the
//! key that its rescue lets in. It goes when the machine runs the system.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::look::Decided;
use crate::disk::layout::DiskLayout;
use crate::facts::target::{TargetDisk, TargetFacts};
use crate::failure::{refused, usage};
use crate::plan::{DiskStep, HostKeys, Plan, RemoteStep, Step};
use crate::ssh::{Address, KeyPair};
use crate::store::path::StorePath;
use crate::sys::file::Staged;
use crate::sys::secret::Secret;

const STATE: &str = "state.json";
const KEY: &str = "key";
const KNOWN_HOSTS: &str = "known_hosts";
/// The name that the machine's host keys go by in our own list.
pub const ALIAS: &str = "nixos-install-via";

/// One installation that has begun.
pub struct State {
    dir: PathBuf,
    kept: Kept,
    pub plan: Plan,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    version: u32,
    plan: Plan,
    disk: TargetDisk,
    /// Whether the plan names the disk as the rescue does.
    found: bool,
    /// Whether the system is on the disk, and only the restart is left.
    #[serde(default)]
    installed: bool,
    tools: Vec<StorePath>,
    /// The new host key and its public line.
    new_host_key: Option<(String, String)>,
    /// The public lines of host keys among the extra files.
    #[serde(default)]
    brought: Vec<String>,
    public_key: String,
}

const VERSION: u32 = 1;

impl State {
    /// Makes the keys of an installation, and remembers what was decided.
    pub fn begin(host: &Address, decided: &Decided, facts: &TargetFacts) -> Result<State> {
        let dir = directory(host)?;
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", dir.display()));
            }
            _ => (),
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("making {}", dir.display()))?;
        let key = KeyPair::generate("nixos-install-via")?;
        write(&dir.join(KEY), key.private.bytes())?;
        let new_host_key = match decided.host_keys {
            None | Some(HostKeys::Keep) => None,
            Some(HostKeys::New) => {
                let key = KeyPair::generate(&format!("root@{}", host.host))?;
                Some((String::from_utf8_lossy(key.private.bytes()).into_owned(), key.public))
            }
        };
        let known: String = facts.host_keys.iter().map(|line| format!("{ALIAS} {line}\n")).collect();
        write(&dir.join(KNOWN_HOSTS), known.as_bytes())?;
        let kept = Kept {
            version: VERSION,
            plan: decided.plan.clone(),
            disk: decided.disk.clone(),
            found: !decided.jumps,
            installed: false,
            tools: decided.tools.iter().map(|info| info.path.clone()).collect(),
            new_host_key,
            brought: decided.brought.clone(),
            public_key: key.public,
        };
        let state = State { dir, plan: kept.plan.clone(), kept };
        state.save()?;
        Ok(state)
    }

    /// Opens what an earlier run has begun.
    pub fn open(host: &Address) -> Result<State> {
        let dir = directory(host)?;
        let kept = read(host, &dir)?;
        Ok(State { dir, plan: kept.plan.clone(), kept })
    }

    fn save(&self) -> Result<()> {
        let text = serde_json::to_vec(&self.kept).context("writing down what was decided")?;
        write(&self.dir.join(STATE), &text)
    }

    /// Names the disk as the rescue does, once.
    pub fn find_disk(&mut self, facts: &TargetFacts) -> Result<()> {
        if self.kept.found {
            return Ok(());
        }
        let found = self.kept.disk.among(&facts.disks).cloned();
        let Some(disk) = found else {
            let seen = facts.disks.iter().map(|disk| format!("/dev/{} ({})", disk.name, disk.facts.size));
            return Err(refused(format!(
                "the rescue does not find /dev/{} ({}) again among its disks: {}; nothing was changed, and the machine goes back by itself",
                self.kept.disk.name,
                self.kept.disk.facts.size,
                seen.collect::<Vec<_>>().join(", ")
            )));
        };
        rename_disk(&mut self.kept.plan, Path::new(&format!("/dev/{}", disk.name)));
        self.kept.found = true;
        self.plan = self.kept.plan.clone();
        self.save()
    }

    /// Takes other extra files than were named at first, with the public lines of the host keys among them.
    pub fn bring(&mut self, from: &Path, brought: Vec<String>) -> Result<()> {
        if self.kept.installed {
            return Err(usage(
                "the system is on the disk already; leave out --extra-files and copy them there",
            ));
        }
        self.kept.plan.bring(from);
        self.kept.brought = brought;
        self.plan = self.kept.plan.clone();
        self.save()
    }

    /// Remembers that the system is on the disk.
    pub fn set_installed(&mut self) -> Result<()> {
        self.kept.installed = true;
        self.save()
    }

    pub fn is_installed(&self) -> bool {
        self.kept.installed
    }

    /// Tells whether the machine has jumped into the rescue, or was to.
    pub fn jumps(&self) -> bool {
        jumps(&self.plan)
    }

    /// Returns the layout that the plan makes.
    pub fn layout(&self) -> Result<DiskLayout> {
        let layout = self.plan.steps.iter().find_map(|step| match step {
            Step::Disk(DiskStep::Mount { layout, .. }) => Some(layout.clone()),
            _ => None,
        });
        layout.context("finding the layout in the plan")
    }

    pub fn tool_paths(&self) -> &[StorePath] {
        &self.kept.tools
    }

    /// Returns the private key that the rescue lets in, and its public line.
    pub fn key(&self) -> (PathBuf, &str) {
        (self.dir.join(KEY), &self.kept.public_key)
    }

    /// Returns the list of the machine's host keys, under [`ALIAS`].
    pub fn known_hosts(&self) -> PathBuf {
        self.dir.join(KNOWN_HOSTS)
    }

    /// Returns the host key that the new system gets, and its public line.
    pub fn new_host_key(&self) -> Option<(Secret, String)> {
        let (private, public) = self.kept.new_host_key.as_ref()?;
        Some((Secret::new(private.as_bytes().to_vec()), public.clone()))
    }

    /// Tells whether the new system has other host keys than the machine had before.
    pub fn has_other_host_keys(&self) -> bool {
        self.kept.new_host_key.is_some() || !self.kept.brought.is_empty()
    }

    /// Knows the machine by its new keys alone.
    pub fn expect_other_host_keys(&self) -> Result<()> {
        let new = self.kept.new_host_key.iter().map(|(_, public)| public);
        let lines: String =
            new.chain(&self.kept.brought).map(|public| format!("{ALIAS} {public}\n")).collect();
        write(&self.known_hosts(), lines.as_bytes())
    }

    /// Forgets it: the machine runs the system.
    pub fn finish(self) -> Result<()> {
        fs::remove_dir_all(&self.dir).with_context(|| format!("removing {}", self.dir.display()))
    }
}

/// Returns the system that an earlier run has begun to install.
pub fn system(host: &Address) -> Result<StorePath> {
    Ok(read(host, &directory(host)?)?.plan.system)
}

/// Tells whether an earlier run has begun something that is not complete, and whose rescue may wait.
pub fn has_rescue(host: &Address) -> bool {
    directory(host).and_then(|dir| read(host, &dir)).is_ok_and(|kept| jumps(&kept.plan))
}

fn jumps(plan: &Plan) -> bool {
    plan.steps.iter().any(|step| matches!(step, Step::Remote(RemoteStep::Jump { .. })))
}

fn read(host: &Address, dir: &Path) -> Result<Kept> {
    let path = dir.join(STATE);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(usage(format!("nothing was begun on {host}; leave out --resume")));
        }
        text => text.with_context(|| format!("reading {}", path.display()))?,
    };
    let kept: Kept = serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
    match kept.version {
        VERSION => Ok(kept),
        _ => Err(refused(format!("{} is another version's; go on with that one", path.display()))),
    }
}

fn directory(host: &Address) -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
    let base = base.context("finding a place for what is to be remembered; set HOME or XDG_STATE_HOME")?;
    let user = host.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
    let port = host.port.map(|port| format!(":{port}")).unwrap_or_default();
    let name = format!("{user}{}{port}", host.host);
    // A slash is in no address.
    if [".", ".."].contains(&name.as_str()) {
        return Err(usage(format!("{name} names no host; write [USER@]HOST")));
    }
    Ok(base.join("nixos-install-via").join(name))
}

fn write(path: &Path, contents: &[u8]) -> Result<()> {
    Staged::new(path, contents, 0o600)?.publish()
}

/// Lets a plan be for a disk that is called otherwise.
fn rename_disk(plan: &mut Plan, name: &Path) {
    for step in &mut plan.steps {
        if let Step::Disk(
            DiskStep::Partition { disk, .. } | DiskStep::WriteTable { disk } | DiskStep::Release { disk },
        ) = step
        {
            name.clone_into(disk);
        }
    }
}
