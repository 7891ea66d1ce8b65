//! A new system on this running machine: activated where no lost connection can stop it, and taken back
//! by the machine itself if it fails or if nobody confirms that the machine can still be reached.
//!
//! A deployment has a directory below `/run`, which a reboot forgets, and so has what is in it:
//!
//! - `record.json`: what is asked for. Written first.
//! - `log`: what the system's own programs say.
//! - `stage.json`: how far it came. Whoever wants to know looks there.
//! - `confirmed`: somebody has reached the machine since the system runs.
//!
//! Three processes work on it. One that serves a connection [`begin`]s a deployment and
//! [`watch`]es it; it may die at any time. A transient systemd unit [`perform`]s it. And a timer, armed
//! before anything changes, takes it back ([`give_up`]) if that unit hangs or was killed.
//!
//! The boot loader and the profile come last, when the system has proved itself: until then the
//! machine boots what it ran before, and a power cut is a rollback too.

mod judge;
mod state;
mod unit;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::deployment::{Action, Deployment, Ended};
use super::profile;
use crate::failure::refused;
use crate::store::path::StorePath;
use crate::sys::clock::{self, Clock, Monotonic};
use crate::sys::{file, power, terminal};
use state::{Directory, Record, Stage};

const ROOT: &str = "/";
// How often somebody looks whether something has happened.
const STAGE_POLL: Duration = Duration::from_millis(200);
// What taking a system back may need on a slow machine, besides the time limits of the deployment.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(60);
// What a failing check says at its end; the check of the inhibitors says ten.
const CHECK_LINES: usize = 12;
// Exists where systemd is the init, and nowhere else.
const SYSTEMD: &str = "/run/systemd/system";

/// Returns the system that this machine runs.
pub fn running() -> Option<StorePath> {
    leads_to("/run/current-system")
}

/// Returns the system that this machine was booted with.
pub fn booted() -> Option<StorePath> {
    leads_to("/run/booted-system")
}

fn leads_to(link: &str) -> Option<StorePath> {
    StorePath::parse(fs::read_link(link).ok()?.to_str()?).ok()
}

/// Begins a deployment of a system that is valid, and returns by which name to ask about it.
pub fn begin(deployment: &Deployment) -> Result<String> {
    let Some(running) = running() else {
        return Err(refused("the machine does not run NixOS; install a system on it first"));
    };
    let switch = switch_of(&deployment.system);
    if !switch.exists() {
        return Err(refused(format!(
            "{} has no {}, so nothing can activate it; set system.switch.enable",
            deployment.system.name(),
            switch.strip_prefix(deployment.system.to_string()).unwrap_or(&switch).display()
        )));
    }
    state::nobody_else()?;
    if deployment.action.activates() {
        check(&deployment.system, Duration::from_secs(deployment.activation_timeout.into()))?;
    }
    let directory = Directory::create()?;
    directory.record(&Record {
        deployment: deployment.clone(),
        before: running,
        generation: profile::current_number(Path::new(ROOT)),
    })?;
    directory.stage(&Stage::Activating)?;
    if deployment.action.keeps() {
        // A root against garbage collections, and kept for study should the system fail.
        profile::add(Path::new(ROOT), &deployment.system)?;
    }
    let program = directory.program()?;
    if deployment.action.activates() && deployment.rollback {
        unit::arm(directory.token(), &program, rollback_after(deployment))?;
    }
    unit::start(directory.token(), &program, &directory.log())?;
    Ok(directory.token().to_owned())
}

/// Returns after how long the timer takes a deployment back that has not come to its end by itself.
fn rollback_after(deployment: &Deployment) -> Duration {
    let timeouts = u64::from(deployment.activation_timeout) + u64::from(deployment.confirm_timeout);
    Duration::from_secs(timeouts) + ROLLBACK_TIMEOUT
}

