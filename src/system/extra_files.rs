//! `--extra-files`: the person's own files, laid over a fresh root.
//!
//! Directories that are there keep their owner and mode, the top one above all: a temporary
//! directory of mode 0700 must not become `/`. All else comes over as it is.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;

use super::etc::Etc;
use crate::sys::inside;

// Nix's own; a file put there would not be in its database.
const FORBIDDEN: [&str; 2] = ["nix/store", "nix/var/nix"];

/// Copies what is in `from` into the root at `root`, and returns how many files, links and new
/// directories that were. What must not be copied is found before anything is written.
pub fn copy(from: &Path, root: &Path, etc: Etc) -> Result<usize> {
    let entries = list(from)?;
    let root = fs::canonicalize(root).with_context(|| format!("opening {}", root.display()))?;
    if entries.iter().any(|entry| entry.path.starts_with("etc")) {
        etc.prepare(&root)?;
    }
    let mut copier = Copier { from, root: &root, etc, links: HashMap::new(), copied: 0 };
    for entry in &entries {
        copier.one(entry).with_context(|| format!("copying the extra file {}", entry.path.display()))?;
    }
    Ok(copier.copied)
}

struct Entry {
    /// Below the directory of extra files.
    path: PathBuf,
    meta: Metadata,
}

/// Lists all that is below `from`, parents first, and refuses what cannot come along.
pub fn check(from: &Path) -> Result<()> {
    list(from).map(drop)
}

/// Returns where all files, links and empty directories of `from` go.
pub fn places(from: &Path) -> Result<Vec<PathBuf>> {
    let entries = list(from)?;
    let parents: HashSet<&Path> = entries.iter().filter_map(|entry| entry.path.parent()).collect();
    let ends = entries.iter().filter(|entry| !parents.contains(entry.path.as_path()));
    Ok(ends.map(|entry| Path::new("/").join(&entry.path)).collect())
}

fn list(from: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut left = vec![PathBuf::new()];
    while let Some(dir) = left.pop() {
        let whole = from.join(&dir);
        let names = fs::read_dir(&whole).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for name in names.with_context(|| format!("reading the extra files in {}", whole.display()))? {
            let path = dir.join(name.file_name());
            let meta =
                name.metadata().with_context(|| format!("reading the extra file {}", path.display()))?;
            let kind = meta.file_type();
            if FORBIDDEN.iter().any(|forbidden| path.starts_with(forbidden)) {
                bail!("the extra file {} would lie in Nix's own directories; leave it out", path.display());
            }
            if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
                bail!("the extra file {} is a device, pipe or socket; leave it out", path.display());
            }
            if kind.is_dir() {
                left.push(path.clone());
            }
            entries.push(Entry { path, meta });
        }
    }
    Ok(entries)
}

struct Copier<'a> {
    from: &'a Path,
    root: &'a Path,
    etc: Etc,
    // Where the first of several hard links went.
    links: HashMap<(u64, u64), PathBuf>,
    copied: usize,
}

