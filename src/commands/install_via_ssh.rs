//! `install-via-ssh HOST`: what runs on HOST, whatever Linux it is, is replaced by the system.

mod after;
mod install;
mod jump;
mod kernel;
mod look;
mod report;
mod state;

use anyhow::{Context, Result};

use super::remote::{self, Prepared, Reached};
use super::{confirm, keys, print_plan, system};
use crate::cli::{InstallViaSsh, Phase, PlanForm};
use crate::facts::target::RunsFrom;
use crate::failure::{refused, usage};
use crate::plan::Plan;
use crate::progress::{Event, Progress};
use crate::run::Keys;
use crate::ssh::{Questions, Settings};
use crate::store::path::StorePath;
use crate::sys::interrupt;
use crate::system::extra_files;
use crate::wire::parcels::Parcels;
use state::State;

pub fn run(args: &InstallViaSsh) -> Result<()> {
    check(args)?;
    let progress = args.common.progress.printer();
    let from = &args.common.from;
    let system = match args.resume {
        true => state::system(&args.host)?,
        false => system(&args.common)?,
    };
    let prepared = Prepared::read(from, &system)?;
    let settings = remote::settings(&args.ssh, prepared.client.clone())?;
    let questions = Questions::on_terminal(remote::own_program()?, |ask| ask());
    let parcels = Parcels::new(from, false)?;
    let story = Story { args, system, prepared, settings, questions, parcels, progress: &*progress };
    story.parcels.with_workers(|| story.tell())
}

fn check(args: &InstallViaSsh) -> Result<()> {
    if args.common.only_plan() == Some(PlanForm::Script) {
        return Err(refused("there is no script for what depends on another machine; read --plan text"));
    }
    let phases = args.phases();
    if phases.contains(&Phase::Disk) != phases.contains(&Phase::Install) {
        return Err(usage(
            "the table of a disk is written when the system is on it, so the phases disk and install go together",
        ));
    }
    if phases.contains(&Phase::Reboot) && phases.contains(&Phase::Kexec) && !phases.contains(&Phase::Install)
    {
        return Err(usage("a rescue that restarts at once changes nothing; leave out the phase reboot"));
    }
    args.extra.extra_files.as_deref().map_or(Ok(()), extra_files::check)
}

/// One machine gets another system: look, decide, jump, install, see.
struct Story<'a> {
    args: &'a InstallViaSsh,
    system: StorePath,
    prepared: Prepared,
    settings: Settings,
    questions: Questions,
    parcels: Parcels,
    progress: &'a dyn Progress,
}

