//! What is decided before anything is changed: which disk, by which drivers, over which network.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Story;
use super::jump::command_line;
use super::kernel::KernelFiles;
use crate::cli::{HostKeysWish, Phase};
use crate::commands::disk_wishes::{self, Place};
use crate::disk::layout::DiskLayout;
use crate::facts::target::{RunsFrom, TargetDisk, TargetFacts};
use crate::failure::{refused, usage};
use crate::plan::{
    self, Also, Carried, Choice, Demand, Drivers, HostKeys, Plan, RemoteStep, Replacement, Summary, Undriven,
    Wishes,
};
use crate::size::Bytes;
use crate::ssh;
use crate::store::PathInfo;
use crate::store::copy;
use crate::store::path::StorePath;
use crate::sys::terminal;
use crate::system::etc::Etc;
use crate::system::host_keys::{self, HostKey};

// What may help and harms nobody where it is missing: partition tables and names are read by the kernel itself.
const USEFUL: [&str; 6] = ["nls_cp437", "nls_iso8859_1", "nls_ascii", "nls_utf8", "loop", "efivarfs"];

const SSH: u16 = 22;

const NEW_HOST_KEY: &str = "a system in memory may have the host keys of many machines, so the system gets a new one, which is printed when it is on the disk";

const ETC_IN_MEMORY: &str = "the system keeps /etc/ssh in memory";
const FIXED_ETC: &str = "the system has an /etc that cannot be written to";

/// All that is decided, and what it was decided by.
pub struct Decided {
    pub plan: Plan,
    pub layout: DiskLayout,
    pub disk: TargetDisk,
    /// Whether the machine has to jump, for it runs from its disk.
    pub jumps: bool,
    pub carried: Carried,
    /// Where its SSH server listens, and the rescue's will.
    pub port: u16,
    /// What the rescue's kernel is told.
    pub command_line: String,
    /// The modules of the rescue with their names, in the order in which they are loaded.
    pub modules: Vec<(String, Vec<u8>)>,
    /// What the steps on the disk need.
    pub tools: Vec<PathInfo>,
    /// Which host keys the system is given.
    pub host_keys: Option<HostKeys>,
    /// The public lines of those that are among the extra files.
    pub brought: Vec<String>,
    pub undriven: Vec<Undriven>,
    host: String,
}

