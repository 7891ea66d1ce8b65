//! Garbage: the paths of a locked root that nothing leads to, and their removal.
//!
//! As Nix does it (`src/libstore/gc.cc`): roots are the links below `gcroots` and `profiles`, and what
//! running processes use. Where it is not clear what a link means, here or in the root, both are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::fstatat;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::PathInfo;
use super::copy::{c_name, open_store};
use super::db::{self, Lock};
use super::path::{STORE_DIR, StorePath};
use super::tree;
use crate::size::Bytes;
use crate::sys::inside;

/// Where a container runtime finds what it starts.
const INIT: &str = "sbin/init";

/// What nothing leads to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Garbage {
    /// Valid paths.
    pub dead: Vec<StorePath>,
    /// Their NAR sizes.
    pub bytes: Bytes,
    /// Objects in the store that the database does not know, such as an interrupted run leaves.
    pub unknown: Vec<StorePath>,
}

impl Garbage {
    pub fn count(&self) -> usize {
        self.dead.len() + self.unknown.len()
    }
}

/// Decides what is garbage: of the paths `valid`, and of those that are there all the same.
pub fn garbage(valid: &[PathInfo], present: &[StorePath], roots: &BTreeSet<StorePath>) -> Garbage {
    let infos: BTreeMap<&StorePath, &PathInfo> = valid.iter().map(|info| (&info.path, info)).collect();
    let mut alive = BTreeSet::new();
    let mut waiting: Vec<StorePath> = roots.iter().cloned().collect();
    while let Some(path) = waiting.pop() {
        let Some(info) = infos.get(&path) else { continue };
        if alive.insert(&info.path) {
            waiting.extend(info.references.iter().cloned());
            // What a living path was built from is kept, as Nix does unless it is told not to.
            waiting.extend(info.deriver.as_deref().and_then(|deriver| StorePath::parse(deriver).ok()));
        }
    }
    let dead: Vec<&PathInfo> = valid.iter().filter(|info| !alive.contains(&info.path)).collect();
    let unknown = |path: &&StorePath| !infos.contains_key(path) && !roots.contains(path);
    Garbage {
        bytes: dead.iter().map(|info| info.nar_size).sum(),
        dead: dead.into_iter().map(|info| info.path.clone()).collect(),
        unknown: present.iter().filter(unknown).cloned().collect(),
    }
}

/// Returns the objects in the store of a root, whether valid or not.
pub fn present(root: &Path) -> Result<Vec<StorePath>> {
    let (_, entries) = tree::list(open_store(root)?).context("listing the store")?;
    let names = entries.iter().filter_map(|entry| entry.name.to_str().ok());
    Ok(names.filter_map(|name| StorePath::from_base_name(name).ok()).collect())
}

/// Removes garbage: from the database, then from the disk, so that whatever is valid is there.
pub fn remove(lock: &Lock, garbage: &Garbage) -> Result<()> {
    if !garbage.dead.is_empty() {
        db::remove(lock, &garbage.dead)?;
    }
    let store = open_store(lock.root())?;
    for path in garbage.dead.iter().chain(&garbage.unknown) {
        tree::remove(store.as_fd(), &c_name(path)).with_context(|| format!("removing {path}"))?;
    }
    remove_single_links(lock.root())
}

// In an optimised store a file whose only name is the one in `.links` belongs to no path any more.
fn remove_single_links(root: &Path) -> Result<()> {
    let removing = || format!("cleaning {}/nix/store/.links", root.display());
    let store = open_store(root)?;
    let links = match tree::open_dir(store.as_fd(), c".links") {
        Err(Errno::ENOENT) => return Ok(()),
        links => links.with_context(removing)?,
    };
    let (links, entries) = tree::list(links).with_context(removing)?;
    for entry in entries {
        let name: &CString = &entry.name;
        let stat = fstatat(&links, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW).with_context(removing)?;
        if stat.st_nlink == 1 {
            unlinkat(&links, name.as_c_str(), UnlinkatFlags::NoRemoveDir).with_context(removing)?;
        }
    }
    Ok(())
}

/// Returns what the links of a root lead to, except the links in `without`, and what is in use.
///
/// `root` is a real path, without links in it.
pub fn roots(root: &Path, without: &[PathBuf]) -> Result<BTreeSet<StorePath>> {
    let mut roots = BTreeSet::new();
    for dir in ["nix/var/nix/gcroots", "nix/var/nix/profiles"] {
        links_below(root, &root.join(dir), without, &mut roots)?;
    }
    if !without.contains(&root.join(INIT)) {
        // What a container runtime starts.
        roots.extend(follow(root, root, Path::new("/").join(INIT)));
    }
    in_use(root, &mut roots)?;
    Ok(roots)
}

