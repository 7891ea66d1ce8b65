//! `deploy-via-ssh HOST…`: running NixOS machines get the system, each by a story of its own.

mod host;
mod hosts_file;
mod record;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Error, Result};

use super::remote::{self, Prepared};
use super::system;
use crate::cli::{DeployViaSsh, PlanForm};
use crate::failure::{Failure, refused, usage};
use crate::plan::RemoteWishes;
use crate::progress::{Event, Hosts, Manner, OfHost, Progress};
use crate::ssh::{Address, Questions, Settings};
use crate::store::path::StorePath;
use crate::sys::interrupt;
use crate::system::deployment::Action;
use crate::wire::parcels::Parcels;
use host::{Outcome, Story};
use record::{Last, Record};

// What stands before the words of a failure, where no code tells.
const ERROR: &str = "error: ";

/// Returns the exit code: the highest of all machines.
pub fn run(args: &DeployViaSsh) -> Result<i32> {
    check(args)?;
    let targets = targets(args)?;
    let from = &args.common.from;
    let mut systems = BTreeMap::new();
    for (_, system) in &targets {
        if !systems.contains_key(system) {
            systems.insert(system.clone(), Prepared::read(from, system)?);
        }
    }
    let names: Vec<String> = targets.iter().map(|(address, _)| address.to_string()).collect();
    let hosts = Hosts::new(args.common.progress.manner(), names.iter().map(String::as_str));
    let hosts = Arc::new(hosts);
    let beside = Arc::clone(&hosts);
    let all = All {
        args,
        settings: remote::settings(&args.ssh, systems.values().find_map(|prepared| prepared.client.clone()))?,
        questions: Questions::on_terminal(remote::own_program()?, move |ask| beside.aside(ask)),
        parcels: Parcels::new(from, targets.len() > 1)?,
        hosts,
        names,
        targets,
        systems,
    };
    interrupt::say("what has begun on a machine goes on there, and is taken back unless it is confirmed");
    all.tell()
}

fn check(args: &DeployViaSsh) -> Result<()> {
    if args.common.only_plan() == Some(PlanForm::Script) {
        return Err(refused("there is no script for what depends on another machine; read --plan text"));
    }
    if args.root != Path::new("/") && !args.copy_only {
        return Err(usage("only a running system can be activated; --root goes with --copy-only"));
    }
    Ok(())
}

fn targets(args: &DeployViaSsh) -> Result<Vec<(Address, StorePath)>> {
    let targets = match &args.hosts {
        Some(file) => hosts_file::read(file, &args.common.from)?,
        None => {
            let system = system(&args.common)?;
            args.host.iter().map(|host| (host.clone(), system.clone())).collect()
        }
    };
    let mut seen = std::collections::BTreeSet::new();
    match targets.iter().find(|(address, _)| !seen.insert(address)) {
        Some((twice, _)) => Err(usage(format!("{twice} is named twice; name each machine once"))),
        None => Ok(targets),
    }
}

/// What each machine gets, and what all stories share.
struct All<'a> {
    args: &'a DeployViaSsh,
    settings: Settings,
    questions: Questions,
    parcels: Parcels,
    hosts: Arc<Hosts>,
    targets: Vec<(Address, StorePath)>,
    names: Vec<String>,
    systems: BTreeMap<StorePath, Prepared>,
}

impl All<'_> {
    fn tell(&self) -> Result<i32> {
        let progress = &self.args.common.progress;
        match self.targets.as_slice() {
            // One machine has the terminal for itself, as with the other commands. To a program, one is a few.
            [_] if progress.manner() != Manner::Json => {
                let (progress, record) = (progress.printer(), Record::default());
                let outcome = self.parcels.with_workers(|| self.story(0, &*progress, &record).tell())?;
                if !outcome.text.is_empty() {
                    progress.event(Event::Done { text: outcome.text });
                }
                Ok(0)
            }
            _ => Ok(self.parcels.with_workers(|| self.tell_many())),
        }
    }

    fn story<'s>(&'s self, number: usize, progress: &'s dyn Progress, record: &'s Record) -> Story<'s> {
        let (address, system) = &self.targets[number];
        Story {
            args: self.args,
            wishes: wishes(self.args),
            settings: &self.settings,
            questions: &self.questions,
            parcels: &self.parcels,
            address,
            name: &self.names[number],
            prepared: &self.systems[system],
            progress,
            record,
        }
    }

    /// Tells the stories side by side, so many at a time, and then how each has ended.
    fn tell_many(&self) -> i32 {
        let hosts = &*self.hosts;
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let ends: Mutex<BTreeMap<usize, Result<Outcome>>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..self.args.jobs.get().min(self.targets.len()) {
                scope.spawn(|| {
                    while !stop.load(Ordering::SeqCst) {
                        let number = next.fetch_add(1, Ordering::SeqCst);
                        if number >= self.targets.len() {
                            break;
                        }
                        let (progress, record) = (hosts.of(&self.names[number]), Record::default());
                        let end = self.story(number, &progress, &record).tell();
                        if end.is_err() && self.args.fail_fast {
                            stop.store(true, Ordering::SeqCst);
                        }
                        self.over(number, &progress, &record, Some(&end));
                        ends.lock().expect("no story panics with it").insert(number, end);
                    }
                });
            }
        });
        let ends = ends.into_inner().expect("no story panics with it");
        for (number, name) in self.names.iter().enumerate() {
            if !ends.contains_key(&number) {
                self.over(number, &hosts.of(name), &Record::default(), None);
            }
        }
        // A program has heard it all; what went wrong is for people too.
        let is_told = |number: &usize| {
            self.args.common.progress.manner() != Manner::Json || !matches!(ends.get(number), Some(Ok(_)))
        };
        let rows = self.names.iter().enumerate().filter(|(number, _)| is_told(number));
        hosts.table(rows.map(|(number, name)| (name.as_str(), in_words(ends.get(&number)))));
        (0..self.names.len()).map(|number| ends.get(&number).map_or(1, code)).max().unwrap_or(0)
    }

    /// Tells how a story has ended, if it was begun.
    fn over(&self, number: usize, progress: &OfHost, record: &Record, end: Option<&Result<Outcome>>) {
        let (_, system) = &self.targets[number];
        let words = in_words(end);
        let text = words.strip_prefix(ERROR).unwrap_or(&words);
        progress.over(&words, &Last { text, code: end.map(code), details: record.details(system) });
    }
}

fn wishes(args: &DeployViaSsh) -> RemoteWishes {
    let action = match () {
        () if args.copy_only => None,
        () if args.dry_activate => Some(Action::DryActivate),
        () if args.test => Some(Action::Test),
        () if args.boot || args.reboot => Some(Action::Boot),
        () => Some(Action::Switch),
    };
    RemoteWishes {
        action,
        reboot: args.reboot,
        rollback: !args.no_rollback,
        confirm_timeout: args.confirm_timeout,
        force: args.force,
    }
}

fn in_words(end: Option<&Result<Outcome>>) -> String {
    match end {
        None => "not begun".to_owned(),
        Some(Ok(outcome)) if outcome.text.is_empty() => "looked at".to_owned(),
        Some(Ok(outcome)) => outcome.text.clone(),
        Some(Err(error)) => format!("{ERROR}{error:#}"),
    }
}

fn code(end: &Result<Outcome>) -> i32 {
    let of = |error: &Error| error.downcast_ref::<Failure>().map_or(1, Failure::exit_code);
    end.as_ref().map_or_else(of, |_| 0)
}
