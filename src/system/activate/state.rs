//! The directory of a deployment, below `/run`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::refused;
use crate::store::path::{STORE_DIR, StorePath};
use crate::sys::file;
use crate::system::deployment::{Deployment, Ended};

const DEPLOYMENTS: &str = "/run/nixos-install-via";
// Longer ones are cut; a program that says more has run away.
const LINE_LIMIT: usize = 4096;
const TOKEN_BYTES: usize = 16;

/// What a deployment is, and what the machine was before.
#[derive(Serialize, Deserialize)]
pub struct Record {
    pub deployment: Deployment,
    /// The system that ran.
    pub before: StorePath,
    /// The generation that the profile led to.
    pub generation: Option<u64>,
}

/// How far a deployment came.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Stage {
    Activating,
    /// The system runs; whether the machine can be reached is to be shown.
    Unconfirmed,
    /// It becomes what is booted.
    Finishing,
    Over(Ended),
}

pub struct Directory {
    path: PathBuf,
    token: String,
}

impl Directory {
    /// Makes the directory of a new deployment, and removes those of earlier ones.
    pub fn create() -> Result<Directory> {
        let parent = deployments()?;
        for entry in fs::read_dir(&parent).with_context(|| format!("reading {}", parent.display()))? {
            let path = entry.with_context(|| format!("reading {}", parent.display()))?.path();
            if path.is_dir() {
                fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        let token = token()?;
        let path = parent.join(&token);
        let making = || format!("making {}", path.display());
        DirBuilder::new().mode(0o700).create(&path).with_context(making)?;
        Ok(Directory { path, token })
    }

    /// Opens the directory of a deployment that has begun.
    pub fn open(token: &str) -> Result<Directory> {
        let known = token.len() == 2 * TOKEN_BYTES && token.bytes().all(|byte| byte.is_ascii_hexdigit());
        let path = Path::new(DEPLOYMENTS).join(token);
        if !known || !path.is_dir() {
            bail!("the machine knows nothing of this deployment any more; has it been restarted?");
        }
        Ok(Directory { path, token: token.to_owned() })
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Returns this program, where it stays as long as the deployment needs it.
    pub fn program(&self) -> Result<PathBuf> {
        let own = std::env::current_exe().context("finding this program")?;
        if own.starts_with(STORE_DIR) {
            return Ok(own);
        }
        let program = self.path.join("nixos-install-via");
        // By the kernel's link, for the name may be gone.
        fs::copy("/proc/self/exe", &program)
            .and_then(|_| fs::set_permissions(&program, fs::Permissions::from_mode(0o500)))
            .with_context(|| format!("copying this program to {}", program.display()))?;
        Ok(program)
    }

    pub fn record(&self, record: &Record) -> Result<()> {
        self.write("record.json", record)
    }

    pub fn read_record(&self) -> Result<Record> {
        self.read("record.json")
    }

    pub fn stage(&self, stage: &Stage) -> Result<()> {
        self.write("stage.json", stage)
    }

    pub fn look(&self) -> Result<Stage> {
        self.read("stage.json")
    }

    pub fn confirm(&self) -> Result<()> {
        file::publish(&self.path.join("confirmed"), b"")
    }

    pub fn is_confirmed(&self) -> bool {
        self.path.join("confirmed").exists()
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec(value).context("writing the state of a deployment")?;
        file::publish(&self.path.join(name), &text)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.path.join(name);
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
    }
}

/// What the programs of a deployment have said.
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    pending: Vec<u8>,
}

impl Log {
    pub fn of(directory: &Directory) -> Log {
        Log { path: directory.log(), file: None, pending: Vec::new() }
    }

    fn file(&mut self) -> Option<&mut File> {
        // systemd makes it when the unit starts.
        self.file = self.file.take().or_else(|| File::open(&self.path).ok());
        self.file.as_mut()
    }

    pub fn skip_to_end(&mut self) {
        if let Some(file) = self.file() {
            let _ = file.seek(SeekFrom::End(0));
        }
    }

    /// Hands over the lines that have come since.
    pub fn read(&mut self, heard: &mut dyn FnMut(&str)) {
        let mut bytes = std::mem::take(&mut self.pending);
        if let Some(file) = self.file() {
            // What cannot be read now is read the next time.
            let _ = file.read_to_end(&mut bytes);
        }
        let whole = match bytes.iter().rposition(|&byte| byte == b'\n') {
            Some(end) => end + 1,
            None if bytes.len() > LINE_LIMIT => bytes.len(),
            None => 0,
        };
        self.pending = bytes.split_off(whole);
        for line in String::from_utf8_lossy(&bytes).lines() {
            heard(&line.chars().take(LINE_LIMIT).collect::<String>());
        }
    }
}

/// Waits until no other deployment is performed here, and keeps others waiting.
pub fn lock() -> Result<Flock<File>> {
    Flock::lock(lock_file()?, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("waiting for other deployments")
}

/// Refuses where another deployment is performed.
pub fn nobody_else() -> Result<()> {
    match Flock::lock(lock_file()?, FlockArg::LockExclusiveNonblock) {
        Ok(_) => Ok(()),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            Err(refused("another deployment to the machine is under way; wait for its end"))
        }
        Err((_, error)) => Err(error).context("looking for other deployments"),
    }
}

fn lock_file() -> Result<File> {
    let path = deployments()?.join("lock");
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))
}

fn deployments() -> Result<PathBuf> {
    let path = PathBuf::from(DEPLOYMENTS);
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("making {}", path.display()))
        }
        _ => Ok(path),
    }
}

fn token() -> Result<String> {
    let mut bytes = [0; TOKEN_BYTES];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("making a token")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
