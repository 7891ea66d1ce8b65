//! `/etc` of a root: where it is written to, so that the running system sees it.
//!
//! With NixOS's `system.etc.overlay` the initrd mounts an overlay over `/etc`, and what lay below it is hidden. Where it
//! may be written to, its upper layer is `/.rw-etc/upper`.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::store::path::StorePath;
use crate::sys::inside;

const PLAIN: &str = "etc";
/// The upper layer of a mutable overlay.
pub const UPPER: &str = ".rw-etc/upper";
const WORK: &str = ".rw-etc/work";
// Real ones are a few KiB.
const TEXT_LIMIT: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Etc {
    Directory,
    /// An overlay that is written to in [`UPPER`].
    Overlay,
    /// An overlay that nobody writes to.
    Immutable,
}

/// Finds out how a system has its `/etc`.
pub fn of(root: &Path, system: &StorePath) -> Etc {
    let toplevel = PathBuf::from(system.to_string());
    if !inside::exists(root, &toplevel.join("etc-metadata-image")) {
        return Etc::Directory;
    }
    // Its activation mounts the overlay anew and names the layer; nixos-init has no script that tells.
    match inside::read(root, &toplevel.join("activate"), TEXT_LIMIT) {
        Ok(text) if !String::from_utf8_lossy(&text).contains(UPPER) => Etc::Immutable,
        _ => Etc::Overlay,
    }
}

impl Etc {
    /// Makes what an overlay is written to, as the initrd makes it.
    pub fn prepare(self, root: &Path) -> Result<()> {
        if self == Etc::Overlay {
            for dir in [UPPER, WORK] {
                let dir = root.join(dir);
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(&dir)
                    .with_context(|| format!("creating {}", dir.display()))?;
            }
        }
        Ok(())
    }

    /// Returns where in the root something is to be put so that it is at `path`, below the root, once the system runs;
    /// none where nothing can be put.
    pub fn place(self, path: &Path) -> Option<PathBuf> {
        let Ok(rest) = path.strip_prefix(PLAIN) else { return Some(path.to_owned()) };
        match self {
            Etc::Directory => Some(path.to_owned()),
            Etc::Overlay => Some(Path::new(UPPER).join(rest)),
            // The directory itself is there in any case.
            Etc::Immutable => rest.as_os_str().is_empty().then(|| path.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_to_etc_goes_where_the_system_sees_it() {
        let root = tempfile::tempdir().unwrap();
        let system = StorePath::from_base_name(&format!("{}-nixos", "a".repeat(32))).unwrap();
        let toplevel = system.in_root(root.path());
        fs::create_dir_all(&toplevel).unwrap();
        let place =
            |path: &str| of(root.path(), &system).place(Path::new(path)).map(|it| it.display().to_string());
        assert_eq!(place("etc/ssh/key").as_deref(), Some("etc/ssh/key"));
        fs::write(toplevel.join("etc-metadata-image"), "").unwrap();
        fs::write(toplevel.join("activate"), "mount -o upperdir=/.rw-etc/upper,workdir=/.rw-etc/work")
            .unwrap();
        assert_eq!(place("etc/ssh/key").as_deref(), Some(".rw-etc/upper/ssh/key"));
        assert_eq!(place("etcetera/x").as_deref(), Some("etcetera/x"));
        fs::write(toplevel.join("activate"), "mount -o ro").unwrap();
        assert_eq!(place("etc/ssh/key"), None);
        assert_eq!(place("var/x").as_deref(), Some("var/x"));
    }
}