fn links_below(root: &Path, dir: &Path, without: &[PathBuf], found: &mut BTreeSet<StorePath>) -> Result<()> {
    let reading = || format!("reading {}", dir.display());
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(reading)?,
    };
    for entry in entries {
        let entry = entry.with_context(reading)?;
        let (kind, path) = (entry.file_type().with_context(reading)?, entry.path());
        if kind.is_dir() {
            links_below(root, &path, without, found)?;
        } else if kind.is_symlink() && !without.contains(&path) {
            found.extend(led_to(root, &path));
        } else if kind.is_file() {
            // A file by the name of a store path keeps it.
            found.extend(path.file_name().and_then(|name| StorePath::from_base_name(name.to_str()?).ok()));
        }
    }
    Ok(())
}

/// Returns the objects that a link leads to, as it looks from inside the root and from here.
fn led_to(root: &Path, link: &Path) -> Vec<StorePath> {
    let Ok(target) = fs::read_link(link) else { return Vec::new() };
    let here = link.parent().unwrap_or(root);
    let inside = Path::new("/").join(here.strip_prefix(root).unwrap_or(here));
    let found = [(root, inside.join(&target)), (Path::new("/"), here.join(&target))]
        .map(|(base, target)| follow(base, root, target));
    found.into_iter().flatten().collect()
}

// As many links in a row as the kernel follows.
const LINK_LIMIT: usize = 40;

/// Follows links as they look from inside `base`, until an object of the store or of `root`'s.
fn follow(base: &Path, root: &Path, mut path: PathBuf) -> Option<StorePath> {
    for _ in 0..LINK_LIMIT {
        if let Some(object) = object(root, &path) {
            return Some(object);
        }
        let link = inside::open(base, &path, OFlag::O_PATH | OFlag::O_NOFOLLOW).ok()?;
        let place = inside::path_of(&link).ok()?;
        let seen = Path::new("/").join(place.strip_prefix(base).ok()?);
        if let Some(object) = object(root, &seen) {
            return Some(object);
        }
        path = seen.parent()?.join(fs::read_link(&place).ok()?);
    }
    None
}

fn object(root: &Path, path: &Path) -> Option<StorePath> {
    let below = path.strip_prefix(root).map(|below| Path::new("/").join(below));
    StorePath::containing(path).or_else(|| StorePath::containing(&below.ok()?))
}

/// Adds what processes use whose store is the root's, or that have opened files of it.
fn in_use(root: &Path, found: &mut BTreeSet<StorePath>) -> Result<()> {
    let own = inode(Path::new(STORE_DIR));
    let below = format!("{}{STORE_DIR}/", root.display());
    for entry in fs::read_dir("/proc").context("reading /proc")? {
        let process = entry.context("reading /proc")?.path();
        if !process.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit)) {
            continue;
        }
        // Any store that is not this machine's could be the root's, in one disguise or another.
        let store = inode(&process.join("root").join(&STORE_DIR[1..]));
        let prefix = if store.is_some() && store != own { &format!("{STORE_DIR}/") } else { &below };
        for text in mentions(&process) {
            paths_in(&text, prefix, found);
        }
    }
    Ok(())
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

// A process may be gone before it is asked.
fn mentions(process: &Path) -> Vec<Vec<u8>> {
    // A container keeps the links to its running system where only its own processes see them.
    const LINKS: [&str; 4] = ["exe", "cwd", "root/run/current-system", "root/run/booted-system"];
    let mut links: Vec<PathBuf> = LINKS.map(|name| process.join(name)).to_vec();
    let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    links.extend(open.map(|entry| entry.path()));
    let links = links.iter().filter_map(|link| fs::read_link(link).ok());
    let links = links.map(|target| target.into_os_string().into_encoded_bytes());
    let files = ["maps", "environ"].into_iter().filter_map(|name| fs::read(process.join(name)).ok());
    links.chain(files).collect()
}

