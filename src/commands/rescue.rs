//! The rescue: this program as the first of a machine that is about to get another system.
//!
//! It runs from memory, with the drivers and the network that the machine needs, and lets one near end in by a
//! [`door`]. If nobody comes, or nobody comes back, before the disk is touched, the machine goes back to what it was;
//! and so it does if the door fails. Afterwards there is nothing to go back to, and the door is opened again.

pub mod door;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitStatus, wait};
use serde::{Deserialize, Serialize};

use crate::plan::Carried;
use crate::run;
use crate::sys::clock::Monotonic;
use crate::sys::{module, power, terminal};
use crate::system::rescue::Visits;

/// Where the initrd has what the near end said.
pub const CONFIGURATION: &str = "rescue.json";
/// Where it has the modules, named in the order in which they are loaded.
pub const MODULES: &str = "modules";

// How long the machine stands still after a failure, so that it can be read on its console.
const FAILURE_INTERVAL: Duration = Duration::from_secs(15);
// How long network cards may need to appear.
const CARDS_TIMEOUT: Duration = Duration::from_secs(60);
// Before a door that has failed is opened again.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);

/// What the near end tells the rescue, by the initrd.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    /// The public key of the near end, as a line.
    pub authorized: String,
    pub network: Carried,
    pub port: u16,
    /// After how many seconds alone the machine goes back, as long as its disk is what it was.
    pub timeout: u64,
}

impl Configuration {
    fn path() -> PathBuf {
        Path::new("/").join(CONFIGURATION)
    }

    /// Tells whether this is a rescue.
    fn is_there() -> bool {
        Self::path().exists()
    }

    fn read() -> Result<Configuration> {
        let text = fs::read(Self::path()).context("reading the configuration")?;
        serde_json::from_slice(&text).context("reading the configuration")
    }
}

/// Tells whether this process is the first one of a rescue.
pub fn is_it() -> bool {
    std::process::id() == 1 && Configuration::is_there()
}

/// Runs until the machine restarts.
pub fn main() -> ! {
    if let Err(error) = live() {
        say(&format!("{error:#}"));
        say("restarting into what was installed before");
        sleep(FAILURE_INTERVAL);
    }
    let _ = power::restart();
    // The kernel panics if its first process ends, and restarts the machine then, as it was told.
    std::process::exit(1);
}

fn live() -> Result<()> {
    mount_all()?;
    say("the rescue has begun");
    let configuration = Configuration::read()?;
    // It goes back even if something below hangs. The door has a dead man of its own.
    let visits = Visits::new(Duration::from_secs(configuration.timeout), Arc::new(Monotonic));
    let dead_man = Arc::clone(&visits);
    thread::spawn(move || {
        dead_man.wait();
        say("the rescue hangs; restarting into what was installed before");
        let _ = power::restart();
    });
    load_modules();
    match run::bring_up(&configuration.network, CARDS_TIMEOUT) {
        Ok(lines) => lines.iter().for_each(|line| say(line)),
        // What could be set up may be all that it takes; if not, nobody comes.
        Err(error) => say(&format!("{error:#}")),
    }
    let _arrived = visits.arrive();
    loop {
        let status = wait_for(door::start()?.id())?;
        if !door::has_touched() {
            bail!("the SSH server has ended ({status})");
        }
        say(&format!("the SSH server has ended ({status}) and begins again, for the disk is being written"));
        sleep(REOPEN_INTERVAL);
    }
}

/// Waits until a process ends, and for all that have nobody else to wait for them; tells how it ended.
fn wait_for(process: u32) -> Result<String> {
    loop {
        match wait().context("waiting for the SSH server")? {
            WaitStatus::Exited(pid, code) if pid.as_raw() == process as i32 => {
                return Ok(format!("exit code {code}"));
            }
            WaitStatus::Signaled(pid, signal, _) if pid.as_raw() == process as i32 => {
                return Ok(signal.to_string());
            }
            _ => (),
        }
    }
}

/// Mounts what programs expect of a kernel.
fn mount_all() -> Result<()> {
    for (kind, place, options) in [
        ("proc", "/proc", None),
        ("sysfs", "/sys", None),
        ("devtmpfs", "/dev", None),
        ("tmpfs", "/run", Some("mode=755")),
    ] {
        fs::create_dir_all(place).with_context(|| format!("making {place}"))?;
        mount(Some(kind), place, Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("mounting {place}"))?;
    }
    // Programs look for what they are given on descriptors here.
    let _ = std::os::unix::fs::symlink("/proc/self/fd", "/dev/fd");
    Ok(())
}

/// Loads the modules in the order of their names. One that fails is told of; what it was for may be missed.
fn load_modules() {
    let entries = fs::read_dir(Path::new("/").join(MODULES)).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
    files.sort();
    for file in &files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let contents = fs::read(file).with_context(|| format!("reading the module {name}"));
        let loaded = contents.and_then(|contents| module::insert(&contents, &name));
        if let Err(error) = loaded {
            say(&format!("{error:#}"));
        }
        // It is in the kernel now, and memory is short.
        let _ = fs::remove_file(file);
    }
    say(&format!("loaded {} modules", files.len()));
}

/// Says a line on every console: through the kernel's log, which all of them show.
fn say(text: &str) {
    // Below what a `quiet` kernel shows.
    let line = format!("<3>nixos-install-via: {text}\n");
    let told =
        OpenOptions::new().write(true).open("/dev/kmsg").and_then(|mut log| log.write_all(line.as_bytes()));
    if told.is_err() {
        terminal::tell(format_args!("nixos-install-via: {text}"));
    }
}
