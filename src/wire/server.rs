//! The far end of a conversation: it answers what it is asked, and changes what it is told to.

mod installing;
mod jumping;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::VERSION;
use super::frame::{Reader, WireError, Writer};
use super::message::{Answer, Ask};
use super::receiving::{Store, Unusable, skip_to_again};
use crate::failure::{Failure, refused};
use crate::probe;
use crate::store::PathInfo;
use crate::store::db::Database;
use crate::store::hash::Hashing;
use crate::store::path::{STORE_DIR, StorePath};
use crate::system::activate;

pub use installing::Rescue;

// How long the last answer before a restart or a jump may need to leave the machine: whoever sends it on has it in
// memory.
const FAREWELL: Duration = Duration::from_secs(2);
// The longest path there is.
const ROOT_LIMIT: usize = 4096;

/// Where the far end runs, and so what may become of the machine.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// It deploys systems, and no more.
    Deployments,
    /// On a machine that may get another system: by a jump, or, if it runs from memory, at once.
    Machine,
    /// In the rescue, which stays when a connection ends.
    Rescue(&'a Rescue),
}

/// Answers until the near end has nothing more to ask.
pub fn serve(place: Place, input: impl Read, output: impl Write + Send) -> Result<()> {
    let mut server = Server { place, input: Reader(input), output: Writer(output), root: None, store: None };
    let served = server.converse();
    if let Err(error) = &served {
        let refused = matches!(error.downcast_ref(), Some(Failure::Refused(_)));
        // There may be nobody left to hear it.
        let _ = server.output.message(&Answer::Failed { text: format!("{error:#}"), refused });
    }
    served
}

struct Server<'a, R, W> {
    place: Place<'a>,
    input: Reader<R>,
    output: Writer<W>,
    /// The root that was looked at.
    root: Option<PathBuf>,
    store: Option<Store>,
}

impl<R: Read, W: Write + Send> Server<'_, R, W> {
    fn converse(&mut self) -> Result<()> {
        match self.input.message()? {
            Some(Ask::Hello { version: VERSION }) => (),
            Some(Ask::Hello { version }) => bail!(WireError::Version(version)),
            Some(_) => bail!(WireError::Garbled("it does not say hello")),
            None => return Ok(()),
        }
        self.output.message(&Answer::Hello { version: VERSION, program: own_hash()? })?;
        while let Some(question) = self.input.message()? {
            self.answer(question)?;
        }
        Ok(())
    }

    fn answer(&mut self, question: Ask) -> Result<()> {
        match question {
            Ask::Look { root, system } => self.look(&root, &system),
            Ask::Missing { paths, substitute } => {
                let on_disk = match self.place {
                    Place::Rescue(rescue) => rescue.on_disk()?,
                    Place::Machine | Place::Deployments => BTreeSet::new(),
                };
                let (mut lacking, similar) = self.store()?.missing(&paths, substitute)?;
                lacking.retain(|index| !on_disk.contains(&paths[*index as usize]));
                self.output.message(&Answer::Missing { paths: lacking, similar })
            }
            Ask::Receive { paths } => self.receive(&paths),
            Ask::Deploy(deployment) => {
                if self.root.as_deref() != Some(Path::new("/")) {
                    bail!("only the running system can be replaced; the other root was only copied into");
                }
                let database = Database::open(Path::new("/"))?;
                if database.map(|database| database.info(&deployment.system)).transpose()?.flatten().is_none()
                {
                    bail!("{} is not valid there, so it was not activated; copy it first", deployment.system);
                }
                let token = activate::begin(&deployment)?;
                self.output.message(&Answer::Started { token: token.clone() })?;
                self.watch(&token, false)
            }
            Ask::Confirm { token } => self.watch(&token, true),
            Ask::Reboot => {
                if let Place::Rescue(rescue) = self.place {
                    rescue.can_reboot()?;
                }
                self.output.message(&Answer::Restarting)?;
                sleep(FAREWELL);
                match self.place {
                    Place::Rescue(rescue) => rescue.reboot(),
                    Place::Machine | Place::Deployments => activate::reboot(),
                }
            }
            Ask::Examine => {
                let facts = probe::target(matches!(self.place, Place::Rescue(_)))?;
                (self.root, self.store) = (Some("/".into()), Some(Store::of_memory()?));
                self.output.message(&Answer::Target(Box::new(facts)))
            }
            Ask::Jump { command_line } => match self.place {
                Place::Machine => self.jump(&command_line),
                _ => bail!("only a machine that runs a system of its own can be replaced by a jump"),
            },
            Ask::Install(installation) => self.install(installation),
            Ask::Hello { .. } | Ask::Nar { .. } | Ask::Again | Ask::End => {
                bail!(WireError::Garbled("a question is out of place"))
            }
        }
    }

    fn look(&mut self, root: &str, system: &StorePath) -> Result<()> {
        let root = whole(root, Path::new("/"))?;
        let facts = probe::host(&root, system)?;
        if self.root.as_ref() != Some(&root) {
            // What was opened belongs to the root before.
            (self.root, self.store) = (Some(root), None);
        }
        self.output.message(&Answer::Facts(Box::new(facts)))
    }

    fn store(&mut self) -> Result<&mut Store> {
        let root = self.root.as_deref().ok_or(WireError::Garbled("a question is out of place"))?;
        if self.store.is_none() {
            self.store = Some(Store::of(root).context("opening the store")?);
        }
        Ok(self.store.as_mut().expect("it was opened"))
    }

    fn receive(&mut self, paths: &[PathInfo]) -> Result<()> {
        self.store()?;
        let Some(store) = &mut self.store else { unreachable!("it was opened") };
        receive(store, paths, &mut self.input, &mut self.output)
    }

    fn watch(&mut self, token: &str, confirm: bool) -> Result<()> {
        let output = &mut self.output;
        let ended = activate::watch(token, confirm, &mut |line| {
            let program = "switch-to-configuration".to_owned();
            // If nobody hears it, the deployment goes on all the same.
            let _ = output.message(&Answer::Output { program, line: line.to_owned() });
        })?;
        output.message(&Answer::Ended(ended))
    }
}

