//! The restart, and a look whether the machine runs the system.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow};

use super::Story;
use super::jump::own_options;
use super::state::State;
use crate::cli::Phase;
use crate::commands::remote::Reached;
use crate::failure::Failure;
use crate::plan::{RemoteStep, Step};
use crate::ssh::{Settings, fingerprint};
use crate::store::path::StorePath;

const PAUSE: Duration = Duration::from_secs(1);

impl Story<'_> {
    /// Restarts the machine and waits until it answers as the system. `boot_id` is of what runs now.
    pub(super) fn after(&self, mut reached: Reached, mut state: State, boot_id: &str) -> Result<String> {
        let (name, system) = (self.name(), self.system.name());
        let key = self.tell_of_key(&state)?;
        state.set_installed()?;
        if !self.has(Phase::Reboot) {
            let _ = reached.leave();
            return Ok(format!(
                "{name} has {system} on its disk; install-via-ssh --resume {name} restarts it into that{key}"
            ));
        }
        // A plan that was to end before has no such step.
        if let Some(Step::Remote(RemoteStep::Reboot)) = state.plan.steps.last() {
            self.begins(&state, state.plan.steps.len() - 1);
        }
        let said = reached.client.reboot().with_context(|| format!("restarting {name}"))?;
        drop(reached);
        if self.args.no_wait {
            if !said {
                return Err(self.may_have_restarted(&key));
            }
            state.finish()?;
            return Ok(format!("{name} restarts into {system}{key}"));
        }
        self.wait(&state, boot_id, &key)?;
        state.finish()?;
        Ok(format!("{name} runs {system}{key}"))
    }

    /// `key` says which new key the machine has then.
    pub(super) fn may_have_restarted(&self, key: &str) -> Error {
        let name = self.name();
        Failure::Unknown(format!(
            "the link was cut before {name} said that it restarts; if it has not, install-via-ssh --resume {name} goes on{key}"
        ))
        .into()
    }

    /// Waits until the machine answers as the system. `key` says which new key it has.
    fn wait(&self, state: &State, boot_id: &str, key: &str) -> Result<()> {
        let settings = self.settings_after(state)?;
        let (name, system) = (self.name(), &self.system);
        let deadline = Instant::now() + Duration::from_secs(self.args.wait_timeout.into());
        let facts = loop {
            let looked =
                Reached::start(&self.args.host, &settings, &self.prepared.far, &self.questions, |_| ())
                    .and_then(|mut reached| reached.client.look("/", system));
            let why = match looked {
                Ok(facts) if facts.boot_id != boot_id => break facts,
                Ok(_) => "it has not restarted yet".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() >= deadline {
                return Err(Failure::Unknown(format!(
                    "{} is on the disk of {name}, which does not answer as it: {why}; look at its console{key}",
                    system.name()
                ))
                .into());
            }
            sleep(PAUSE);
        };
        match facts.running.as_ref() == Some(system) {
            true => Ok(()),
            false => {
                let runs = facts.running.as_ref().map_or("something else", StorePath::name);
                Err(anyhow!(
                    "{name} was restarted and runs {runs} instead of {}; look at its console",
                    system.name()
                ))
            }
        }
    }

    /// Returns how the new system is reached: as the old one, but with a new host key where it got one.
    fn settings_after(&self, state: &State) -> Result<Settings> {
        if !state.has_other_host_keys() {
            return Ok(self.settings.clone());
        }
        state.expect_other_host_keys()?;
        let mut options = own_options(&state.known_hosts().to_string_lossy())?;
        options.extend(self.settings.options.iter().cloned());
        Ok(Settings { options, ..self.settings.clone() })
    }

    /// Returns in words which new key the machine is known by, if it got one.
    fn tell_of_key(&self, state: &State) -> Result<String> {
        let Some((_, public)) = state.new_host_key() else { return Ok(String::new()) };
        let host = match self.args.host.port.or(self.settings.port) {
            None | Some(22) => self.args.host.host.clone(),
            Some(port) => format!("[{}]:{port}", self.args.host.host),
        };
        let key: Vec<&str> = public.split(' ').take(2).collect();
        Ok(format!(
            "; its new host key is {}, for known_hosts:\n{host} {}",
            fingerprint(&public)?,
            key.join(" ")
        ))
    }
}
