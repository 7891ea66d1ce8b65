//! A client of the Nix daemon, with which a running system gets new store paths.
//!
//! A live root is never written behind Nix's back: locks, temporary roots against a garbage
//! collection, the read-only store and the database stay the daemon's business. The protocol is
//! Nix's "worker protocol" (`src/libstore/worker-protocol*`, `remote-store.cc` and `daemon.cc` of
//! Nix): a client says its version and hears the daemon's, then each request is an operation code
//! and arguments, on which the daemon sends messages until it is done, and then an answer.
//!
//! [`wire`] writes values, [`channel`] carries bytes, [`log`] reads messages, [`link`] holds the
//! conversation, [`framed`] streams NARs, and this file knows the operations.

mod channel;
mod error;
mod framed;
mod link;
mod log;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::PathInfo;
use super::path::StorePath;
use channel::Channel;
pub use error::DaemonError;
use framed::{Framed, Measured};
use link::Link;
pub use link::{Greeting, Trust};
use wire::{Encoder, Stop};

/// Where the daemon of a running system listens.
pub const SOCKET: &str = "/nix/var/nix/daemon-socket/socket";

const IS_VALID_PATH: u64 = 1;
const ADD_TEMP_ROOT: u64 = 11;
const ADD_INDIRECT_ROOT: u64 = 12;
const QUERY_PATH_INFO: u64 = 26;
const QUERY_VALID_PATHS: u64 = 31;
const ADD_MULTIPLE_TO_STORE: u64 = 44;

// As many requests for temporary roots, and as many answers, fit into any pipe.
const AT_ONCE: usize = 16;

/// Whether the daemon may first fetch what is missing from its caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Substitute {
    Yes,
    No,
}

/// Whether paths need a signature by a key that the daemon trusts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signatures {
    Check,
    /// For trusted users, which root is; for others the daemon checks all the same.
    Waive,
}

/// What writes the NAR of a path.
pub type NarSource<'a> = dyn FnMut(&PathInfo, &mut dyn Write) -> Result<()> + 'a;

/// A connection to a daemon. The temporary roots it asked for last as long as it does.
pub struct Daemon<'a> {
    link: Link<'a>,
    greeting: Greeting,
    // Last: the connection is closed before the child is waited for.
    _child: Option<Ended>,
}

impl<'a> Daemon<'a> {
    /// Connects to the daemon that listens at `socket`; `heard` gets each line that it logs for us.
    pub fn connect(socket: &Path, heard: impl FnMut(&str) + 'a) -> Result<Self> {
        let connecting = || format!("connecting to the Nix daemon at {}", socket.display());
        let output = UnixStream::connect(socket).with_context(connecting)?;
        let input = output.try_clone().with_context(connecting)?;
        Daemon::over(input.into(), output.into(), heard).with_context(connecting)
    }

    /// Starts a daemon of our own that speaks on its stdin and stdout, such as `nix-daemon --stdio`.
    pub fn start(command: &mut Command, heard: impl FnMut(&str) + 'a) -> Result<Self> {
        let name = Path::new(command.get_program()).display().to_string();
        let starting = || format!("starting {name}");
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = Ended(spawned.with_context(starting)?);
        let output = child.0.stdin.take().expect("stdin is piped");
        let input = child.0.stdout.take().expect("stdout is piped");
        let daemon = Daemon::over(input.into(), output.into(), heard).with_context(starting)?;
        Ok(Daemon { _child: Some(child), ..daemon })
    }

    /// Speaks with a daemon over any two streams, or over one that goes both ways.
    pub fn over(input: OwnedFd, output: OwnedFd, heard: impl FnMut(&str) + 'a) -> Result<Self> {
        let mut link = Link::new(Channel::new(input, output)?, Box::new(heard));
        let greeting = link.greet().context("greeting the Nix daemon")?;
        Ok(Daemon { link, greeting, _child: None })
    }