impl Story<'_> {
    /// Decides all of it; what has no driver is told by [`Decided::check`].
    pub(super) fn decide(&self, facts: &TargetFacts) -> Result<Decided> {
        let (args, from, host) = (self.args, &self.args.common.from, self.name());
        if !facts.hardware.is_sane() {
            return Err(refused(format!("{host} tells of hardware that no machine has; do not trust it")));
        }
        let wishes = Wishes {
            system: self.system.clone(),
            from: from.clone(),
            extra_files: args.extra.extra_files.clone(),
        };
        let mut look = disk_wishes::Look::new(&wishes, args.layout.as_deref())?;
        plan::can_be_replaced(&host, facts, &self.prepared.facts, look.loader.kind)?;
        let wish = args.host_keys.map(|wish| match wish {
            HostKeysWish::Keep => HostKeys::Keep,
            HostKeysWish::New => HostKeys::New,
        });
        let brought = brought(args.extra.extra_files.as_deref())?;
        let host_keys = plan::host_keys(&host, facts, wish, !brought.is_empty())?;
        look.host_keys = host_keys.map(|keys| keys.files(&facts.host_keys)).unwrap_or_default();
        let jumps = facts.runs_from == RunsFrom::Disk;
        let disk = self.disk(facts, !jumps)?;
        let wanted = look.wishes(&disk.facts, &Place::Elsewhere { closure: &self.prepared.closure })?;
        if let Some((name, _)) = args.disk.as_deref().and_then(|disk| disk.split_once("=/dev/"))
            && name != wanted.name
        {
            return Err(usage(format!("the layout has no disk {name}; its disk is called {}", wanted.name)));
        }
        let tools = self.tools_of(wanted.tools.values())?;
        let paths = &self.prepared.closure.paths;
        let summary = Summary {
            paths: paths.len(),
            bytes: self.prepared.closure.size(),
            space: copy::space_needed(paths, from)?,
        };
        let local = plan::install_to_disk(&wishes, &wanted, &disk.let_go(), summary)?;
        let mut notes = Vec::new();
        let mut rescue = Rescue::default();
        let tools_size = tools.iter().map(|info| info.nar_size).sum();
        if jumps {
            notes.extend(plan::what_stays(facts, &disk));
            rescue = self.rescue(facts, &disk, &wanted.layout)?;
            notes.extend(rescue.carried.notes.iter().cloned());
            plan::can_jump(&host, facts, Demand { initrd: rescue.initrd, tools: tools_size })?;
        } else {
            plan::can_hold_tools(&host, facts, tools_size)?;
        }
        if wish != host_keys && host_keys == Some(HostKeys::New) {
            notes.push(NEW_HOST_KEY.to_owned());
        }
        let is_fixed = look.etc == Etc::Immutable && !wanted.host_keys.is_empty();
        if is_fixed || wanted.loses_host_keys() {
            let why = if is_fixed { FIXED_ETC } else { ETC_IN_MEMORY };
            match wish {
                Some(_) => {
                    return Err(refused(format!(
                        "{why}, so it cannot be given host keys; leave out --host-keys"
                    )));
                }
                None => notes.push(format!("{why}, so it is given no host keys and has its own")),
            }
        }
        let replacement = Replacement {
            host: &host,
            jump: jumps.then_some(RemoteStep::Jump {
                kernel: rescue.kernel_size,
                initrd: rescue.initrd,
                modules: rescue.modules.len(),
            }),
            tools: RemoteStep::SendTools { paths: tools.len(), bytes: tools_size },
            host_keys,
            reboot: self.has(Phase::Reboot),
            notes,
        };
        Ok(Decided {
            plan: plan::replace_via_ssh(&replacement, facts, local),
            layout: wanted.layout,
            disk,
            jumps,
            carried: rescue.carried,
            port: facts.reached.map_or(SSH, |(_, port)| port),
            command_line: command_line(&facts.kernel_parameters, &look.kernel_params()?),
            modules: rescue.modules,
            tools,
            host_keys,
            brought,
            undriven: rescue.undriven,
            host,
        })
    }

    /// Finds the disk that is meant, and asks where there are several.
    fn disk(&self, facts: &TargetFacts, stays: bool) -> Result<TargetDisk> {
        let named = self.args.disk.as_deref();
        let many = match plan::disk_of(&self.name(), facts, named, stays)? {
            Choice::This(disk) => return Ok(disk.clone()),
            Choice::OneOf(disks) => disks,
        };
        let list: Vec<String> = many
            .iter()
            .map(|disk| {
                let words = [disk.facts.model.clone(), disk.facts.serial.clone()];
                let words: Vec<String> = words.into_iter().flatten().collect();
                format!(
                    "/dev/{} ({})",
                    disk.name,
                    [vec![disk.facts.size.to_string()], words].concat().join(", ")
                )
            })
            .collect();
        let list = list.join("\n  ");
        if !terminal::is_there() || self.args.yes.yes || self.args.common.only_plan().is_some() {
            return Err(refused(format!(
                "{} has several disks; name one of them with --disk:\n  {list}",
                self.name()
            )));
        }
        let answer = terminal::ask(&format!("{} has several disks:\n  {list}\nWhich one?", self.name()))?;
        match plan::disk_of(&self.name(), facts, Some(&answer), stays)? {
            Choice::This(disk) => Ok(disk.clone()),
            Choice::OneOf(_) => unreachable!("a name is of one disk"),
        }
    }

    /// Returns the store objects that hold these programs, and all they refer to.
    fn tools_of<'p>(&self, programs: impl Iterator<Item = &'p PathBuf>) -> Result<Vec<PathInfo>> {
        let objects: Vec<_> = programs.filter_map(|path| StorePath::containing(path)).collect();
        Ok(self.prepared.closure.part(&objects))
    }

    /// Finds what the rescue is made of.
    fn rescue(&self, facts: &TargetFacts, disk: &TargetDisk, layout: &DiskLayout) -> Result<Rescue> {
        let (from, host) = (&self.args.common.from, self.name());
        let (address, _) = facts.reached.context("asking how the machine is reached")?;
        if facts.host_keys.is_empty() {
            return Err(refused(format!(
                "{host} has no host keys in /etc/ssh by which its rescue could be known; make them there with ssh-keygen -A"
            )));
        }
        let carried = plan::network::carried(&facts.network, Some(address))
            .map_err(|error| refused(format!("{host} could not be reached in the rescue: {error}")))?;
        let kernel = KernelFiles::of(from, &self.system)?;
        let mut required: Vec<&str> = layout.mounts().iter().map(|mount| mount.format.name()).collect();
        required.extend(carried.modules());
        if layout.partitions.iter().any(|partition| partition.luks().is_some()) {
            required.push("dm_crypt");
        }
        required.sort_unstable();
        required.dedup();
        let cards = carried.cards();
        let cards: Vec<&str> = cards.iter().map(String::as_str).collect();
        let also = Also { required: &required, useful: &USEFUL };
        let Drivers { load, undriven } =
            plan::drivers(&facts.hardware, &kernel.tree()?, &disk.name, &cards, also)
                .context("choosing the modules of the rescue")?;
        let modules = load.iter().map(|path| kernel.module(path)).collect::<Result<Vec<_>>>()?;
        let modules_size: Bytes = modules.iter().map(|(_, contents)| Bytes(contents.len() as u64)).sum();
        Ok(Rescue {
            carried,
            initrd: Bytes(self.prepared.far.size) + modules_size,
            modules,
            kernel_size: kernel.size()?,
            undriven,
        })
    }
}

#[derive(Default)]
struct Rescue {
    carried: Carried,
    modules: Vec<(String, Vec<u8>)>,
    kernel_size: Bytes,
    initrd: Bytes,
    undriven: Vec<Undriven>,
}

/// Returns the public lines of the host keys among some extra files.
pub(super) fn brought(extra_files: Option<&Path>) -> Result<Vec<String>> {
    let keys = extra_files.map(host_keys::read).transpose()?.unwrap_or_default();
    let line =
        |key: HostKey| key.public.or_else(|| ssh::public_of(str::from_utf8(key.private.bytes()).ok()?));
    Ok(keys.into_iter().filter_map(line).collect())
}

impl Decided {
    /// Refuses a machine that the system has no drivers for.
    pub fn check(&self) -> Result<()> {
        if self.undriven.is_empty() {
            return Ok(());
        }
        let words: Vec<String> = self.undriven.iter().map(ToString::to_string).collect();
        Err(refused(format!(
            "the system has no driver for {} of {}; add its module to the system (boot.initrd.availableKernelModules or hardware.*), or take another machine",
            words.join(" and "),
            self.host
        )))
    }
}