/// Follows a deployment until it ends, or waits for a confirmation. `heard` gets what is said meanwhile.
///
/// With `confirm` it is told that the machine can be reached; it counts if the system runs by now.
pub fn watch(token: &str, confirm: bool, heard: &mut dyn FnMut(&str)) -> Result<Ended> {
    let directory = Directory::open(token)?;
    let mut log = state::Log::of(&directory);
    if confirm {
        log.skip_to_end();
        if directory.look()? == Stage::Unconfirmed {
            directory.confirm()?;
        }
    }
    loop {
        let stage = directory.look()?;
        log.read(heard);
        match stage {
            Stage::Over(ended) => return Ok(ended),
            Stage::Unconfirmed if !directory.is_confirmed() => return Ok(Ended::Unconfirmed),
            _ if !unit::lives(token) && directory.look()? == stage => {
                // Killed; the timer will take the system back, where one is armed.
                bail!("what activates the system has died; look at journalctl -u {}", unit::name(token));
            }
            _ => std::thread::sleep(STAGE_POLL),
        }
    }
}

/// Performs a deployment to its end. To be run by the unit that [`begin`] starts.
pub fn perform(token: &str) -> Result<()> {
    let directory = Directory::open(token)?;
    let _lock = state::lock()?;
    let record = directory.read_record()?;
    let ended = match carry_out(&directory, &record) {
        Ok(ended) => ended,
        Err(error) => Ended::Failed { reason: format!("{error:#}") },
    };
    directory.stage(&Stage::Over(ended))?;
    unit::disarm(token);
    Ok(())
}

/// Takes a deployment back that has not come to its end in time. To be run by the timer.
pub fn give_up(token: &str) -> Result<()> {
    let directory = Directory::open(token)?;
    if matches!(directory.look()?, Stage::Over(_)) {
        return Ok(());
    }
    unit::stop(token);
    let _lock = state::lock()?;
    if matches!(directory.look()?, Stage::Over(_)) {
        return Ok(());
    }
    let record = directory.read_record()?;
    let ended = take_back(&record, "the activation did not end in time");
    directory.stage(&Stage::Over(ended))
}

fn carry_out(directory: &Directory, record: &Record) -> Result<Ended> {
    let deployment = &record.deployment;
    let limit = Duration::from_secs(deployment.activation_timeout.into());
    match deployment.action {
        Action::DryActivate => Ok(match run(&deployment.system, "dry-activate", Checks::Own, limit)? {
            status if status.success() => Ended::Done,
            status => Ended::Failed { reason: format!("dry-activate ended with {status}") },
        }),
        Action::Boot => Ok(match keep(&deployment.system, limit) {
            Ok(()) => Ended::Done,
            Err(error) => take_back(record, &format!("{error:#}")),
        }),
        Action::Test | Action::Switch => {
            if let Err(error) = activate(&deployment.system, Checks::Own, limit) {
                let reason = format!("{error:#}");
                // It says so before it does anything.
                let refused = error.downcast_ref() == Some(&judge::Flaw::NeedsReboot);
                return Ok(match refused && running().as_ref() == Some(&record.before) {
                    true => Ended::Refused { reason },
                    false => take_back(record, &reason),
                });
            }
            if deployment.rollback && !wait_for_confirmation(directory, deployment)? {
                let seconds = deployment.confirm_timeout;
                return Ok(take_back(record, &format!("nobody reached the machine within {seconds} s")));
            }
            if deployment.action == Action::Test {
                return Ok(Ended::Done);
            }
            directory.stage(&Stage::Finishing)?;
            Ok(match keep(&deployment.system, limit) {
                Ok(()) => Ended::Done,
                Err(error) => take_back(record, &format!("{error:#}")),
            })
        }
    }
}

fn wait_for_confirmation(directory: &Directory, deployment: &Deployment) -> Result<bool> {
    directory.stage(&Stage::Unconfirmed)?;
    confirmed_in_time(deployment, &Monotonic, || directory.is_confirmed())
}

fn confirmed_in_time(
    deployment: &Deployment,
    clock: &dyn Clock,
    is_confirmed: impl Fn() -> bool,
) -> Result<bool> {
    let limit = Duration::from_secs(deployment.confirm_timeout.into());
    let confirmed = clock::poll(clock, limit, STAGE_POLL, || Ok(is_confirmed().then_some(())))?;
    Ok(confirmed.is_some())
}

/// Lets the machine run a system now, and judges by looking whether it does.
fn activate(system: &StorePath, checks: Checks, limit: Duration) -> Result<()> {
    let before = failed_units();
    let status = run(system, "test", checks, limit)?;
    let failed: BTreeSet<String> = failed_units().difference(&before).cloned().collect();
    judge::activation(system, status.code(), running().as_ref(), &failed)
}

