//! The door of a rescue: the process that lets the near end in, and does what it asks for.
//!
//! It is not the machine's first process, so that it can fail: then it is begun again, and what it had mounted is gone.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Configuration, say};
use crate::ssh::server::{self, Door, Timeouts};
use crate::sys::clock::Monotonic;
use crate::sys::{own_mounts, power};
use crate::system::host_keys;
use crate::system::rescue::{HOST_KEYS, Visits};
use crate::wire::server::{Place, Rescue, serve};

/// What this program is called where it is the door.
pub const NAME: &str = "rescue-door";

// Is there once the disk is not what it was.
const TOUCHED: &str = "/run/touched";
const BUFFER: usize = 64 << 10;

/// Starts the door.
pub fn start() -> Result<Child> {
    Command::new("/proc/self/exe").arg0(NAME).spawn().context("starting the SSH server")
}

/// Tells whether there is no old system any more that the machine could go back to.
pub fn has_touched() -> bool {
    // A file that cannot be looked for is none that says that all is well.
    Path::new(TOUCHED).try_exists().unwrap_or(true)
}

/// Tells whether this process is the door.
pub fn is_it(name: Option<&OsStr>) -> bool {
    name == Some(OsStr::new(NAME)) && Configuration::is_there()
}

/// Lets the near end in, for as long as the process lives.
pub fn main() -> ! {
    if let Err(error) = open() {
        say(&format!("{error:#}"));
    }
    std::process::exit(1);
}

fn open() -> Result<()> {
    own_mounts::make()?;
    let configuration = Configuration::read()?;
    let visits = Visits::new(Duration::from_secs(configuration.timeout), Arc::new(Monotonic));
    if has_touched() {
        visits.touched();
    }
    let dead_man = Arc::clone(&visits);
    thread::spawn(move || {
        dead_man.wait();
        say("nobody has come; restarting into what was installed before");
        let _ = power::restart();
    });
    let keys = host_keys::read_in(&Path::new("/").join(HOST_KEYS))?;
    let door = Door {
        host_keys: keys.into_iter().map(|key| key.private).collect(),
        authorized: configuration.authorized,
        timeouts: Timeouts::default(),
    };
    let listeners = listen(configuration.port)?;
    say(&format!("waiting for the near end on port {}", configuration.port));
    let touching = Arc::clone(&visits);
    let rescue = Arc::new(Rescue::new(has_touched(), move || {
        if has_touched() {
            return Ok(());
        }
        File::create(TOUCHED).context("noting that the disk is about to be written")?;
        say("the disk is being written; from here on the rescue stays");
        touching.touched();
        Ok(())
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

fn listen(port: u16) -> Result<Vec<TcpListener>> {
    let both = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    // A socket of IPv6 hears both, unless the kernel has no IPv6.
    let listener = both.or_else(|_| TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))));
    Ok(vec![listener.with_context(|| format!("listening on port {port}"))?])
}
