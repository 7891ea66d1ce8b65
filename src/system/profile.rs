//! The system profile: `system -> system-N-link -> /nix/store/…`, as Nix leaves it.
//!
//! Source: `src/libstore/profiles.cc` of Nix.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::store::path::StorePath;
use crate::sys::file;

const PROFILES: &str = "nix/var/nix/profiles";
// What Nix makes beside it; 0755 and root's.
pub const DIRECTORIES: [&str; 6] = [
    "nix/var/nix",
    PROFILES,
    "nix/var/nix/profiles/per-user",
    "nix/var/nix/gcroots",
    "nix/var/nix/gcroots/per-user",
    "nix/var/nix/temproots",
];
// The garbage collector starts from it: the links below are what keeps the system alive.
const PROFILES_ROOT: &str = "nix/var/nix/gcroots/profiles";

/// Makes `system` the newest generation of `root`'s system profile, and returns its number.
///
/// As with Nix, the newest generation is used again when it is this system already, and numbers
/// of deleted generations are not.
pub fn set(root: &Path, system: &StorePath) -> Result<u64> {
    prepare(root)?;
    let profiles = root.join(PROFILES);
    let newest = generations(&profiles)?.into_iter().max();
    let target = PathBuf::from(system.to_string());
    let number = match newest {
        Some(number) if fs::read_link(profiles.join(link_name(number))).is_ok_and(|link| link == target) => {
            number
        }
        newest => {
            let number = newest.unwrap_or(0) + 1;
            publish_link(&target, &profiles.join(link_name(number)))?;
            number
        }
    };
    // The generation must be there before the name that leads to it.
    file::sync_dir(&profiles)?;
    publish_link(Path::new(&link_name(number)), &profiles.join("system"))?;
    file::sync_dir(&profiles)?;
    Ok(number)
}

/// Returns the system that `root`'s profile leads to now.
pub fn current(root: &Path) -> Option<StorePath> {
    let profiles = root.join(PROFILES);
    let link = fs::read_link(profiles.join("system")).ok()?;
    // Nix writes the bare name; `..` or a path would lead elsewhere.
    generation(link.as_os_str())?;
    StorePath::parse(fs::read_link(profiles.join(link)).ok()?.to_str()?).ok()
}

fn prepare(root: &Path) -> Result<()> {
    for dir in DIRECTORIES {
        let dir = root.join(dir);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&dir)
            .and_then(|()| fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("making {}", dir.display()))?;
    }
    match symlink("/nix/var/nix/profiles", root.join(PROFILES_ROOT)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("making {}", root.join(PROFILES_ROOT).display()))
        }
        _ => Ok(()),
    }
}

fn generations(profiles: &Path) -> Result<Vec<u64>> {
    let entries = fs::read_dir(profiles).with_context(|| format!("reading {}", profiles.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>();
    let names = names.with_context(|| format!("reading {}", profiles.display()))?;
    Ok(names.iter().filter_map(|name| generation(name)).collect())
}

/// Parses `system-N-link`.
fn generation(name: &OsStr) -> Option<u64> {
    let digits = name.to_str()?.strip_prefix("system-")?.strip_suffix("-link")?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn link_name(number: u64) -> String {
    format!("system-{number}-link")
}

/// Makes a symbolic link under a temporary name and renames it into place.
fn publish_link(target: &Path, link: &Path) -> Result<()> {
    let dir = link.parent().expect("a profile link has a directory");
    let name = link.file_name().expect("a profile link has a name").to_string_lossy();
    let publish = || -> io::Result<()> {
        let temporary = dir.join(format!(".{name}.tmp-{}", std::process::id()));
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        symlink(target, &temporary)?;
        fs::rename(&temporary, link)
    };
    publish().with_context(|| format!("setting {}", link.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(letter: char) -> StorePath {
        StorePath::from_base_name(&format!("{}-nixos-system-x", letter.to_string().repeat(32))).unwrap()
    }

    fn links(root: &Path) -> Vec<String> {
        let profiles = root.join(PROFILES);
        let mut links: Vec<String> = fs::read_dir(&profiles)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter_map(|entry| {
                let target = fs::read_link(entry.path()).ok()?;
                Some(format!("{} -> {}", entry.file_name().to_str()?, target.display()))
            })
            .collect();
        links.sort();
        links
    }

    #[test]
    fn a_fresh_root_has_generation_one() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(current(root.path()), None);
        assert_eq!(set(root.path(), &system('a')).unwrap(), 1);
        let expected = ["system -> system-1-link".to_owned(), format!("system-1-link -> {}", system('a'))];
        assert_eq!(links(root.path()), expected);
        assert_eq!(current(root.path()), Some(system('a')));
        for dir in DIRECTORIES {
            assert_eq!(
                fs::metadata(root.path().join(dir)).unwrap().permissions().mode() & 0o7777,
                0o755,
                "{dir}"
            );
        }
    }

    #[test]
    fn numbers_grow_from_the_highest_and_the_newest_is_used_again() {
        let root = tempfile::tempdir().unwrap();
        let profiles = root.path().join(PROFILES);
        for (letter, number) in [('a', 1), ('a', 1), ('b', 2), ('a', 3), ('a', 3)] {
            assert_eq!(set(root.path(), &system(letter)).unwrap(), number, "{letter}");
            assert_eq!(current(root.path()), Some(system(letter)));
        }
        // Gaps are not filled, other names do not count.
        for name in ["system-2-link", "system-1-link"] {
            fs::remove_file(profiles.join(name)).unwrap();
        }
        for name in ["system-9x-link", "system--link", "system-+50-link", "systems-60-link", "system-70"] {
            symlink("/nix/store/x", profiles.join(name)).unwrap();
        }
        assert_eq!(set(root.path(), &system('c')).unwrap(), 4);
    }

    #[test]
    fn a_run_that_stopped_half_way_is_completed() {
        let root = tempfile::tempdir().unwrap();
        set(root.path(), &system('a')).unwrap();
        let profiles = root.path().join(PROFILES);
        // The generation was made and the name not yet switched; a temporary link was left.
        symlink(system('b').to_string(), profiles.join("system-2-link")).unwrap();
        symlink("x", profiles.join(format!(".system.tmp-{}", std::process::id()))).unwrap();
        assert_eq!(set(root.path(), &system('b')).unwrap(), 2);
        assert_eq!(current(root.path()), Some(system('b')));
        assert!(links(root.path()).iter().all(|link| !link.starts_with('.')));
    }

    #[test]
    fn a_profile_that_leads_elsewhere_is_none() {
        let root = tempfile::tempdir().unwrap();
        set(root.path(), &system('a')).unwrap();
        let profile = root.path().join(PROFILES).join("system");
        for target in ["../../../../etc/passwd", "system-7-link", "/nix/store/x"] {
            fs::remove_file(&profile).unwrap();
            symlink(target, &profile).unwrap();
            assert_eq!(current(root.path()), None, "{target}");
        }
    }
}
