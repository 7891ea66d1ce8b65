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

/// Makes `system` the newest generation of `root`'s system profile and switches to it. Returns its number.
///
/// As with Nix, the newest generation is used again when it is this system already, and numbers
/// of deleted generations are not.
pub fn set(root: &Path, system: &StorePath) -> Result<u64> {
    let number = add(root, system)?;
    switch(root, number)?;
    Ok(number)
}

/// Makes `system` the newest generation of `root`'s system profile, which goes on leading where it did.
pub fn add(root: &Path, system: &StorePath) -> Result<u64> {
    prepare(root)?;
    let profiles = root.join(PROFILES);
    remove_leftovers(&profiles)?;
    let number = next(root, system)?;
    let generation = profiles.join(link_name(number));
    if fs::symlink_metadata(&generation).is_err() {
        publish_link(Path::new(&system.to_string()), &generation)?;
    }
    // The generation must be there before the name that leads to it.
    file::sync_dir(&profiles)?;
    Ok(number)
}

/// Lets `root`'s system profile lead to a generation.
pub fn switch(root: &Path, number: u64) -> Result<()> {
    let profiles = root.join(PROFILES);
    publish_link(Path::new(&link_name(number)), &profiles.join("system"))?;
    file::sync_dir(&profiles)
}

/// Returns the generation that [`set`] would make of `system`.
pub fn next(root: &Path, system: &StorePath) -> Result<u64> {
    let profiles = root.join(PROFILES);
    let leads_there = |number: &u64| leads_to(&profiles, *number).as_ref() == Some(system);
    let newest = generations(&profiles)?.into_iter().max();
    Ok(newest.filter(leads_there).unwrap_or(newest.unwrap_or(0) + 1))
}

/// Returns the system that `root`'s profile leads to now.
pub fn current(root: &Path) -> Option<StorePath> {
    leads_to(&root.join(PROFILES), current_number(root)?)
}

/// Returns the generation that `root`'s profile leads to now.
pub fn current_number(root: &Path) -> Option<u64> {
    let link = fs::read_link(root.join(PROFILES).join("system")).ok()?;
    // Nix writes the bare name; `..` or a path would lead elsewhere.
    generation(link.as_os_str())
}

/// Returns the generations of `root`'s system profile, oldest first.
pub fn numbers(root: &Path) -> Result<Vec<u64>> {
    let mut numbers = generations(&root.join(PROFILES))?;
    numbers.sort_unstable();
    Ok(numbers)
}

/// Returns the systems that the generations of `root`'s system profile lead to.
pub fn systems(root: &Path) -> Result<Vec<StorePath>> {
    let profiles = root.join(PROFILES);
    let numbers = generations(&profiles)?;
    Ok(numbers.into_iter().filter_map(|number| leads_to(&profiles, number)).collect())
}

/// Returns which of `numbers`, oldest first, are neither among the newest `keep` nor the `current` one.
pub fn surplus(numbers: &[u64], current: u64, keep: usize) -> Vec<u64> {
    let old = &numbers[..numbers.len().saturating_sub(keep)];
    old.iter().copied().filter(|&number| number != current).collect()
}

/// Returns the link that leads to the current generation.
pub fn name(root: &Path) -> PathBuf {
    root.join(PROFILES).join("system")
}

/// Returns the link of a generation.
pub fn link(root: &Path, number: u64) -> PathBuf {
    root.join(PROFILES).join(link_name(number))
}

/// Removes generations. What they led to stays, and may be garbage then.
pub fn remove(root: &Path, numbers: &[u64]) -> Result<()> {
    for &number in numbers {
        let link = link(root, number);
        fs::remove_file(&link).with_context(|| format!("removing {}", link.display()))?;
    }
    file::sync_dir(&root.join(PROFILES))
}

fn leads_to(profiles: &Path, number: u64) -> Option<StorePath> {
    StorePath::parse(fs::read_link(profiles.join(link_name(number))).ok()?.to_str()?).ok()
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

/// Removes links that a run made under temporary names and died over: the garbage collector takes them
/// for the links of a profile.
fn remove_leftovers(profiles: &Path) -> Result<()> {
    for entry in fs::read_dir(profiles).with_context(|| format!("reading {}", profiles.display()))? {
        let name = entry.with_context(|| format!("reading {}", profiles.display()))?.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(".system") && name.contains(".tmp-")) {
            let link = profiles.join(name);
            fs::remove_file(&link).with_context(|| format!("removing {}", link.display()))?;
        }
    }
    Ok(())
}

/// Makes a symbolic link under a temporary name and renames it into place.
pub(super) fn publish_link(target: &Path, link: &Path) -> Result<()> {
    let dir = link.parent().expect("a profile link has a directory");
    let name = link.file_name().expect("a profile link has a name").to_string_lossy();
    let publish = || -> io::Result<()> {
        let temporary = dir.join(format!(".{name}.tmp-{}", std::process::id()));
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
        for process in [1, std::process::id()] {
            symlink("x", profiles.join(format!(".system.tmp-{process}"))).unwrap();
            symlink(system('c').to_string(), profiles.join(format!(".system-3-link.tmp-{process}"))).unwrap();
        }
        assert_eq!(set(root.path(), &system('b')).unwrap(), 2);
        assert_eq!(current(root.path()), Some(system('b')));
        assert!(links(root.path()).iter().all(|link| !link.starts_with('.')));
    }

    #[test]
    fn the_newest_and_the_current_generation_are_kept() {
        for (numbers, current, keep, old) in [
            (&[1, 2, 3][..], 3, 1, &[1, 2][..]),
            (&[1, 2, 3], 3, 2, &[1]),
            (&[1, 2, 3], 3, 3, &[]),
            (&[1, 2, 3], 3, 9, &[]),
            (&[1, 2, 7], 1, 1, &[2]),
            (&[4], 4, 1, &[]),
            (&[], 1, 1, &[]),
        ] {
            assert_eq!(surplus(numbers, current, keep), old, "{numbers:?}, {current}, {keep}");
        }
        let root = tempfile::tempdir().unwrap();
        for letter in ['a', 'b', 'c'] {
            set(root.path(), &system(letter)).unwrap();
        }
        remove(root.path(), &surplus(&numbers(root.path()).unwrap(), 3, 1)).unwrap();
        assert_eq!(numbers(root.path()).unwrap(), [3]);
        assert_eq!((current_number(root.path()), current(root.path())), (Some(3), Some(system('c'))));
        assert_eq!(next(root.path(), &system('c')).unwrap(), 3);
        assert_eq!(next(root.path(), &system('a')).unwrap(), 4);
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
