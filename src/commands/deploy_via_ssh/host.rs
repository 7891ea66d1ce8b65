//! One machine gets a system: look, decide, copy, activate, confirm.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow};

use super::record::Record;
use crate::cli::{DeployViaSsh, PlanForm};
use crate::commands::print_plan;
use crate::commands::remote::{Prepared, Reached};
use crate::facts::HostFacts;
use crate::failure::{Failure, refused};
use crate::plan::{self, Missing, Plan, RemoteStep, RemoteWishes, Step};
use crate::progress::{Event, Progress, Silent};
use crate::ssh::{Address, Questions, Settings};
use crate::store::PathInfo;
use crate::store::db::Database;
use crate::store::path::StorePath;
use crate::store::{closure, copy, delta, difference, verify};
use crate::system::deployment::{Action, Deployment, Ended};
use crate::wire::client::root_text;
use crate::wire::message::Similar;
use crate::wire::parcels::Parcels;
use crate::wire::sending::Item;

// Between two tries to reach a machine that does not answer.
const PAUSE: Duration = Duration::from_secs(1);
// How long a machine may need to go back, and how long it may need to restart.
const SPARE: Duration = Duration::from_secs(60);
const RESTART: Duration = Duration::from_secs(15 * 60);

/// What came of it, in a sentence.
pub struct Outcome {
    pub text: String,
}

pub struct Story<'a> {
    pub args: &'a DeployViaSsh,
    pub wishes: RemoteWishes,
    pub settings: &'a Settings,
    pub questions: &'a Questions,
    pub parcels: &'a Parcels,
    pub address: &'a Address,
    pub name: &'a str,
    pub prepared: &'a Prepared,
    pub progress: &'a dyn Progress,
    pub record: &'a Record,
}

