//! The far end: this program on another machine, reached through the user's own OpenSSH client.
//!
//! [`start`] connects, makes sure that the right program is there, becomes root if need be, and
//! hands over two streams. What is said on them is somebody else's business.

mod address;
pub mod askpass;
mod bootstrap;
mod client;
mod connection;
mod keys;
mod questions;
pub mod server;
mod talk;

use std::cell::Cell;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command};
use std::sync::Arc;

use anyhow::{Context, Result};

pub use address::{Address, AddressError};
pub use client::{ClientOption, OptionError, Settings};
pub use connection::Connection;
pub use keys::{KeyPair, fingerprint, public_of};
pub use questions::{Ask, Manner, Questions};

use askpass::Desk;
use bootstrap::Bootstrap;
use connection::Pipes;
use questions::Inquiry;

use crate::sys::secret::Secret;

/// The program that shall run on the far end.
#[derive(Clone, Debug)]
pub struct FarBinary {
    /// What is sent if it is not there.
    pub file: PathBuf,
    pub size: u64,
    pub sha256: [u8; 32],
    /// Where it may be already, such as `/nix/store/…/bin/nixos-install-via`.
    pub store_path: Option<PathBuf>,
    /// What `uname -m` says where it can run.
    pub machine: String,
}

/// A far end that runs. From its first byte to its last, what is read and written here is its own.
pub struct Far {
    pub input: ChildStdin,
    pub output: BufReader<ChildStdout>,
    pub connection: Connection,
}

impl Far {
    /// Closes the streams and waits until the far end has ended well.
    pub fn finish(self) -> Result<()> {
        let Far { input, output, connection } = self;
        drop((input, output));
        connection.finish()
    }
}

/// Starts the program with `words` as root on another machine. Each line that ssh or the far end
/// says on stderr goes to `heard`, safe to be shown.
///
/// A directory that had to be made for the program is named to it by `--remove DIR` behind the
/// words. The program may remove it as soon as it runs; otherwise that is done when it has ended.
pub fn start(
    address: &Address,
    settings: &Settings,
    binary: &FarBinary,
    words: &[&str],
    questions: &Questions,
    heard: impl Fn(&str) + Send + 'static,
) -> Result<Far> {
    begin(address, settings, binary, words, questions, heard)
        .with_context(|| format!("starting the far end on {address}"))
}

/// Runs a command on a machine whose answer is a far end at once: that of a rescue.
pub fn reach(address: &Address, settings: &Settings, remote: &str, questions: &Questions) -> Result<Far> {
    let client = client::command(address, settings, remote);
    let inquiry = Arc::new(questions.of_connection());
    let ((input, output), connection) = connect(client, questions, &inquiry, |_| ())?;
    Ok(Far { input, output, connection })
}

/// Starts the client, whose questions come to us.
fn connect(
    mut client: Command,
    questions: &Questions,
    inquiry: &Arc<Inquiry>,
    heard: impl Fn(&str) + Send + 'static,
) -> Result<(Pipes, Connection)> {
    // Who has set a program of their own for such questions wants to see that one.
    let desk = if questions.are_answered() && std::env::var_os("SSH_ASKPASS").is_none() {
        let desk = Desk::open(Arc::clone(inquiry), questions.program())?;
        desk.serve(&mut client);
        Some(desk)
    } else {
        None
    };
    Connection::start(client, desk, heard)
}

fn begin(
    address: &Address,
    settings: &Settings,
    binary: &FarBinary,
    words: &[&str],
    questions: &Questions,
    heard: impl Fn(&str) + Send + 'static,
) -> Result<Far> {
    let inquiry = Arc::new(questions.of_connection());
    let bootstrap = Bootstrap::new(binary, settings.sudo, words);
    let client = client::command(address, settings, &bootstrap.remote());
    let ((mut input, mut output), connection) = connect(client, questions, &inquiry, heard)?;
    let question = format!("Password for sudo on {address}:");
    // One that is asked for again was wrong, and a person may know better.
    let first = Cell::new(settings.sudo_password.as_deref());
    let password = || match first.take() {
        Some(password) => Some(Secret::new(password.bytes().to_vec())),
        None => inquiry.password(&question),
    };
    match bootstrap.converse(&mut input, &mut output, &password) {
        Ok(()) => Ok(Far { input, output, connection }),
        Err(end) => {
            drop((input, output));
            Err(end.told(|| connection.broken()))
        }
    }
}
