//! Whose directory is this? A small file in it says that it is ours and how far we came.
//!
//! `DIR/nix/.install-via.json` is the first thing written into a directory and says `installing` until
//! the last step says `complete`. While an installation runs, the file is locked.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::store::path::StorePath;
use crate::sys::file;

/// What a directory is before an installation into it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum Directory {
    Absent,
    Empty,
    /// An earlier run was stopped before its end.
    Interrupted {
        system: StorePath,
    },
    /// An earlier run came to its end.
    Complete {
        system: StorePath,
    },
    /// It holds something that is not ours, such as this entry.
    Foreign {
        entry: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    version: u32,
    state: State,
    system: StorePath,
}

/// How far an installation came.
#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    Installing,
    Complete,
}

const VERSION: u32 = 1;

// mkfs.ext4 makes it in every file system, so a directory that holds nothing else is empty.
const LOST_AND_FOUND: &str = "lost+found";

/// Returns what `dir` is.
pub fn look(dir: &Path) -> Result<Directory> {
    let mut entries = match names_in(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Directory::Absent),
        Err(error) => return Err(error).with_context(|| format!("listing {}", dir.display())),
    };
    entries.retain(|name| name != LOST_AND_FOUND);
    let Some(entry) = entries.last() else { return Ok(Directory::Empty) };
    let entry = entry.to_string_lossy().into_owned();
    match fs::read(note_path(dir)) {
        Ok(text) => {
            let note: Note = serde_json::from_slice(&text).with_context(|| {
                format!("reading {}, which tells whose directory this is", note_path(dir).display())
            })?;
            Ok(match note.state {
                State::Installing => Directory::Interrupted { system: note.system },
                State::Complete => Directory::Complete { system: note.system },
            })
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            let begun = entries == ["nix"] && is_begun(&dir.join("nix"));
            Ok(if begun { Directory::Empty } else { Directory::Foreign { entry } })
        }
        Err(error) => Err(error).with_context(|| format!("reading {}", note_path(dir).display())),
    }
}

fn names_in(dir: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
}

/// Tells whether `nix` is as [`Claim::start`] leaves it when it is killed before the note has its name.
fn is_begun(nix: &Path) -> bool {
    let is_dir = fs::symlink_metadata(nix).is_ok_and(|meta| meta.is_dir());
    let is_unnamed = |name: &OsString| {
        let meta = fs::symlink_metadata(nix.join(name));
        name.as_bytes().starts_with(file::UNNAMED) && meta.is_ok_and(|meta| meta.is_file())
    };
    is_dir && names_in(nix).is_ok_and(|names| names.iter().all(is_unnamed))
}

/// A directory that is ours for as long as this value lives.
pub struct Claim {
    dir: PathBuf,
    system: StorePath,
    _lock: Flock<File>,
}

impl Claim {
    /// Marks `dir` as being installed, and locks it against a second installation.
    pub fn start(dir: &Path, system: &StorePath) -> Result<Claim> {
        let nix = dir.join("nix");
        fs::create_dir_all(&nix).with_context(|| format!("creating {}", nix.display()))?;
        let claim = Claim::hold(dir, system)?;
        if is_begun(&nix) {
            for name in names_in(&nix).with_context(|| format!("listing {}", nix.display()))? {
                let left = nix.join(name);
                fs::remove_file(&left).with_context(|| format!("removing {}", left.display()))?;
            }
        }
        claim.note(State::Installing)?;
        Ok(claim)
    }

    /// Locks `dir`, which is complete and stays so, against an installation while `system` is added.
    pub fn hold(dir: &Path, system: &StorePath) -> Result<Claim> {
        let nix = dir.join("nix");
        let handle = File::open(&nix).with_context(|| format!("opening {}", nix.display()))?;
        let Ok(lock) = Flock::lock(handle, FlockArg::LockExclusiveNonblock) else {
            bail!(
                "another installation into {} is running, or it is booted as a container; \
                 wait for its end, or power it off",
                dir.display()
            );
        };
        Ok(Claim { dir: dir.to_owned(), system: system.clone(), _lock: lock })
    }

    /// Marks the directory as complete.
    pub fn finish(self) -> Result<()> {
        self.note(State::Complete)
    }

    fn note(&self, state: State) -> Result<()> {
        file::publish(&note_path(&self.dir), note(state, &self.system).as_bytes())
    }
}

/// Returns the text of the note in a directory.
pub fn note(state: State, system: &StorePath) -> String {
    let note = Note { version: VERSION, state, system: system.clone() };
    serde_json::to_string(&note).expect("a note is a number and two strings")
}

fn note_path(dir: &Path) -> PathBuf {
    dir.join("nix/.install-via.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system() -> StorePath {
        StorePath::from_base_name("0c5mzqyfjhyxv5bmpanmc7dzl5cfbhzj-nixos-system-x").unwrap()
    }

    #[test]
    fn a_directory_is_ours_from_the_first_write_and_complete_after_the_last() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("clone");
        assert_eq!(look(&dir).unwrap(), Directory::Absent);
        fs::create_dir_all(dir.join(LOST_AND_FOUND)).unwrap();
        assert_eq!(look(&dir).unwrap(), Directory::Empty);
        let claim = Claim::start(&dir, &system()).unwrap();
        assert_eq!(look(&dir).unwrap(), Directory::Interrupted { system: system() });
        claim.finish().unwrap();
        assert_eq!(look(&dir).unwrap(), Directory::Complete { system: system() });
    }

    #[test]
    fn a_directory_that_is_held_stays_complete() {
        let temp = tempfile::tempdir().unwrap();
        Claim::start(temp.path(), &system()).unwrap().finish().unwrap();
        let claim = Claim::hold(temp.path(), &system()).unwrap();
        assert_eq!(look(temp.path()).unwrap(), Directory::Complete { system: system() });
        assert!(Claim::start(temp.path(), &system()).is_err());
        drop(claim);
    }

    #[test]
    fn what_others_left_is_foreign() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("thesis.tex"), "").unwrap();
        assert_eq!(look(temp.path()).unwrap(), Directory::Foreign { entry: "thesis.tex".into() });
    }

    #[test]
    fn a_claim_that_was_cut_off_before_its_note_is_made_anew() {
        for (made, state) in [
            (&[][..], Directory::Empty),
            (&["nix/.tmpAbC123"][..], Directory::Empty),
            (&["nix/.tmpAbC123", "nix/store"][..], Directory::Foreign { entry: "nix".into() }),
            (&["nix/.tmpAbC123/x"][..], Directory::Foreign { entry: "nix".into() }),
        ] {
            let temp = tempfile::tempdir().unwrap();
            fs::create_dir(temp.path().join("nix")).unwrap();
            for name in made {
                let path = temp.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "half a no").unwrap();
            }
            assert_eq!(look(temp.path()).unwrap(), state, "{made:?}");
            if state == Directory::Empty {
                Claim::start(temp.path(), &system()).unwrap();
                assert_eq!(names_in(&temp.path().join("nix")).unwrap(), [".install-via.json"]);
            }
        }
    }

    #[test]
    fn two_installations_into_one_directory_do_not_meet() {
        let temp = tempfile::tempdir().unwrap();
        let claim = Claim::start(temp.path(), &system()).unwrap();
        let error = Claim::start(temp.path(), &system()).err().unwrap().to_string();
        assert!(error.starts_with("another installation"), "{error}");
        drop(claim);
        Claim::start(temp.path(), &system()).unwrap();
    }
}
