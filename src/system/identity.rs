//! What makes a root a machine of its own: the directories it starts with, and no identity yet.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::etc;
use crate::sys::file;

// The group `nixbld` on every NixOS.
const NIXBLD: u32 = 30000;

/// A directory of a fresh root. The first boot makes the rest.
struct Directory(&'static str, u32, u32);

const DIRECTORIES: [Directory; 18] = [
    // nixos-init neither sets the store's group nor its sticky bit, so it is done here.
    Directory("nix", 0o755, 0),
    Directory("nix/store", 0o1775, NIXBLD),
    Directory("nix/var", 0o755, 0),
    Directory("nix/var/nix", 0o755, 0),
    Directory("nix/var/nix/db", 0o755, 0),
    Directory("nix/var/nix/gcroots", 0o755, 0),
    Directory("nix/var/nix/profiles", 0o755, 0),
    Directory("nix/var/log", 0o755, 0),
    Directory("etc", 0o755, 0),
    Directory("root", 0o700, 0),
    Directory("home", 0o755, 0),
    Directory("tmp", 0o1777, 0),
    Directory("var", 0o755, 0),
    // systemd takes a root without /usr for no operating system.
    Directory("usr", 0o755, 0),
    Directory("proc", 0o755, 0),
    Directory("sys", 0o755, 0),
    Directory("dev", 0o755, 0),
    Directory("run", 0o755, 0),
];

/// Returns path, mode and group of each directory of a fresh root, parents first.
pub fn directories() -> impl Iterator<Item = (&'static str, u32, u32)> {
    DIRECTORIES.iter().map(|&Directory(path, mode, group)| (path, mode, group))
}

/// Makes the directories that a first boot or nixos-enter needs, and the mark of a NixOS root.
///
/// A directory that is there keeps its contents and gets the mode that it should have. Nothing
/// of this machine is taken over: no machine-id, no host keys, no users.
pub fn prepare(root: &Path) -> Result<()> {
    set_mode(root, 0o755, 0)?;
    for (name, mode, group) in directories() {
        let path = root.join(name);
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("making {}", path.display()));
            }
            _ => (),
        }
        let meta = fs::symlink_metadata(&path).with_context(|| format!("looking at {}", path.display()))?;
        if !meta.is_dir() {
            bail!("making {}: something else is there; remove it", path.display());
        }
        // A file system that is mounted there (`/tmp`, `/home` of a layout) gets them too.
        set_mode(&path, mode, group)?;
    }
    mark(root)
}

/// Marks the root as NixOS's, which nixos-enter, switch-to-configuration and `enter` look for.
fn mark(root: &Path) -> Result<()> {
    let etc = root.join("etc");
    if !etc.join("NIXOS").exists() {
        file::publish(&etc.join("NIXOS"), b"")?;
    }
    // As nixos-install does: programs in the boot loader's installer read mounts from here.
    match symlink("/proc/mounts", etc.join("mtab")) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("making {}", etc.join("mtab").display()))
        }
        _ => Ok(()),
    }
}

fn set_mode(path: &Path, mode: u32, group: u32) -> Result<()> {
    // The mode comes last: a change of owner clears bits of it.
    chown(path, Some(0), Some(group))
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("setting owner and mode of {}", path.display()))
}

/// Files that make a machine that machine. Absent, each is made by the first boot; a
/// machine-id that is there, even one of zeros, would be kept and shared by all clones, and an
/// empty one (as image builders leave) makes `ConditionFirstBoot` false on some versions.
const IDENTITY: [&str; 4] = [
    "etc/machine-id",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
];
// In either of them is what was written to /etc.
const ETC_DIRECTORIES: [&str; 2] = ["etc", etc::UPPER];

/// The identity files that were there before programs of the new system ran in it.
pub struct Before(Vec<String>);

/// Notes which identity files the person has put into the root, to be kept by [`scrub`].
pub fn note(root: &Path) -> Result<Before> {
    Ok(Before(present(root)?))
}

