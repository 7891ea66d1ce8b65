//! The rescue: this program as the first of a machine that is about to get another system.
//!
//! It runs from memory, with the drivers and the network that the machine needs, and lets one near end in. If
//! nobody comes, or nobody comes back, before the disk is touched, the machine goes back to what it was.

use std::fs::{self, OpenOptions};
use std::io::{BufReader, BufWriter, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

use crate::plan::Carried;
use crate::run;
use crate::ssh::server::{self, Door};
use crate::sys::{module, power};
use crate::system::host_keys;
use crate::system::rescue::{HOST_KEYS, Visits};
use crate::wire::server::{Place, Rescue, serve};

/// Where the initrd has what the near end said.
pub const CONFIGURATION: &str = "rescue.json";
/// Where it has the modules, named in the order in which they are loaded.
pub const MODULES: &str = "modules";

// How long the machine stands still after a failure, so that it can be read on its console.
const LAST_WORDS: Duration = Duration::from_secs(15);
// How long network cards may need to appear.
const PATIENCE: Duration = Duration::from_secs(60);
const BUFFER: usize = 64 << 10;

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

/// Tells whether this process is the first one of a rescue.
pub fn is_it() -> bool {
    std::process::id() == 1 && Path::new("/").join(CONFIGURATION).exists()
}

/// Runs until the machine restarts.
pub fn main() -> ! {
    if let Err(error) = live() {
        say(&format!("{error:#}"));
        say("restarting into what was installed before");
        sleep(LAST_WORDS);
    }
    let _ = power::restart();
    // The kernel panics if its first process ends, and restarts the machine then, as it was told.
    std::process::exit(1);
}

fn live() -> Result<()> {
    mount_all()?;
    say("the rescue has begun");
    let text = fs::read(Path::new("/").join(CONFIGURATION)).context("reading the configuration")?;
    let configuration: Configuration = serde_json::from_slice(&text).context("reading the configuration")?;
    let visits = Visits::new(Duration::from_secs(configuration.timeout));
    // From here on it goes back, even if something below hangs.
    let dead_man = Arc::clone(&visits);
    thread::spawn(move || {
        dead_man.wait();
        say("nobody has come; restarting into what was installed before");
        let _ = power::restart();
    });
    load_modules();
    match run::bring_up(&configuration.network, PATIENCE) {
        Ok(lines) => lines.iter().for_each(|line| say(line)),
        // What could be set up may be all that it takes; if not, nobody comes.
        Err(error) => say(&format!("{error:#}")),
    }
    let keys = host_keys::read_in(&Path::new("/").join(HOST_KEYS))?;
    let door = Door {
        host_keys: keys.into_iter().map(|key| key.private).collect(),
        authorized: configuration.authorized,
    };
    let listeners = listen(configuration.port)?;
    say(&format!("waiting for the near end on port {}", configuration.port));
    let touching = Arc::clone(&visits);
    let rescue = Arc::new(Rescue::new(move || {
        say("the disk is being written; from here on the rescue stays");
        touching.touched();
    }));
    server::open(&door, listeners, visits, move |input, output| {
        say("a near end is there");
        let input = BufReader::with_capacity(BUFFER, input);
        let output = BufWriter::with_capacity(BUFFER, output);
        match serve(Place::Rescue(&rescue), input, output) {
            Ok(()) => 0,
            Err(error) => {
                say(&format!("{error:#}"));
                1
            }
        }
    })
    .map(|never| match never {})
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

fn listen(port: u16) -> Result<Vec<TcpListener>> {
    let both = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    // A socket of IPv6 hears both, unless the kernel has no IPv6.
    let listener = both.or_else(|_| TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))));
    Ok(vec![listener.with_context(|| format!("listening on port {port}"))?])
}

/// Says a line on every console: through the kernel's log, which all of them show.
fn say(text: &str) {
    // Below what a `quiet` kernel shows.
    let line = format!("<3>nixos-install-via: {text}\n");
    let told =
        OpenOptions::new().write(true).open("/dev/kmsg").and_then(|mut log| log.write_all(line.as_bytes()));
    if told.is_err() {
        eprintln!("nixos-install-via: {text}");
    }
}