/// Makes a system the one that is booted, and the profile's current generation.
fn keep(system: &StorePath, limit: Duration) -> Result<()> {
    let root = Path::new(ROOT);
    let number = profile::add(root, system)?;
    // Nix itself leaves what it has added to the kernel, and a power cut would empty it.
    nix::unistd::sync();
    profile::switch(root, number)?;
    let status = run(system, "boot", Checks::Own, limit)?;
    if !status.success() {
        bail!("the boot loader was not installed (switch-to-configuration boot ended with {status})");
    }
    if profile::current(root).as_ref() != Some(system) {
        bail!("somebody else has changed the system profile meanwhile");
    }
    // Nor do boot loaders' installers all write out what they made.
    nix::unistd::sync();
    Ok(())
}

/// Makes the machine what it was before a deployment, if that was asked for.
fn take_back(record: &Record, reason: &str) -> Ended {
    let Deployment { rollback, system, .. } = &record.deployment;
    if !rollback {
        return Ended::Failed { reason: format!("{reason}; the machine was left as it is") };
    }
    terminal::tell(format_args!("going back to {}: {reason}", record.before.name()));
    match put_back(record) {
        Ok(()) => Ended::RolledBack { reason: reason.to_owned() },
        Err(error) => Ended::Failed {
            reason: format!("{reason}; and going back from {} failed: {error:#}", system.name()),
        },
    }
}

fn put_back(record: &Record) -> Result<()> {
    let root = Path::new(ROOT);
    let limit = Duration::from_secs(record.deployment.activation_timeout.into());
    let kept = profile::current(root).as_ref() == Some(&record.deployment.system)
        && profile::current_number(root) != record.generation;
    if kept && let Some(number) = record.generation {
        profile::switch(root, number)?;
        let system = profile::current(root).context("finding the generation to go back to")?;
        let status = run(&system, "boot", Checks::None, limit)?;
        if !status.success() {
            bail!(
                "the boot loader was not installed again (switch-to-configuration boot ended with {status})"
            );
        }
    }
    if record.deployment.action.activates() {
        // Also if the link says that it runs: an activation may have been cut short.
        activate(&record.before, Checks::None, limit)?;
    }
    Ok(())
}

fn switch_of(system: &StorePath) -> std::path::PathBuf {
    std::path::PathBuf::from(format!("{system}/bin/switch-to-configuration"))
}

/// Which pre-switch checks a system's own program runs first.
#[derive(Clone, Copy)]
enum Checks {
    Own,
    /// None, for the way back must not be barred: what runs is worse than what the check may find.
    None,
}

/// Asks a system whether it may be activated here, by its own pre-switch checks. Nothing is changed.
fn check(system: &StorePath, limit: Duration) -> Result<()> {
    let mut said = file::spool().context("making a file for what a check says")?;
    let output = || said.try_clone().context("opening what a check says");
    let mut program = switch_to(system, "check", Checks::Own);
    program.stdout(output()?).stderr(output()?);
    let status = end(program, "check", limit)?;
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    said.rewind().and_then(|()| said.read_to_end(&mut text)).context("reading what a check says")?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    // Before NixOS 25.11 it has no such action.
    if lines.iter().any(|line| line.starts_with("Usage: ") && !line.contains("check")) {
        return Ok(());
    }
    let last = &lines[lines.len().saturating_sub(CHECK_LINES)..];
    Err(refused(format!(
        "nothing was changed, for the pre-switch checks of {} failed: {}; mend that, or deploy it with --boot --reboot",
        system.name(),
        last.join(" / ")
    )))
}

/// Runs a system's own switch-to-configuration, for so long at the most.
fn run(system: &StorePath, action: &str, checks: Checks, limit: Duration) -> Result<ExitStatus> {
    end(switch_to(system, action, checks), action, limit)
}

fn switch_to(system: &StorePath, action: &str, checks: Checks) -> Command {
    use std::os::unix::process::CommandExt;
    let mut program = Command::new(switch_of(system));
    // Programs of an earlier, interrupted run must not be found half done by the next.
    program.arg(action).stdin(Stdio::null()).current_dir("/").process_group(0);
    if let Checks::None = checks {
        program.env("NIXOS_NO_CHECK", "1");
    }
    program
}