/// Finds the store paths that stand behind `prefix` anywhere in a text.
fn paths_in(text: &[u8], prefix: &str, found: &mut BTreeSet<StorePath>) {
    let text = String::from_utf8_lossy(text);
    for rest in text.split(prefix).skip(1) {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"+-._?=".contains(c));
        found.extend(StorePath::from_base_name(&rest[..end.unwrap_or(rest.len())]).ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::hash::NarHash;
    use std::os::unix::fs::symlink;

    fn path(letter: &str) -> StorePath {
        StorePath::from_base_name(&format!("{}-{letter}", letter.repeat(32))).unwrap()
    }

    fn info(letter: &str, references: &str, deriver: Option<&str>) -> PathInfo {
        PathInfo {
            path: path(letter),
            nar_hash: NarHash([0; 32]),
            nar_size: Bytes(10),
            references: references.split_whitespace().map(path).collect(),
            deriver: deriver.map(|letter| path(letter).to_string()),
            registration_time: 0,
            ultimate: false,
            signatures: None,
            content_address: None,
            outputs: vec![],
        }
    }

    fn names(paths: &[StorePath]) -> String {
        paths.iter().map(StorePath::name).collect()
    }

    #[test]
    fn what_a_root_leads_to_lives_and_the_rest_is_garbage() {
        let valid = [
            info("a", "", None),
            info("b", "a b", Some("d")),
            info("c", "b", Some("x")),
            info("d", "f", None),
            info("f", "", None),
            info("g", "a g", None),
        ];
        let there = ["a", "y", "z"].map(path);
        for (roots, dead, unknown) in [
            ("c", "g", "yz"),
            ("b", "cg", "yz"),
            ("a", "bcdfg", "yz"),
            ("g", "bcdf", "yz"),
            ("c g y", "", "z"),
            ("", "abcdfg", "yz"),
        ] {
            let found = garbage(&valid, &there, &roots.split_whitespace().map(path).collect());
            assert_eq!(
                (names(&found.dead).as_str(), names(&found.unknown).as_str()),
                (dead, unknown),
                "{roots}"
            );
            assert_eq!(found.bytes, Bytes(10 * dead.len() as u64));
        }
    }

    #[test]
    fn links_are_followed_as_they_look_from_inside_and_from_here() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap().join("root");
        let outside = root.with_file_name("outside");
        let state = root.join("nix/var/nix");
        for dir in ["gcroots/auto", "profiles/per-user/me"] {
            fs::create_dir_all(state.join(dir)).unwrap();
        }
        fs::create_dir_all(root.join("data/me")).unwrap();
        let link = |target: &Path, link: PathBuf| symlink(target, link).unwrap();
        let object = |letter: &str| PathBuf::from(path(letter).to_string());
        link(&object("a"), state.join("profiles/system-1-link"));
        link(Path::new("system-1-link"), state.join("profiles/system"));
        link(&object("b").join("bin/x"), state.join("profiles/per-user/me/profile-1-link"));
        // By a link in the root, on a way that has a link of the root in it.
        link(Path::new("/data"), root.join("home"));
        link(&object("c"), root.join("data/me/result"));
        link(Path::new("/home/me/result"), state.join("gcroots/auto/inside"));
        // By a link of this machine.
        link(&object("d"), outside.clone());
        link(&outside, state.join("gcroots/auto/outside"));
        link(&root.join("data/me/result"), state.join("gcroots/auto/by-its-whole-name"));
        link(&root.join("nix/store").join(path("f").base_name()), state.join("gcroots/whole"));
        fs::write(state.join("gcroots").join(path("g").base_name()), "").unwrap();
        link(Path::new("/gone"), state.join("gcroots/auto/dangling"));
        link(Path::new("loop"), state.join("gcroots/loop"));
        fs::create_dir(root.join("sbin")).unwrap();
        link(&object("h").join("init"), root.join("sbin/init"));
        let all = roots(&root, &[]).unwrap();
        // What machines beside this test have open is no business of its.
        let kept: Vec<StorePath> = all.into_iter().filter(|path| path.name().len() == 1).collect();
        assert_eq!(names(&kept), "abcdfgh");
        let without = ["profiles/system", "profiles/system-1-link"].map(|link| state.join(link));
        assert!(!roots(&root, &without).unwrap().contains(&path("a")), "its generation will be gone");
        assert!(fs::symlink_metadata(state.join("gcroots/auto/dangling")).is_ok(), "links are left alone");
    }

    #[test]
    fn a_process_keeps_the_system_that_is_booted_around_it() {
        let process = tempfile::tempdir().unwrap();
        fs::create_dir_all(process.path().join("root/run")).unwrap();
        symlink(path("a").to_string(), process.path().join("root/run/booted-system")).unwrap();
        assert_eq!(mentions(process.path()), [path("a").to_string().into_bytes()]);
    }

    #[test]
    fn a_path_is_found_wherever_it_stands_in_a_text() {
        let mut found = BTreeSet::new();
        let text =
            format!("\0PATH={}/bin:{}\u{fffd}7f-7f r {}\n/nix/store/short", path("a"), path("b"), path("c"));
        paths_in(text.as_bytes(), "/nix/store/", &mut found);
        assert_eq!(found, ["a", "b", "c"].map(path).into());
    }
}
