//! The SSH host keys of a machine: where they lie, and how they get into another root.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::etc::Etc;
use crate::sys::secret::Secret;

/// Where every distribution has them, unless its configuration says otherwise.
const DIRECTORY: &str = "etc/ssh";
const PREFIX: &str = "ssh_host_";
const SUFFIX: &str = "_key";
// An RSA key of 16384 bits has 13 KiB.
const LIMIT: u64 = 64 << 10;

/// A private host key, as it lies in its file.
pub struct HostKey {
    /// The name of the file, such as `ssh_host_ed25519_key`.
    pub name: String,
    pub private: Secret,
    /// The line of the public key, if it lies beside it.
    pub public: Option<String>,
}

/// Reads the host keys of the root at `root`, by their names.
pub fn read(root: &Path) -> Result<Vec<HostKey>> {
    read_in(&root.join(DIRECTORY))
}

/// Reads the host keys in a directory, by their names.
pub fn read_in(dir: &Path) -> Result<Vec<HostKey>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("listing {}", dir.display()))?,
    };
    let mut keys = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| format!("listing {}", dir.display()))?.file_name();
        let Some(name) = name.to_str().filter(|name| is_host_key(name)) else { continue };
        let path = dir.join(name);
        // A dangling link is no key.
        let Ok(meta) = fs::metadata(&path) else { continue };
        if !meta.is_file() || meta.len() == 0 || meta.len() > LIMIT {
            continue;
        }
        let public = fs::read_to_string(dir.join(format!("{name}.pub"))).ok();
        let public = public.and_then(|text| text.lines().next().map(|line| line.trim().to_owned()));
        keys.push(HostKey {
            name: name.to_owned(),
            private: Secret::read(&path)?,
            public: public.filter(|line| line.contains(' ')),
        });
    }
    keys.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(keys)
}

fn is_host_key(name: &str) -> bool {
    name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX)).is_some_and(|kind| !kind.is_empty())
}

/// Puts host keys into the root at `root`, as sshd wants them: for nobody but root.
pub fn install(root: &Path, keys: &[HostKey], etc: Etc) -> Result<()> {
    // Where nothing can be put the plan has said so.
    let Some(place) = etc.place(Path::new(DIRECTORY)).filter(|_| !keys.is_empty()) else { return Ok(()) };
    etc.prepare(root)?;
    let dir = root.join(place);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&dir)
        .with_context(|| format!("creating {}", dir.display()))?;
    for key in keys {
        if !is_host_key(&key.name) || key.name.contains('/') {
            bail!("{:?} is no name of a host key", key.name);
        }
        write(&dir.join(&key.name), key.private.bytes(), 0o600)?;
        if let Some(public) = &key.public {
            write(&dir.join(format!("{}.pub", key.name)), format!("{public}\n").as_bytes(), 0o644)?;
        }
    }
    Ok(())
}

fn write(path: &PathBuf, contents: &[u8], mode: u32) -> Result<()> {
    let writing = || format!("writing {}", path.display());
    // Never for a moment readable by others, and never through a link.
    let _ = fs::remove_file(path);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.with_context(writing)?;
    file.write_all(contents).with_context(writing)?;
    file.set_permissions(Permissions::from_mode(mode)).with_context(writing)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn host_keys_go_from_one_root_to_another_and_nobody_reads_them() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ssh = old.path().join(DIRECTORY);
        assert!(read(old.path()).unwrap().is_empty());
        fs::create_dir_all(&ssh).unwrap();
        for (name, text) in [
            ("ssh_host_rsa_key", "rsa"),
            ("ssh_host_ed25519_key", "ed25519"),
            ("ssh_host_ed25519_key.pub", "ssh-ed25519 AAAA root@old\n"),
            ("ssh_host_empty_key", ""),
            ("ssh_host__key", "x"),
            ("sshd_config", "x"),
        ] {
            fs::write(ssh.join(name), text).unwrap();
        }
        symlink("/nowhere", ssh.join("ssh_host_gone_key")).unwrap();
        let keys = read(old.path()).unwrap();
        let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
        assert_eq!(names, ["ssh_host_ed25519_key", "ssh_host_rsa_key"]);
        assert_eq!(keys[0].public.as_deref(), Some("ssh-ed25519 AAAA root@old"));
        for _ in 0..2 {
            install(new.path(), &keys, Etc::Directory).unwrap();
        }
        let ssh = new.path().join(DIRECTORY);
        for (name, mode, text) in [
            ("ssh_host_ed25519_key", 0o600, "ed25519"),
            ("ssh_host_ed25519_key.pub", 0o644, "ssh-ed25519 AAAA root@old\n"),
            ("ssh_host_rsa_key", 0o600, "rsa"),
        ] {
            assert_eq!(fs::metadata(ssh.join(name)).unwrap().mode() & 0o7777, mode, "{name}");
            assert_eq!(fs::read_to_string(ssh.join(name)).unwrap(), text);
        }
        assert_eq!(fs::read_dir(ssh).unwrap().count(), 3);
        let odd = HostKey { name: "ssh_host_/../x_key".into(), private: Secret::new(vec![1]), public: None };
        assert!(install(new.path(), &[odd], Etc::Directory).is_err());
    }
}