impl Story<'_> {
    fn tell(&self) -> Result<()> {
        let done = match self.args.resume {
            true => self.go_on(self.begun()?),
            false => self.begin(),
        }?;
        if !done.is_empty() {
            self.progress.event(Event::Done { text: done });
        }
        Ok(())
    }

    fn begin(&self) -> Result<String> {
        let mut reached = self.reach().map_err(|error| match state::has_rescue(&self.args.host) {
            true => error.context("something was begun there, and its rescue lets only --resume in"),
            false => error,
        })?;
        let facts = reached.client.examine().with_context(|| self.name())?;
        let decided = self.decide(&facts);
        if let Some(file) = &self.args.hardware_report {
            self.report(&facts, &decided, file)?;
        }
        let decided = decided?;
        decided.check()?;
        let mut keys = keys::read(&self.args.disk_encryption_key, &decided.layout)?;
        if let Some(form) = self.args.common.only_plan() {
            self.show(&self.shown(&decided.plan), form)?;
            reached.leave()?;
            return Ok(String::new());
        }
        if decided.jumps && !self.has(Phase::Kexec) {
            return Err(usage(format!(
                "{} runs from its disk, and only the phase kexec leads into the rescue; name it too",
                self.name()
            )));
        }
        if !decided.jumps && !self.has(Phase::Install) {
            return Err(usage(format!(
                "{} runs from memory, so it needs no rescue; name the phases disk and install",
                self.name()
            )));
        }
        if !self.args.yes.yes {
            let host = &self.args.host.host;
            let question = match self.has(Phase::Install) {
                true => format!(
                    "What runs there will be lost, with all that is on {}. Type {host} to go on:",
                    decided.plan.target.display()
                ),
                false => format!("What runs there ends, and its disk stays as it is. Type {host} to go on:"),
            };
            confirm(&self.shown(&decided.plan), &question, &[host, &self.name()])?;
        }
        if self.has(Phase::Install) {
            keys::complete(&mut keys, &decided.layout)?;
        }
        let mut state = State::begin(&self.args.host, &decided, &facts)?;
        if !decided.jumps {
            let outcome = self.install(reached, &mut state, keys)?;
            return self.after(outcome, state, &facts.boot_id);
        }
        interrupt::say(format!(
            "unless its disk is being written, {} goes back to what it was by itself; install-via-ssh --resume goes on",
            self.name()
        ));
        self.jump(reached, &decided, &mut state)?;
        self.in_rescue(state, keys)
    }

    /// Opens what an earlier run has begun, with the extra files that are brought now.
    fn begun(&self) -> Result<State> {
        let mut state = State::open(&self.args.host)?;
        if let Some(from) = &self.args.extra.extra_files {
            state.bring(from, look::brought(Some(from))?)?;
        }
        Ok(state)
    }

    /// Goes on with what an earlier run has begun: its machine is in the rescue, or in memory all the time.
    fn go_on(&self, state: State) -> Result<String> {
        if !state.jumps() {
            return self.go_on_in_memory(state);
        }
        let keys = keys::read(&self.args.disk_encryption_key, &state.layout()?)?;
        self.in_rescue(state, keys)
    }

    /// Restarts a machine that has the system on its disk and runs another one from memory.
    fn go_on_in_memory(&self, state: State) -> Result<String> {
        let name = self.name();
        if !state.is_installed() {
            return Err(usage(format!(
                "{name} runs from memory and has no rescue that waits; leave out --resume, which starts over"
            )));
        }
        let mut reached = self.reach()?;
        let facts = reached.client.examine().with_context(|| self.name())?;
        if facts.runs_from != RunsFrom::Memory {
            return Err(refused(format!(
                "{name} was restarted since then, and there is nothing to go on with"
            )));
        }
        self.after(reached, state, &facts.boot_id)
    }

    fn in_rescue(&self, mut state: State, mut keys: Keys) -> Result<String> {
        let (reached, facts) = self.reach_rescue(&mut state)?;
        if state.is_installed() {
            return self.after(reached, state, &facts.boot_id);
        }
        if !self.has(Phase::Install) {
            if self.has(Phase::Reboot) && self.args.resume {
                return self.leave_rescue(reached, state);
            }
            let _ = reached.leave();
            return Ok(format!(
                "{} is in the rescue, and goes back to what it was unless install-via-ssh --resume comes within {} s",
                self.name(),
                self.args.rescue_timeout
            ));
        }
        keys::complete(&mut keys, &state.layout()?)?;
        let outcome = self.install(reached, &mut state, keys)?;
        self.after(outcome, state, &facts.boot_id)
    }

    fn reach(&self) -> Result<Reached> {
        Reached::start(&self.args.host, &self.settings, &self.prepared.far, &self.questions, |_| ())
    }

    /// Returns the plan with a word on what of it is done now.
    fn shown(&self, plan: &Plan) -> Plan {
        let mut plan = plan.clone();
        if !self.has(Phase::Install) {
            let note = "now only step 1 is done; unless install-via-ssh --resume goes on from there, the machine goes back to what it was";
            plan.notes.push(note.to_owned());
        }
        plan
    }

    fn show(&self, plan: &Plan, form: PlanForm) -> Result<()> {
        if self.args.common.progress.is_on_stdout() {
            let plan = serde_json::to_value(plan).context("writing the plan as JSON")?;
            self.progress.event(Event::Plan { plan });
            return Ok(());
        }
        print_plan(plan, &self.prepared.closure, form)
    }

    /// Tells that a step of the plan begins.
    fn begins(&self, state: &State, number: usize) {
        let steps = &state.plan.steps;
        if let Some(step) = steps.get(number) {
            let title = step.to_string();
            self.progress.event(Event::Step { number: number + 1, of: steps.len(), title });
        }
    }

    fn has(&self, phase: Phase) -> bool {
        self.args.phases().contains(&phase)
    }

    fn name(&self) -> String {
        self.args.host.to_string()
    }
}