impl Story<'_> {
    pub fn tell(&self) -> Result<Outcome> {
        let mut reached = self.reach()?;
        self.record.reached();
        let (plan, items, facts) = self.look(&mut reached).with_context(|| self.name.to_owned())?;
        if let Some(form) = self.args.common.only_plan() {
            self.show(&plan, form)?;
            reached.leave()?;
            return Ok(Outcome { text: String::new() });
        }
        let name = self.prepared.facts.system.name();
        if plan.steps.is_empty() {
            match facts.valid {
                true => self.record.after(&facts),
                // Its own caches had what was missing.
                false => self.look_again(&mut reached),
            }
            reached.leave()?;
            return Ok(Outcome { text: format!("{} has {name} already", self.name) });
        }
        self.copy(&plan, &mut reached, items).with_context(|| self.copying())?;
        let text = match self.wishes.action {
            None => {
                self.look_again(&mut reached);
                reached.leave()?;
                format!("{} has {name} in its store", self.name)
            }
            Some(action) => self.deploy(&plan, reached, action, &facts)?,
        };
        Ok(Outcome { text })
    }

    fn reach(&self) -> Result<Reached> {
        Reached::start(self.address, self.settings, &self.prepared.far, self.questions, |_| ())
    }

    fn look(&self, reached: &mut Reached) -> Result<(Plan, Vec<Item>, HostFacts)> {
        let system = &self.prepared.facts.system;
        let facts = reached.client.look(&root_text(&self.args.root)?, system)?;
        self.record.before(&facts);
        self.compare(&facts);
        let Prepared { facts: wanted, inhibitors, .. } = self.prepared;
        plan::takes_system(self.name, &self.wishes, &facts, wanted, inhibitors)?;
        let items = if facts.valid { Vec::new() } else { self.items(reached)? };
        let missing = self.measure(&items)?;
        let (from, summary) = (&self.args.common.from, self.prepared.summary());
        let plan = plan::deploy_via_ssh(self.name, from, system, &self.wishes, &facts, missing, summary)?;
        Ok((plan, items, facts))
    }

    /// Tells a program how the system differs from the one that runs, if that one is here too.
    fn compare(&self, facts: &HostFacts) {
        let from = &self.args.common.from;
        let wanted = self.args.common.progress.is_on_stdout();
        let running = facts.running.as_ref().filter(|_| wanted);
        if let Some(running) = running.and_then(|running| closure::read(from, running, &Silent).ok()) {
            self.record.packages(difference::changes(&running.paths, &self.prepared.closure.paths));
        }
    }

    /// Looks what has become of the machine. What cannot be seen stays unknown.
    fn look_again(&self, reached: &mut Reached) {
        let looked = root_text(&self.args.root)
            .and_then(|root| reached.client.look(&root, &self.prepared.facts.system));
        if let Ok(facts) = looked {
            self.record.after(&facts);
        }
    }

    /// Asks what is missing, and finds what it may be made from: what both ends have, byte for byte.
    fn items(&self, reached: &mut Reached) -> Result<Vec<Item>> {
        let paths = &self.prepared.closure.paths;
        let names = paths.iter().map(|info| info.path.clone()).collect();
        let substitute = self.args.substitute && self.args.common.only_plan().is_none();
        let lack = reached.client.missing(names, substitute, self.progress)?;
        let wanted: Vec<PathInfo> = lack.paths.iter().map(|&index| paths[index].clone()).collect();
        let common = if self.args.no_delta { Vec::new() } else { self.common(&lack.similar)? };
        let bases = delta::bases(&wanted, &common);
        let mut known = BTreeMap::new();
        for info in common {
            known.insert(info.path.clone(), info);
        }
        let base = |path: &StorePath| known.get(bases.get(path)?).cloned();
        Ok(wanted.into_iter().map(|info| Item { base: base(&info.path), info }).collect())
    }

    /// Returns those of the machine's paths that are here too, and the same.
    fn common(&self, similar: &[Similar]) -> Result<Vec<PathInfo>> {
        let Some(database) = Database::open(&self.args.common.from)? else { return Ok(Vec::new()) };
        let known = |theirs: &Similar| -> Result<Option<PathInfo>> {
            Ok(database.info(&theirs.path)?.filter(|ours| ours.nar_hash == theirs.nar_hash))
        };
        similar.iter().filter_map(|theirs| known(theirs).transpose()).collect()
    }

    fn measure(&self, items: &[Item]) -> Result<Missing> {
        let infos: Vec<PathInfo> = items.iter().map(|item| item.info.clone()).collect();
        Ok(Missing {
            paths: items.len(),
            bytes: infos.iter().map(|info| info.nar_size).sum(),
            space: copy::space_needed(&infos, &self.args.common.from)?,
            deltas: items.iter().filter(|item| item.base.is_some()).count(),
        })
    }

    fn show(&self, plan: &Plan, form: PlanForm) -> Result<()> {
        if self.args.common.progress.is_on_stdout() {
            let plan = serde_json::to_value(plan).context("writing the plan as JSON")?;
            self.progress.event(Event::Plan { plan });
            return Ok(());
        }
        print_plan(plan, &self.prepared.closure, form)
    }

    fn copying(&self) -> String {
        format!("copying to {}; the same command again goes on where it stopped", self.name)
    }

    fn copy(&self, plan: &Plan, reached: &mut Reached, items: Vec<Item>) -> Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        self.begin(plan, |step| matches!(step, RemoteStep::Send { .. }));
        self.record.begun();
        let total = items.iter().map(|item| item.info.nar_size).sum();
        self.progress.event(Event::Start { total });
        let sent = reached.client.send(items, self.parcels, self.progress);
        self.progress.event(Event::Finish);
        sent.map_err(|error| self.blame(error))
    }

    /// Looks whether a path that the machine refused is damaged here: what is sent is hashed there only.
    fn blame(&self, error: Error) -> Error {
        let text = format!("{error:#}");
        let paths = self.prepared.closure.paths.iter();
        let named: Vec<PathInfo> =
            paths.filter(|info| text.contains(info.path.base_name())).cloned().collect();
        match verify::paths(&self.args.common.from, named, &Silent).map(|verified| verified.damaged) {
            Ok(damaged) if !damaged.is_empty() => {
                let path = &damaged[0].path;
                anyhow!("{path} is damaged on this side; repair it with nix-store --repair-path {path}")
            }
            _ => error,
        }
    }

    /// Tells that a step of the plan begins.
    fn begin(&self, plan: &Plan, which: impl Fn(&RemoteStep) -> bool) {
        let is_it = |step: &Step| matches!(step, Step::Remote(step) if which(step));
        if let Some(number) = plan.steps.iter().position(is_it) {
            let title = plan.steps[number].to_string();
            self.progress.event(Event::Step { number: number + 1, of: plan.steps.len(), title });
        }
    }

    fn deploy(
        &self,
        plan: &Plan,
        mut reached: Reached,
        action: Action,
        before: &HostFacts,
    ) -> Result<String> {
        let system = &self.prepared.facts.system;
        let deployment = Deployment {
            system: system.clone(),
            action,
            rollback: self.wishes.rollback,
            confirm_timeout: self.wishes.confirm_timeout,
            activation_timeout: self.args.activation_timeout,
        };
        let is_first = |step: &RemoteStep| {
            matches!(
                step,
                RemoteStep::Activate { .. } | RemoteStep::DryActivate { .. } | RemoteStep::Keep { .. }
            )
        };
        if plan.steps.iter().any(|step| matches!(step, Step::Remote(step) if is_first(step))) {
            self.begin(plan, is_first);
            self.record.begun();
            let mut token = None;
            let ended = reached.client.deploy(&deployment, &mut |name| token = Some(name), self.progress);
            let ended = match (ended, token) {
                (Ok(Ended::Unconfirmed), Some(token)) => {
                    // Whether it can be reached anew is to be shown, so the old connection goes first.
                    drop(reached);
                    self.begin(plan, |step| matches!(step, RemoteStep::Confirm { .. }));
                    let (ended, new) = self.confirm(&token, &deployment, Duration::ZERO)?;
                    reached = new;
                    ended
                }
                (Ok(ended), _) => ended,
                (Err(error), Some(token)) if error.downcast_ref::<Failure>().is_none() => {
                    let text = format!("{}: {error:#}; reaching it anew", self.name);
                    self.progress.event(Event::Warning { text });
                    drop(reached);
                    let limit = Duration::from_secs(deployment.activation_timeout.into());
                    let (ended, new) = self.confirm(&token, &deployment, limit)?;
                    reached = new;
                    ended
                }
                (Err(error), _) => {
                    self.look_again(&mut reached);
                    return Err(error.context(self.name.to_owned()));
                }
            };
            self.look_again(&mut reached);
            self.judge(ended, before)?;
        }
        if self.wishes.reboot {
            self.begin(plan, |step| matches!(step, RemoteStep::Reboot));
            self.record.begun();
            return self.restart(reached, before);
        }
        let name = system.name();
        let text = match action {
            Action::Switch => format!("{} runs {name}", self.name),
            Action::Test => format!("{} runs {name} until it is restarted", self.name),
            Action::Boot => format!("{} runs {name} when it is restarted", self.name),
            Action::DryActivate => format!("{} was not changed", self.name),
        };
        // It is over; that the connection ends badly now is nothing to worry anybody.
        let _ = reached.leave();
        Ok(text)
    }

    fn judge(&self, ended: Ended, before: &HostFacts) -> Result<()> {
        let was = before.running.as_ref().map_or("what it was", StorePath::name);
        match ended {
            Ended::Done => Ok(()),
            Ended::RolledBack { reason } => {
                Err(Failure::RolledBack(format!("{} was rolled back to {was}: {reason}", self.name)).into())
            }
            Ended::Failed { reason } => Err(anyhow!("{}: {reason}", self.name)),
            Ended::Refused { reason } => {
                Err(refused(format!("{}: nothing was changed, for {reason}", self.name)))
            }
            Ended::Unconfirmed => Err(self.unknown("it waits for a confirmation")),
        }
    }

    fn unknown(&self, why: &str) -> Error {
        let ssh = self.address;
        Failure::Unknown(format!(
            "nobody knows what {} runs now: {why}; `ssh {ssh} readlink /run/current-system` tells",
            self.name
        ))
        .into()
    }

    /// Reaches the machine by a new connection and says so, for as long as it waits for that.
    fn confirm(&self, token: &str, deployment: &Deployment, longer: Duration) -> Result<(Ended, Reached)> {
        let wait = Duration::from_secs(deployment.confirm_timeout.into());
        let deadline = Instant::now() + wait + longer + SPARE;
        loop {
            let confirmed = self.reach().and_then(|mut reached| {
                let ended = reached.client.confirm(token, self.progress)?;
                Ok((ended, reached))
            });
            let error = match confirmed {
                // It was activating still when it was reached; that counts for nothing.
                Ok((Ended::Unconfirmed, _)) => continue,
                Ok(confirmed) => return Ok(confirmed),
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(self.unknown(&format!("{error:#}")));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn restart(&self, mut reached: Reached, before: &HostFacts) -> Result<String> {
        let system = &self.prepared.facts.system;
        // Whatever it says: what it is after a restart tells whether it did.
        reached.client.reboot().with_context(|| format!("restarting {}", self.name))?;
        drop(reached);
        let deadline = Instant::now() + RESTART;
        let facts = loop {
            let looked = self.reach().and_then(|mut reached| reached.client.look("/", system));
            let why = match looked {
                Ok(facts) if facts.boot_id != before.boot_id => break facts,
                Ok(_) => "it has not restarted yet".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() >= deadline {
                return Err(self.unknown(&why));
            }
            std::thread::sleep(PAUSE);
        };
        self.record.after(&facts);
        let name = system.name();
        let profile = facts.profile.as_ref().map(|(_, system)| system);
        match (facts.running.as_ref() == Some(system), profile == Some(system)) {
            (true, true) => Ok(format!("{} was restarted and runs {name}", self.name)),
            (true, false) => Err(anyhow!(
                "{} was restarted and runs {name}, but its profile leads elsewhere; somebody else has changed it",
                self.name
            )),
            (false, _) => {
                let runs = facts.running.as_ref().map_or("something else", StorePath::name);
                Err(anyhow!(
                    "{} was restarted and runs {runs} instead of {name}; look at its boot menu and its console",
                    self.name
                ))
            }
        }
    }
}