/// Takes paths into a store, some of them again where a delta was of no use.
fn receive(
    store: &mut Store,
    paths: &[PathInfo],
    input: &mut Reader<impl Read>,
    output: &mut Writer<impl Write>,
) -> Result<()> {
    let mut from = 0;
    loop {
        let received = store.receive(paths, from, input);
        match received {
            Ok(()) => return output.message(&Answer::Received),
            Err(error) => match error.downcast_ref() {
                Some(&Unusable { index, from: first }) => {
                    output.message(&Answer::Unusable { index, from: first })?;
                    skip_to_again(input)?;
                    from = first;
                }
                None => return Err(error),
            },
        }
    }
}

/// Returns a root by its only name.
///
/// The `running` system has a daemon, and other roots are written directly: it must not be taken for
/// one of those because it is named otherwise.
fn whole(root: &str, running: &Path) -> Result<PathBuf> {
    if root.len() > ROOT_LIMIT || !root.starts_with('/') || root.contains('\0') {
        bail!(WireError::Garbled("the root is no absolute path"));
    }
    let whole = fs::canonicalize(root).ok().filter(|whole| whole.is_dir());
    let Some(whole) = whole else { return Err(refused(format!("{root} is no directory there"))) };
    if whole != running && ["", &STORE_DIR[1..]].iter().any(|dir| same(&whole.join(dir), &running.join(dir)))
    {
        return Err(refused(format!("{root} is the running system there; deploy to it without --root")));
    }
    Ok(whole)
}

fn same(one: &Path, other: &Path) -> bool {
    let of = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((of(one), of(other)), (Ok(one), Ok(other)) if one == other)
}

/// Returns the SHA-256 of this program.
fn own_hash() -> Result<Vec<u8>> {
    let reading = "reading this program";
    let mut hashing = Hashing::new(std::io::sink());
    let mut own = File::open("/proc/self/exe").context(reading)?;
    std::io::copy(&mut own, &mut hashing).context(reading)?;
    Ok(hashing.finish().0.0.to_vec())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_running_system_goes_by_no_other_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["running/nix/store", "other/nix/store", "borrowed", "file"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("file/x"), "").unwrap();
        symlink(at("running"), at("link")).unwrap();
        symlink(at("other"), at("other-link")).unwrap();
        symlink(at("running/nix"), at("borrowed/nix")).unwrap();
        let (running, other) =
            (fs::canonicalize(at("running")).unwrap(), fs::canonicalize(at("other")).unwrap());
        let whole_of = |root: &str| whole(root, &running).map_err(|error| error.to_string());
        for (name, expected) in [
            ("running", Ok(&running)),
            ("running/nix/../.", Ok(&running)),
            ("link", Ok(&running)),
            ("other", Ok(&other)),
            ("other-link", Ok(&other)),
            ("borrowed", Err("is the running system there")),
            ("file/x", Err("is no directory there")),
            ("gone", Err("is no directory there")),
        ] {
            match (whole_of(at(name).to_str().unwrap()), expected) {
                (Ok(found), expected) => assert_eq!(Ok(&found), expected, "{name}"),
                (Err(error), expected) => {
                    assert!(expected.is_err_and(|words| error.contains(words)), "{name}: {error}");
                }
            }
        }
        assert_eq!(whole("/..", Path::new("/")).unwrap(), Path::new("/"));
        for odd in ["", ".", "mnt", "/mnt\0", &format!("/{}", "x/".repeat(ROOT_LIMIT))] {
            assert!(whole_of(odd).is_err_and(|error| error.contains("is no absolute path")), "{odd:?}");
        }
    }
}