    /// Returns who answered.
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// Keeps paths, valid or yet to come, from garbage collections while the connection lasts.
    pub fn add_temp_roots<'p>(&mut self, paths: impl IntoIterator<Item = &'p StorePath>) -> Result<()> {
        let paths: Vec<&StorePath> = paths.into_iter().collect();
        for some in paths.chunks(AT_ONCE) {
            self.add_few_temp_roots(some).context("asking the Nix daemon for temporary roots")?;
        }
        Ok(())
    }

    fn add_few_temp_roots(&mut self, paths: &[&StorePath]) -> Result<(), DaemonError> {
        let one = |all: Encoder, path: &&StorePath| all.number(ADD_TEMP_ROOT).string(&path.to_string());
        let requests = paths.iter().fold(Encoder::default(), one);
        self.link.send_unheard(&requests.0)?;
        let mut outcome = Ok(());
        // Each request has its answer, also after one that failed.
        for _ in paths {
            match self.link.listen() {
                Ok(()) => drop(self.link.read(|from| from.number())?),
                Err(error @ DaemonError::Said(_)) => outcome = outcome.and(Err(error)),
                Err(error) => return Err(error),
            }
        }
        outcome
    }

    /// Makes a symlink outside of the store, which points to a store path, a lasting root.
    pub fn add_indirect_root(&mut self, link: &Path) -> Result<()> {
        let shown = link.to_str().with_context(|| format!("{} is not UTF-8", link.display()))?;
        self.link
            .request(Encoder::operation(ADD_INDIRECT_ROOT).string(shown))
            .and_then(|()| self.link.read(|from| from.number()))
            .map(drop)
            .with_context(|| format!("asking the Nix daemon to make {shown} a root"))
    }

    pub fn is_valid_path(&mut self, path: &StorePath) -> Result<bool> {
        self.link
            .request(Encoder::operation(IS_VALID_PATH).string(&path.to_string()))
            .and_then(|()| self.link.read(|from| from.number()))
            .map(|answer| answer != 0)
            .with_context(|| format!("asking the Nix daemon whether {path} is valid"))
    }

    /// Returns those of `paths` that are valid.
    pub fn query_valid_paths<'p>(
        &mut self,
        paths: impl IntoIterator<Item = &'p StorePath>,
        substitute: Substitute,
    ) -> Result<BTreeSet<StorePath>> {
        let paths: BTreeSet<&StorePath> = paths.into_iter().collect();
        self.valid_among(&paths, substitute).context("asking the Nix daemon which paths are valid")
    }

    fn valid_among(
        &mut self,
        paths: &BTreeSet<&StorePath>,
        substitute: Substitute,
    ) -> Result<BTreeSet<StorePath>, DaemonError> {
        let request = Encoder::operation(QUERY_VALID_PATHS)
            .strings(paths.iter().map(|path| path.to_string()))
            .number((substitute == Substitute::Yes).into());
        self.link.request(request)?;
        let count = self.link.read(|from| from.count(paths.len() as u64))?;
        let mut valid = BTreeSet::new();
        for _ in 0..count {
            let asked = |path: &StorePath| paths.contains(path);
            const ODD: Stop = Stop::Garbled("it tells of paths that nobody asked about");
            valid.insert(self.link.read(|from| Some(from.path()?).filter(asked).ok_or(ODD))?);
        }
        Ok(valid)
    }

    /// Returns what the daemon knows of a path. None if it is not valid.
    pub fn query_path_info(&mut self, path: &StorePath) -> Result<Option<PathInfo>> {
        self.info(path).with_context(|| format!("asking the Nix daemon about {path}"))
    }

    fn info(&mut self, path: &StorePath) -> Result<Option<PathInfo>, DaemonError> {
        self.link.request(Encoder::operation(QUERY_PATH_INFO).string(&path.to_string()))?;
        match self.link.read(|from| from.number())? {
            0 => Ok(None),
            _ => self.link.read(|from| from.info(path)).map(Some),
        }
    }

    /// Adds paths, each given after all it refers to, in one stream; returns how many were missing.
    ///
    /// For each missing path, in order, `nar` writes its NAR of exactly `nar_size` bytes. What is
    /// valid already is left alone, and for `nar` to pass over. All `paths` are temporary roots
    /// from before the first question on, so none of them goes while the connection lasts. The
    /// daemon hashes what it gets, and forgets `ultimate` and `registration_time`.
    ///
    /// On an error those paths are valid that came before the one it is about; looking again finds
    /// what is left. Nix's own daemon tells of an error only when the stream has ended, so that a
    /// long one is better cut into several calls. One older than 2.18 also fails when somebody else
    /// adds one of the missing paths meanwhile.
    pub fn add_multiple_to_store(
        &mut self,
        paths: &[PathInfo],
        signatures: Signatures,
        nar: &mut NarSource,
    ) -> Result<usize> {
        self.add_temp_roots(paths.iter().map(|info| &info.path))?;
        let valid = self.query_valid_paths(paths.iter().map(|info| &info.path), Substitute::No)?;
        // A daemon older than 2.18 leaves the NAR of a valid path unread, and takes it for the next path.
        let missing: Vec<&PathInfo> = paths.iter().filter(|info| !valid.contains(&info.path)).collect();
        if !missing.is_empty() {
            self.stream(&missing, signatures, nar).context("adding paths by the Nix daemon")?;
        }
        Ok(missing.len())
    }

    fn stream(&mut self, missing: &[&PathInfo], signatures: Signatures, nar: &mut NarSource) -> Result<()> {
        const REPAIR: u64 = 0;
        let waive = (signatures == Signatures::Waive).into();
        self.link.send(&Encoder::operation(ADD_MULTIPLE_TO_STORE).number(REPAIR).number(waive).0)?;
        let mut framed = Framed::new(&mut self.link);
        let written = write_all(&mut framed, missing, nar);
        if let Some(failure) = framed.failure() {
            return Err(failure.clone().into());
        }
        framed.end()?;
        let answer = self.link.listen();
        // After an error of our own the stream is too short, and the daemon's complaint about that is no news.
        match (written, answer) {
            (Err(error), Ok(()) | Err(DaemonError::Said(_))) => Err(error),
            (_, answer) => Ok(answer?),
        }
    }
}

fn write_all(framed: &mut Framed, missing: &[&PathInfo], nar: &mut NarSource) -> Result<()> {
    framed.write_all(&Encoder::default().number(missing.len() as u64).0)?;
    for info in missing {
        framed.write_all(&Encoder::default().info(info).0)?;
        let mut measured = Measured::new(&mut *framed, info);
        let written = nar(info, &mut measured);
        measured.end(written).with_context(|| format!("sending {}", info.path))?;
    }
    Ok(())
}

/// A child that does not outlive the value.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It ends by itself when its stdin does, unless it hangs.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