/// Removes the identity that activation or the boot loader's installer made while they ran in the
/// root, except what was there `before`. Returns what it removed, as paths below the root.
pub fn scrub(root: &Path, before: &Before) -> Result<Vec<String>> {
    let made: Vec<String> = present(root)?.into_iter().filter(|path| !before.0.contains(path)).collect();
    for path in &made {
        let path = root.join(path);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(made)
}

/// Lists the identity files in the root. Links are not followed, and what lies in the store is
/// the configuration's and not of this run.
fn present(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut look = |path: String| {
        let whole = root.join(&path);
        let parent = whole.parent().expect("it lies below the root");
        // A directory that is reached through a link may be anyone's.
        let ours = fs::canonicalize(root).is_ok_and(|root| {
            fs::canonicalize(parent)
                .is_ok_and(|parent| parent == root.join(&path).parent().expect("it lies below the root"))
        });
        // An empty file is no identity: an immutable /etc has an empty machine-id on purpose.
        if ours && fs::symlink_metadata(&whole).is_ok_and(|meta| meta.is_file() && meta.size() > 0) {
            found.push(path);
        }
    };
    for path in IDENTITY {
        look(path.to_owned());
    }
    for etc in ETC_DIRECTORIES {
        if etc != "etc" {
            look(format!("{etc}/machine-id"));
        }
        let ssh = root.join(etc).join("ssh");
        let Ok(entries) = fs::read_dir(&ssh) else { continue };
        for entry in entries {
            let name = entry.with_context(|| format!("reading {}", ssh.display()))?.file_name();
            if let Some(name) = name.to_str().filter(|name| name.starts_with("ssh_host_")) {
                look(format!("{etc}/ssh/{name}"));
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_root_has_the_directories_of_a_first_boot_and_no_identity() {
        let root = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            prepare(root.path()).unwrap();
            for (name, mode, group) in [
                ("", 0o755, 0),
                ("nix/store", 0o1775, NIXBLD),
                ("tmp", 0o1777, 0),
                ("root", 0o700, 0),
                ("etc", 0o755, 0),
            ] {
                let meta = fs::metadata(root.path().join(name)).unwrap();
                assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (mode, 0, group), "{name}");
            }
        }
        let mut etc: Vec<_> =
            fs::read_dir(root.path().join("etc")).unwrap().map(|e| e.unwrap().file_name()).collect();
        etc.sort();
        assert_eq!(etc, ["NIXOS", "mtab"]);
        assert_eq!(fs::metadata(root.path().join("etc/NIXOS")).unwrap().len(), 0);
    }

    #[test]
    fn what_is_there_keeps_its_contents_and_gets_its_mode() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("root")).unwrap();
        fs::write(root.path().join("root/notes"), "x").unwrap();
        fs::set_permissions(root.path().join("root"), fs::Permissions::from_mode(0o777)).unwrap();
        prepare(root.path()).unwrap();
        assert_eq!(fs::metadata(root.path().join("root")).unwrap().mode() & 0o7777, 0o700);
        assert!(root.path().join("root/notes").exists());
    }

    #[test]
    fn a_link_in_a_directorys_place_is_refused() {
        let root = tempfile::tempdir().unwrap();
        symlink("/etc", root.path().join("etc")).unwrap();
        let error = prepare(root.path()).unwrap_err().to_string();
        assert!(error.ends_with("something else is there; remove it"), "{error}");
    }

    #[test]
    fn identity_made_by_the_installation_goes_and_what_the_person_put_there_stays() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            fs::create_dir_all(root.path().join(path).parent().unwrap()).unwrap();
            fs::write(root.path().join(path), text).unwrap();
        };
        write("etc/ssh/ssh_host_ed25519_key", "the person's");
        let before = note(root.path()).unwrap();
        for path in ["etc/machine-id", "etc/ssh/ssh_host_rsa_key", ".rw-etc/upper/ssh/ssh_host_rsa_key.pub"] {
            write(path, "made");
        }
        write("var/lib/systemd/random-seed", "made");
        write("etc/ssh/sshd_config", "kept");
        write(".rw-etc/upper/machine-id", "");
        symlink("/etc/static/x", root.path().join("etc/ssh/ssh_host_dsa_key")).unwrap();
        assert_eq!(
            scrub(root.path(), &before).unwrap(),
            [
                ".rw-etc/upper/ssh/ssh_host_rsa_key.pub",
                "etc/machine-id",
                "etc/ssh/ssh_host_rsa_key",
                "var/lib/systemd/random-seed"
            ]
        );
        for path in ["etc/ssh/ssh_host_ed25519_key", "etc/ssh/sshd_config", ".rw-etc/upper/machine-id"] {
            assert!(root.path().join(path).exists(), "{path}");
        }
        assert_eq!(scrub(root.path(), &before).unwrap(), [""; 0]);
    }

    #[test]
    fn identity_behind_links_is_never_touched() {
        let root = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("ssh_host_rsa_key"), "the host's").unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        symlink(elsewhere.path(), root.path().join("etc/ssh")).unwrap();
        assert_eq!(scrub(root.path(), &Before(Vec::new())).unwrap(), [""; 0]);
        assert!(elsewhere.path().join("ssh_host_rsa_key").exists());
    }
}
