//! The transient units of a deployment: what systemd does for us while nobody is connected.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::sys::command;

// Neither hangs on the targets that the system in question may stop.
const STANDS_ALONE: &str = "--property=DefaultDependencies=no";

/// Returns the name of the service that performs a deployment.
pub fn name(token: &str) -> String {
    format!("nixos-install-via-{token}.service")
}

fn timer(token: &str) -> String {
    format!("nixos-install-via-{token}-rollback")
}

fn program(name: &str) -> Command {
    let own = Path::new("/run/current-system/sw/bin").join(name);
    command::new(if own.exists() { own } else { name.into() })
}

/// Starts the service, with what it says going to `log`.
pub fn start(token: &str, own: &Path, log: &Path) -> Result<()> {
    let to_log = |stream: &str| format!("--property={stream}=append:{}", log.display());
    let mut command = program("systemd-run");
    command
        .args(["--collect", "--no-ask-password", "--quiet", "--service-type=exec", STANDS_ALONE])
        .arg(format!("--unit={}", name(token)))
        .arg("--description=Deployment of a NixOS system")
        .args([to_log("StandardOutput"), to_log("StandardError")])
        .arg(own)
        .args(["activate", token]);
    command::output(&mut command).map(drop).context("starting a transient unit")
}

/// Takes the deployment back after `limit`, unless it is disarmed.
pub fn arm(token: &str, own: &Path, limit: Duration) -> Result<()> {
    let mut command = program("systemd-run");
    command
        .args(["--collect", "--no-ask-password", "--quiet", "--timer-property=AccuracySec=1s"])
        .args([STANDS_ALONE, "--timer-property=DefaultDependencies=no"])
        .arg(format!("--unit={}", timer(token)))
        .arg(format!("--on-active={}s", limit.as_secs()))
        .arg("--description=Rollback of a NixOS system")
        .arg(own)
        .args(["rollback", token]);
    command::output(&mut command).map(drop).context("arming a transient timer")
}

/// Stops the timer. It goes by itself where that fails, and then finds nothing to do.
pub fn disarm(token: &str) {
    let _ = quietly(program("systemctl").arg("stop").arg(format!("{}.timer", timer(token))));
}

/// Kills the service and all that it started.
pub fn stop(token: &str) {
    let _ = quietly(program("systemctl").args(["kill", "--signal=KILL"]).arg(name(token)));
    let _ = quietly(program("systemctl").arg("stop").arg(name(token)));
}

/// Tells whether the service is there.
pub fn lives(token: &str) -> bool {
    // Restarted itself, systemd may be deaf for a moment: only a clear answer counts.
    let state =
        program("systemctl").args(["show", "--property=ActiveState", "--value"]).arg(name(token)).output();
    state.map_or(true, |output| {
        let state = String::from_utf8_lossy(&output.stdout);
        !matches!(state.trim(), "inactive" | "failed")
    })
}

/// Returns the units that have failed.
pub fn failed() -> Result<BTreeSet<String>> {
    let listed =
        command::output(program("systemctl").args(["list-units", "--failed", "--plain", "--no-legend"]))?;
    let names = String::from_utf8_lossy(&listed);
    let own = |name: &&str| !name.starts_with("nixos-install-via-");
    Ok(names
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(own)
        .map(str::to_owned)
        .collect())
}

pub fn reboot() -> Result<()> {
    command::output(program("systemctl").args(["--no-block", "reboot"])).map(drop).context("restarting")
}

fn quietly(command: &mut Command) -> std::io::Result<std::process::ExitStatus> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()
}
