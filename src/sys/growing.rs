//! Files that grow under a temporary name beside their own, and get that once they are whole.
//!
//! Only a kill leaves one behind, and the next run of the same command takes it over. Others may write into the
//! directory: no link is followed, and nothing that got the name meanwhile is replaced.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::libc;

use super::{file, interrupt};
use crate::failure::refused;

// What is written may hold secrets.
const MODE: u32 = 0o600;

/// A file that has not got its name yet; dropped, it is gone.
#[derive(Debug)]
pub struct Growing {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    published: bool,
}

impl Growing {
    /// Begins an empty file that is to be at `path`, and locks it against another run.
    pub fn new(path: &Path) -> Result<Growing> {
        let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
        let temporary = path.with_file_name(format!(".{}.part", name.to_string_lossy()));
        let making = || format!("making {}", temporary.display());
        let busy = || {
            format!("{} is being written by another run of this command; wait for its end", path.display())
        };
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(MODE);
        // Of what is no file the open may wait for the other side.
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = options.open(&temporary).with_context(making)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => bail!(busy()),
            locked => locked.with_context(making)?,
        }
        let own = file.metadata().with_context(making)?;
        let is_ours = own.is_file() && own.nlink() <= 1 && own.uid() == nix::unistd::geteuid().as_raw();
        // The other run may have ended in between, and what was opened is a whole file now.
        if !fs::symlink_metadata(&temporary).is_ok_and(|there| there.ino() == own.ino()) {
            bail!(busy());
        }
        if !is_ours {
            return Err(refused(format!(
                "{} was made by somebody else; remove it, or choose another place",
                temporary.display()
            )));
        }
        interrupt::grows(&temporary);
        // What a killed run left is not worth keeping.
        file.set_len(0).with_context(making)?;
        file.set_permissions(fs::Permissions::from_mode(MODE)).with_context(making)?;
        Ok(Growing { file, temporary, path: path.to_owned(), published: false })
    }

    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Returns the name that it is to have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the name that it has until it is whole.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Syncs the file and gives it its name; refuses with `taken` if another file has got that meanwhile.
    pub fn publish(mut self, taken: &str) -> Result<()> {
        let shown = self.path.display();
        self.file.sync_all().with_context(|| format!("syncing {shown}"))?;
        match renameat2(AT_FDCWD, &self.temporary, AT_FDCWD, &self.path, RenameFlags::RENAME_NOREPLACE) {
            Err(Errno::EEXIST) => return Err(refused(taken)),
            // File systems that cannot do that, such as NFS, make hard links.
            Err(Errno::EINVAL | Errno::ENOSYS) => match fs::hard_link(&self.temporary, &self.path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    return Err(refused(taken));
                }
                linked => linked
                    .and_then(|()| fs::remove_file(&self.temporary))
                    .with_context(|| format!("publishing {shown}"))?,
            },
            renamed => renamed.with_context(|| format!("publishing {shown}"))?,
        }
        self.published = true;
        interrupt::grown();
        file::sync_dir(self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_gets_its_name_when_it_is_whole_and_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.img");
        let part = dir.path().join(".x.img.part");
        // What a killed run left is taken over.
        fs::write(&part, "old").unwrap();
        let mut growing = Growing::new(&path).unwrap();
        growing.file().write_all(b"whole").unwrap();
        let error = Growing::new(&path).unwrap_err().to_string();
        assert!(error.ends_with("wait for its end"), "{error}");
        growing.publish("taken").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, MODE);
        let again = Growing::new(&path).unwrap();
        assert_eq!(again.publish("taken").unwrap_err().to_string(), "taken");
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
        assert!(!part.exists());
    }

    #[test]
    fn what_others_put_in_its_way_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, part) = (dir.path().join("x.img"), dir.path().join(".x.img.part"));
        let victim = dir.path().join("victim");
        fs::write(&victim, "kept").unwrap();
        symlink(&victim, &part).unwrap();
        Growing::new(&path).unwrap_err();
        fs::remove_file(&part).unwrap();
        fs::hard_link(&victim, &part).unwrap();
        let error = Growing::new(&path).unwrap_err().to_string();
        assert!(error.contains("was made by somebody else"), "{error}");
        fs::remove_file(&part).unwrap();
        nix::unistd::mkfifo(&part, nix::sys::stat::Mode::S_IRWXU).unwrap();
        Growing::new(&path).unwrap_err();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
    }
}