impl Copier<'_> {
    fn one(&mut self, entry: &Entry) -> Result<()> {
        let source = self.from.join(&entry.path);
        let path = self.etc.place(&entry.path).context("the system's /etc cannot be written to")?;
        let (_dir, target) = self.place(&path)?;
        let kind = entry.meta.file_type();
        let there = fs::symlink_metadata(&target).ok();
        if kind.is_dir() {
            // A directory may be reached through a link in the root, such as /bin -> /usr/bin.
            if inside::open(self.root, &path, OFlag::O_PATH | OFlag::O_DIRECTORY).is_ok() {
                return Ok(());
            }
            fs::DirBuilder::new().mode(0o700).create(&target)?;
            dress(&source, &target, &entry.meta)?;
        } else {
            if there.is_some_and(|there| there.is_dir()) {
                bail!("a directory is in its place");
            }
            self.file(&source, &path, &target, &entry.meta)?;
        }
        self.copied += 1;
        Ok(())
    }

    fn file(&mut self, source: &Path, path: &Path, target: &Path, meta: &Metadata) -> Result<()> {
        let name = target
            .file_name()
            .context("it has no name")?
            .to_string_lossy()
            .chars()
            .take(60)
            .collect::<String>();
        let part = target.with_file_name(format!(".{name}.extra-part"));
        if fs::symlink_metadata(&part).is_ok() {
            fs::remove_file(&part)?;
        }
        let first = self.links.get(&(meta.dev(), meta.ino())).cloned();
        if let Some(first) = first {
            let (_dir, first) = self.place(&first)?;
            fs::hard_link(first, &part)?;
        } else if meta.is_symlink() {
            symlink(fs::read_link(source)?, &part)?;
            dress(source, &part, meta)?;
        } else {
            let mut file = File::options().write(true).create_new(true).open(&part)?;
            io::copy(&mut File::open(source)?, &mut file)?;
            file.set_modified(meta.modified()?)?;
            dress(source, &part, meta)?;
        }
        fs::rename(&part, target)?;
        if meta.nlink() > 1 && !meta.is_dir() {
            self.links.entry((meta.dev(), meta.ino())).or_insert_with(|| path.to_owned());
        }
        Ok(())
    }

    /// Returns the path to write to. Its directory is held open, for the path goes through it: no
    /// link can lead out of the root, nor, by a detour, into the store.
    fn place(&self, path: &Path) -> Result<(OwnedFd, PathBuf)> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let dir = inside::open(self.root, &Path::new(".").join(parent), OFlag::O_PATH | OFlag::O_DIRECTORY)
            .with_context(|| format!("opening {} in the new root", parent.display()))?;
        let real = inside::path_of(&dir)?;
        if FORBIDDEN.iter().any(|forbidden| real.starts_with(self.root.join(forbidden))) {
            bail!("{} leads into Nix's own directories; leave the file out", parent.display());
        }
        let name = path.file_name().context("it has no name")?;
        let target = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
        Ok((dir, target))
    }
}

