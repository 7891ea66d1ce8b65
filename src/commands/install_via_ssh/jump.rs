//! The jump into the rescue, and the first word with it.

use std::fs::File;
use std::io::Seek;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::Story;
use super::kernel::KernelFiles;
use super::look::Decided;
use super::state::{ALIAS, State};
use crate::commands::remote::Reached;
use crate::commands::rescue::{CONFIGURATION, Configuration, MODULES};
use crate::facts::target::{RunsFrom, TargetFacts};
use crate::failure::refused;
use crate::progress::Event;
use crate::size::Bytes;
use crate::ssh::{ClientOption, Settings};
use crate::sys::cpio::Archive;
use crate::sys::file;

// Between two tries to reach a machine that does not answer.
const PAUSE: Duration = Duration::from_secs(1);
// The old system still takes calls for a moment, and whoever is on the line when it ends hears of that half a minute later.
const LEAVING: Duration = Duration::from_secs(5);
// How long the kernel and the network cards of a large server may need.
const BOOT: Duration = Duration::from_secs(300);
// What a rescue's kernel is told of, as the kernel before it was: where its consoles are, and what it must not touch.
const KEPT_PARAMETERS: [&str; 8] =
    ["console=", "earlycon", "pci=", "acpi=", "iommu=", "intel_iommu=", "amd_iommu=", "noapic"];
// A kernel that panics restarts the machine, into what was installed before.
const OWN_PARAMETERS: &str = "panic=30";

impl Story<'_> {
    /// Makes the machine jump.
    pub(super) fn jump(&self, mut reached: Reached, decided: &Decided, state: &mut State) -> Result<()> {
        self.begins(state, 0);
        let facts_port = decided.port;
        let configuration = Configuration {
            authorized: state.key().1.to_owned(),
            network: decided.carried.clone(),
            port: facts_port,
            timeout: self.args.rescue_timeout.into(),
        };
        let mut initrd = initrd(&configuration, &decided.modules).context("making the initrd")?;
        let kernel = KernelFiles::of(&self.args.common.from, &self.system)?;
        let total = kernel.size()? + Bytes(initrd.metadata().context("measuring the initrd")?.len());
        self.progress.event(Event::Start { total });
        let jumped =
            reached.client.jump(&decided.command_line, &mut kernel.open()?, &mut initrd, self.progress);
        self.progress.event(Event::Finish);
        jumped.with_context(|| {
            format!("jumping into the rescue on {}; nothing was changed there", self.name())
        })?;
        // It ends with the machine, sooner or later.
        drop(reached);
        sleep(LEAVING);
        Ok(())
    }

    /// Reaches the rescue, and finds the disk there.
    pub(super) fn reach_rescue(&self, state: &mut State) -> Result<(Reached, TargetFacts)> {
        let limit = BOOT.max(Duration::from_secs(self.args.rescue_timeout.into()));
        let mut reached = self.reach_rescue_within(state, limit)?;
        let facts = reached.client.examine().with_context(|| self.name())?;
        if facts.runs_from != RunsFrom::Rescue {
            return Err(refused(format!("{} is not in the rescue", self.name())));
        }
        state.find_disk(&facts)?;
        Ok((reached, facts))
    }

    pub(super) fn reach_rescue_within(&self, state: &State, limit: Duration) -> Result<Reached> {
        let settings = self.rescue_settings(state)?;
        let deadline = Instant::now() + limit;
        loop {
            let (address, far) = (&self.args.host, &self.prepared.far);
            let error = match Reached::rescue(address, &settings, far, &self.questions) {
                Ok(reached) => return Ok(reached),
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(anyhow!(
                    "the rescue on {} does not answer ({error:#}); unless its disk is being written, the machine goes back to what it was by itself",
                    self.name()
                ));
            }
            sleep(PAUSE);
        }
    }

    /// Leaves the rescue, to which nothing leads back, for what is on the disk.
    pub(super) fn leave_rescue(&self, mut reached: Reached, state: State) -> Result<String> {
        if !reached.client.reboot().with_context(|| format!("restarting {}", self.name()))? {
            return Err(self.may_have_restarted(""));
        }
        state.finish()?;
        Ok(format!("{} restarts", self.name()))
    }

    /// Returns how the rescue is reached: as the machine was, but with this installation's key and with the host
    /// keys that the machine itself has named.
    fn rescue_settings(&self, state: &State) -> Result<Settings> {
        let (key, _) = state.key();
        let hosts = state.known_hosts();
        let mut options = own_options(&hosts.to_string_lossy())?;
        for option in ["IdentitiesOnly=yes", "PubkeyAuthentication=yes", "PreferredAuthentications=publickey"]
        {
            options.push(option.parse()?);
        }
        // The first of two that contradict each other holds.
        options.extend(self.settings.options.iter().cloned());
        Ok(Settings { identity: vec![key], options, sudo: false, ..self.settings.clone() })
    }
}

/// Returns the options by which a machine is known by a list of our own.
pub(super) fn own_options(known_hosts: &str) -> Result<Vec<ClientOption>> {
    let options = [
        format!("UserKnownHostsFile=\"{known_hosts}\""),
        format!("GlobalKnownHostsFile=\"{known_hosts}\""),
        format!("HostKeyAlias={ALIAS}"),
        "StrictHostKeyChecking=yes".to_owned(),
        "UpdateHostKeys=no".to_owned(),
        "KnownHostsCommand=none".to_owned(),
        "ConnectTimeout=10".to_owned(),
    ];
    options.iter().map(|option| option.parse().map_err(Into::into)).collect()
}

/// Returns the command line of the rescue's kernel, after that of the kernel before and of the system's own.
pub(super) fn command_line(before: &str, own: &str) -> String {
    let kept = |word: &&str| KEPT_PARAMETERS.iter().any(|kept| word.starts_with(kept));
    let mut words: Vec<&str> = Vec::new();
    // The last console is the one that programs write to: the machine's own, if it has named one.
    for word in own.split_whitespace().chain(before.split_whitespace()).filter(kept) {
        words.retain(|other| *other != word);
        words.push(word);
    }
    words.push(OWN_PARAMETERS);
    words.join(" ")
}

/// Writes this end's part of the initrd: what the rescue is told, and its modules.
fn initrd(configuration: &Configuration, modules: &[(String, Vec<u8>)]) -> Result<File> {
    let mut archive = Archive::new(file::spool().context("making a file for it")?);
    let text = serde_json::to_vec(configuration).context("writing the configuration")?;
    archive.file(CONFIGURATION, 0o600, text.len() as u64, &text[..])?;
    for (number, (name, contents)) in modules.iter().enumerate() {
        let path = format!("{MODULES}/{number:03}-{name}.ko");
        archive.file(&path, 0o644, contents.len() as u64, &contents[..])?;
    }
    let mut initrd = archive.finish()?;
    initrd.rewind().context("rewinding it")?;
    Ok(initrd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rescue_is_seen_where_the_machine_was_seen() {
        for (before, own, line) in [
            ("", "", "panic=30"),
            (
                "BOOT_IMAGE=/vmlinuz root=UUID=x ro quiet console=tty0 console=ttyS0,115200n8",
                "loglevel=4",
                "console=tty0 console=ttyS0,115200n8 panic=30",
            ),
            ("console=ttyS0", "console=ttyS1 init=/x root=/y", "console=ttyS1 console=ttyS0 panic=30"),
            (
                "console=tty0 pci=nomsi",
                "console=tty0 console=ttyS0",
                "console=ttyS0 console=tty0 pci=nomsi panic=30",
            ),
        ] {
            assert_eq!(command_line(before, own), line);
        }
    }
}
