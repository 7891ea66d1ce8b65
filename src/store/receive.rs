//! Store objects that come as archives, into a root that no Nix uses.
//!
//! An object is restored below a hidden directory of the store while its NAR is hashed, and renamed into
//! place once the hash is the expected one. Registering comes after, in [`super::db`].

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};

use anyhow::{Context, Result};
use nix::unistd::syncfs;

use super::PathInfo;
use super::copy::{Staging, c_name, expect, make_store, rename};
use super::hash::Hashing;
use super::lanes::Digest;
use super::{nar, tree};
use crate::sys::pieces::Pieces;

// What may wait between who writes an archive and who restores it.
const WAITING: usize = 16;
const PIECE: usize = 64 << 10;

/// The store of a root that is being filled. One at a time for each root.
pub struct Inbox {
    store: OwnedFd,
    staging: Staging,
}

impl Inbox {
    pub fn of(root: &Path) -> Result<Inbox> {
        let store = make_store(root)?;
        let staging = Staging::new(store.as_fd(), root)?;
        Ok(Inbox { store, staging })
    }

    /// Publishes the object whose NAR `write` writes. What an earlier run left in its place is replaced.
    ///
    /// An error of `write` comes first, then one of the archive or the disk, then a
    /// [`super::copy::CopyError`] if it was another object's NAR.
    pub fn receive(&self, info: &PathInfo, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let name = c_name(&info.path);
        let staged = self.stage(info, write);
        if staged.is_err() {
            // The whole staging directory goes at the end in any case.
            let _ = tree::remove(self.staging.dir.as_fd(), &name);
        }
        staged?;
        tree::remove(self.store.as_fd(), &name)?;
        rename(self.staging.dir.as_fd(), self.store.as_fd(), &name)
            .with_context(|| format!("publishing {}", info.path))
    }

    fn stage(&self, info: &PathInfo, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let dir = self.staging.dir.as_fd().try_clone_to_owned().context("copying a descriptor")?;
        let (sender, receiver) = sync_channel(WAITING);
        std::thread::scope(|scope| {
            let name = std::ffi::OsStr::new(info.path.base_name());
            let pieces = Pieces::new(move || Ok(receiver.recv().ok()));
            let restoring = scope.spawn(|| nar::restore(pieces, dir, name));
            let mut hashing = Hashing::new(io::BufWriter::with_capacity(PIECE, Outlet(sender)));
            let written = write(&mut hashing).and_then(|()| hashing.flush().context("restoring"));
            let (hash, size) = hashing.finish();
            let restored = restoring.join().expect("restoring does not panic");
            match written {
                // Nobody took it: why, the other side knows.
                Err(error) if restored.is_err() && is_cut_off(&error) => restored,
                Err(error) => Err(error),
                Ok(()) => restored,
            }
            .with_context(|| format!("restoring {}", info.path))?;
            Ok(expect(info, Digest { hash, size })?)
        })
    }

    /// Returns a file without a name, where what is received goes.
    pub fn scratch(&self) -> io::Result<File> {
        tempfile::tempfile_in(format!("/proc/self/fd/{}", self.staging.dir.as_fd().as_raw_fd()))
    }

    /// Puts all that was published on the disk.
    pub fn sync(&self) -> Result<()> {
        syncfs(&self.store).context("syncing the store")
    }

    pub fn finish(self) -> Result<()> {
        self.staging.finish()
    }
}

fn is_cut_off(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Hands pieces of an archive to another thread.
struct Outlet(SyncSender<Vec<u8>>);

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(|_| io::Error::from(ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::copy::CopyError;
    use crate::store::db::Database;
    use crate::store::hash::NarHash;
    use crate::store::testing::{Nix, dump};

    #[test]
    fn what_arrives_is_what_was_sent_or_nothing() {
        let nix = Nix::new();
        nix.fill();
        let infos = Database::open(nix.root()).unwrap().unwrap().infos().unwrap();
        let target = tempfile::tempdir().unwrap();
        let inbox = Inbox::of(target.path()).unwrap();
        for info in &infos {
            let nar = dump(&info.path.in_root(nix.root()));
            let there = info.path.in_root(target.path());
            let send = |info: &PathInfo, nar: &[u8]| inbox.receive(info, |sink| Ok(sink.write_all(nar)?));
            let other = PathInfo { nar_hash: NarHash([0; 32]), ..info.clone() };
            let error = send(&other, &nar).unwrap_err();
            assert!(matches!(error.downcast_ref(), Some(CopyError::Corrupted { .. })), "{error:#}");
            assert!(send(info, &nar[..nar.len() - 1]).is_err());
            assert!(send(info, &[&nar[..], b"x"].concat()).is_err());
            assert!(send(info, &vec![7; 8 << 20]).is_err());
            let stopped = inbox.receive(info, |sink| {
                sink.write_all(&nar[..8])?;
                anyhow::bail!("the line is dead")
            });
            assert!(format!("{:#}", stopped.unwrap_err()).contains("the line is dead"));
            assert!(!there.exists());
            send(info, &nar).unwrap();
            assert!(dump(&there) == nar);
            // Once more, over what an earlier run may have left.
            send(info, &nar).unwrap();
            assert!(dump(&there) == nar);
        }
        inbox.sync().unwrap();
        inbox.finish().unwrap();
        assert_eq!(std::fs::read_dir(target.path().join("nix/store")).unwrap().count(), infos.len());
    }
}
