//! `sbin/init` of a root, by which container runtimes start the system in it.
//!
//! The installer of a container's configuration lets it lead to the toplevel itself. It is kept in
//! step with the profile, so that what is started is what was deployed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;

use super::profile::publish_link;
use crate::store::path::StorePath;
use crate::sys::{file, inside};

/// Returns the system that the root's `sbin/init` leads to, and the part of it, such as `init`.
pub fn led_to(root: &Path) -> Option<(StorePath, String)> {
    let target = fs::read_link(directory(root)?.join("init")).ok()?;
    let system = StorePath::containing(&target)?;
    let part = target.to_str()?.strip_prefix(&format!("{system}/"))?.to_owned();
    Some((system, part))
}

/// Returns the part of `system`, in the store of `root`, that a container starts.
///
/// With a systemd stage 1, `init` is systemd itself, and what activates the system stands beside it.
pub fn container_part(root: &Path, system: &StorePath) -> &'static str {
    match inside::exists(root, &PathBuf::from(format!("{system}/prepare-root"))) {
        true => "prepare-root",
        false => "init",
    }
}

/// Leads the root's `sbin/init` to `part` of `system`.
pub fn lead(root: &Path, system: &StorePath, part: &str) -> Result<()> {
    let dir = directory(root).with_context(|| format!("finding sbin of {}", root.display()))?;
    publish_link(Path::new(&format!("{system}/{part}")), &dir.join("init"))?;
    file::sync_dir(&dir)
}

// `sbin` may be a link itself, which is followed inside the root.
fn directory(root: &Path) -> Option<PathBuf> {
    let dir = inside::open(root, Path::new("sbin"), OFlag::O_PATH | OFlag::O_DIRECTORY).ok()?;
    inside::path_of(&dir).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn it_tells_what_it_leads_to() {
        let root = tempfile::tempdir().unwrap();
        let system = |letter: &str| StorePath::from_base_name(&format!("{}-x", letter.repeat(32))).unwrap();
        assert_eq!(led_to(root.path()), None);
        fs::create_dir_all(root.path().join("usr/sbin")).unwrap();
        symlink("/usr/sbin", root.path().join("sbin")).unwrap();
        symlink(format!("{}/prepare-root", system("a")), root.path().join("usr/sbin/init")).unwrap();
        assert_eq!(led_to(root.path()), Some((system("a"), "prepare-root".to_owned())));
        lead(root.path(), &system("b"), "init").unwrap();
        assert_eq!(led_to(root.path()), Some((system("b"), "init".to_owned())));
    }
}