fn end(mut program: Command, action: &str, limit: Duration) -> Result<ExitStatus> {
    let child = program.spawn();
    let mut child = child.with_context(|| format!("starting {}", program.get_program().display()))?;
    match end_within(limit, &mut child, &Monotonic)? {
        Some(status) => Ok(status),
        None => bail!("switch-to-configuration {action} did not end within {} s", limit.as_secs()),
    }
}

/// Waits for a program, and kills it with all of its process group if it does not end within `limit`.
fn end_within(limit: Duration, child: &mut Child, clock: &dyn Clock) -> Result<Option<ExitStatus>> {
    let ended = || child.try_wait().context("waiting for switch-to-configuration");
    let status = clock::poll(clock, limit, STAGE_POLL, ended)?;
    if status.is_none() {
        let group = nix::unistd::Pid::from_raw(child.id().cast_signed());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = child.wait();
    }
    Ok(status)
}

fn failed_units() -> BTreeSet<String> {
    unit::failed().unwrap_or_default()
}

/// Restarts the machine: by systemd, or at once where something else is the init.
///
/// Such a machine runs from memory, as rescue systems do, and there is nothing to be stopped in an orderly way.
pub fn reboot() -> Result<()> {
    if Path::new(SYSTEMD).exists() {
        return unit::reboot();
    }
    power::restart()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::process::CommandExt;

    use nix::sys::wait::{Id, WaitPidFlag, waitid};

    use super::*;
    use crate::sys::clock::testing::Stepped;

    fn deployment(confirm_timeout: u32, activation_timeout: u32) -> Deployment {
        let system = StorePath::from_base_name(&format!("{}-nixos", "a".repeat(32))).unwrap();
        Deployment { system, action: Action::Switch, rollback: true, confirm_timeout, activation_timeout }
    }

    #[test]
    fn a_confirmation_counts_until_its_time_is_over() {
        for (there_at, counts) in [(0, true), (59, true), (60, true), (61, false), (1000, false)] {
            let (clock, there_at) = (Stepped::start(), Duration::from_secs(there_at));
            let is_confirmed = || clock.passed() >= there_at;
            let confirmed = confirmed_in_time(&deployment(60, 600), &clock, is_confirmed).unwrap();
            let waited = there_at.min(Duration::from_secs(60));
            assert_eq!((confirmed, clock.passed()), (counts, waited), "at {there_at:?}");
        }
    }

    #[test]
    fn the_timer_takes_a_system_back_a_minute_after_all_that_it_may_need() {
        for (confirm, activation, after) in [(60, 600, 720), (5, 5, 70), (3600, 86400, 90060)] {
            assert_eq!(rollback_after(&deployment(confirm, activation)), Duration::from_secs(after));
        }
        let most = Duration::from_secs(2 * u64::from(u32::MAX) + 60);
        assert_eq!(rollback_after(&deployment(u32::MAX, u32::MAX)), most);
    }

    #[test]
    fn a_program_that_does_not_end_in_time_is_killed_with_all_that_it_started() {
        // The pipe ends when nobody has its other end any more.
        let mut ends = Command::new("sh");
        ends.args(["-c", "sleep 86400 & echo started; wait"]).process_group(0).stdout(Stdio::piped());
        let mut child = ends.spawn().unwrap();
        let mut said = child.stdout.take().unwrap();
        said.read_exact(&mut [0; 8]).unwrap();
        let clock = Stepped::start();
        let limit = Duration::from_secs(600);
        assert_eq!(end_within(limit, &mut child, &clock).unwrap(), None);
        assert_eq!(clock.passed(), limit);
        assert_eq!(said.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn the_status_of_a_program_that_ends_in_time_is_its_own() {
        let mut child =
            Command::new("sh").args(["-c", "read word; exit 7"]).stdin(Stdio::piped()).spawn().unwrap();
        let clock = Stepped::start();
        let (input, pid) = (child.stdin.take(), nix::unistd::Pid::from_raw(child.id().cast_signed()));
        clock.at(Duration::from_secs(500), move || {
            drop(input);
            waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        });
        let status = end_within(Duration::from_secs(600), &mut child, &clock).unwrap();
        assert_eq!(status.and_then(|status| status.code()), Some(7));
        assert_eq!(clock.passed(), Duration::from_secs(500));
    }
}