fn dress(source: &Path, target: &Path, meta: &Metadata) -> io::Result<()> {
    lchown(target, Some(meta.uid()), Some(meta.gid()))?;
    if !meta.is_symlink() {
        fs::set_permissions(target, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    }
    inside::copy_attributes(source, target);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        from: tempfile::TempDir,
        root: tempfile::TempDir,
    }

    fn world() -> World {
        let world = World { from: tempfile::tempdir().unwrap(), root: tempfile::tempdir().unwrap() };
        for dir in ["etc", "nix/store/x", "nix/var/nix/db"] {
            fs::create_dir_all(world.root.path().join(dir)).unwrap();
        }
        world
    }

    fn write(dir: &tempfile::TempDir, path: &str, text: &str) -> PathBuf {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn files_come_with_owner_mode_time_and_links() {
        let World { from, root } = world();
        let key = write(&from, "etc/ssh/ssh_host_ed25519_key", "secret");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        lchown(&key, Some(7), Some(8)).unwrap();
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        File::options().write(true).open(&key).unwrap().set_modified(old).unwrap();
        fs::hard_link(&key, from.path().join("etc/ssh/again")).unwrap();
        symlink("/nowhere/at all", from.path().join("etc/dangling")).unwrap();
        fs::set_permissions(from.path().join("etc/ssh"), fs::Permissions::from_mode(0o2750)).unwrap();
        fs::set_permissions(from.path().join("etc"), fs::Permissions::from_mode(0o700)).unwrap();
        for _ in 0..2 {
            copy(from.path(), root.path(), Etc::Directory).unwrap();
            let mode = |path: &str| fs::symlink_metadata(root.path().join(path)).unwrap().mode() & 0o7777;
            let meta = fs::metadata(root.path().join("etc/ssh/ssh_host_ed25519_key")).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.nlink()), (0o600, 7, 8, 2));
            assert_eq!(meta.modified().unwrap(), old);
            assert_eq!(
                fs::read_link(root.path().join("etc/dangling")).unwrap(),
                Path::new("/nowhere/at all")
            );
            // What was there keeps its mode, what is new brings its own.
            assert_eq!((mode("etc"), mode("etc/ssh")), (0o755, 0o2750));
        }
    }

    #[test]
    fn what_goes_to_etc_lies_in_its_overlay() {
        let World { from, root } = world();
        write(&from, "etc/ssh/key", "secret");
        write(&from, "var/x", "x");
        copy(from.path(), root.path(), Etc::Overlay).unwrap();
        let read = |path: &str| fs::read_to_string(root.path().join(path)).ok();
        assert_eq!(read(".rw-etc/upper/ssh/key").as_deref(), Some("secret"));
        assert_eq!((read("etc/ssh/key"), read("var/x").as_deref()), (None, Some("x")));
        assert!(root.path().join(".rw-etc/work").is_dir());
        let error = format!("{:#}", copy(from.path(), root.path(), Etc::Immutable).unwrap_err());
        assert!(error.ends_with("the system's /etc cannot be written to"), "{error}");
    }

    #[test]
    fn links_in_the_root_are_followed_inside_it() {
        let World { from, root } = world();
        let elsewhere = tempfile::tempdir().unwrap();
        write(&from, "etc/x", "x");
        fs::remove_dir(root.path().join("etc")).unwrap();
        fs::create_dir_all(root.path().join("real/etc")).unwrap();
        symlink("/real/etc", root.path().join("etc")).unwrap();
        copy(from.path(), root.path(), Etc::Directory).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("real/etc/x")).unwrap(), "x");
        assert!(fs::symlink_metadata(root.path().join("etc")).unwrap().is_symlink());

        fs::remove_file(root.path().join("etc")).unwrap();
        symlink(elsewhere.path(), root.path().join("etc")).unwrap();
        copy(from.path(), root.path(), Etc::Directory).unwrap_err();
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        // A link in the file's own place is replaced and not followed.
        fs::remove_file(root.path().join("etc")).unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let victim = write(&elsewhere, "victim", "kept");
        symlink(&victim, root.path().join("etc/x")).unwrap();
        copy(from.path(), root.path(), Etc::Directory).unwrap();
        assert_eq!(fs::read_to_string(victim).unwrap(), "kept");
    }

    #[test]
    fn nixs_own_directories_are_refused_before_anything_is_written() {
        for path in ["nix/store/x/file", "nix/var/nix/db/db.sqlite", "nix/store"] {
            let World { from, root } = world();
            write(&from, "etc/first", "x");
            match path {
                "nix/store" => fs::create_dir_all(from.path().join(path)).unwrap(),
                path => drop(write(&from, path, "x")),
            }
            let error = copy(from.path(), root.path(), Etc::Directory).unwrap_err().to_string();
            assert!(error.ends_with("would lie in Nix's own directories; leave it out"), "{error}");
            assert!(!root.path().join("etc/first").exists(), "{path}");
        }
        // By a detour.
        let World { from, root } = world();
        write(&from, "etc/ssl/x", "x");
        symlink("/nix/store/x", root.path().join("etc/ssl")).unwrap();
        let error = format!("{:#}", copy(from.path(), root.path(), Etc::Directory).unwrap_err());
        assert!(error.contains("etc/ssl leads into Nix's own directories"), "{error}");
        assert_eq!(fs::read_dir(root.path().join("nix/store/x")).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let World { from, root } = world();
        std::os::unix::net::UnixListener::bind(from.path().join("socket")).unwrap();
        let error = copy(from.path(), root.path(), Etc::Directory).unwrap_err().to_string();
        assert_eq!(error, "the extra file socket is a device, pipe or socket; leave it out");
        assert!(check(&from.path().join("none")).is_err());
    }
}
