//! A directory in one stream, with owners, modes and times: a tar archive, written and read by this program.

use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use tar::{Archive, Builder};

/// Writes all that is below `dir`.
pub fn pack(dir: &Path, out: impl Write) -> Result<()> {
    let packing = || format!("packing {}", dir.display());
    let mut archive = Builder::new(out);
    archive.follow_symlinks(false);
    archive.append_dir_all(".", dir).with_context(packing)?;
    archive.into_inner().and_then(|mut out| out.flush()).with_context(packing)
}

/// Restores below `dir` what [`pack`] wrote, and reads the stream to its very end.
///
/// Nothing is written beside `dir`, whatever the archive says.
pub fn unpack(mut input: impl Read, dir: &Path) -> Result<()> {
    let unpacking = || format!("unpacking into {}", dir.display());
    let mut archive = Archive::new(&mut input);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_preserve_mtime(true);
    archive.unpack(dir).with_context(unpacking)?;
    // Behind the last entry there are blocks of zeros.
    io::copy(&mut input, &mut io::sink()).with_context(unpacking).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn a_directory_is_what_it_was_on_the_other_side() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let deep = format!("{}/x", "d".repeat(200));
        for (path, mode) in [("etc/key", 0o600), ("bin/run", 0o4755), (deep.as_str(), 0o644)] {
            let path = from.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, path.as_os_str().len().to_string()).unwrap();
            chown(&path, Some(7), Some(8)).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
        symlink("/nowhere", from.path().join("link")).unwrap();
        fs::set_permissions(from.path().join("etc"), Permissions::from_mode(0o2750)).unwrap();
        let mut archive = Vec::new();
        pack(from.path(), &mut archive).unwrap();
        let mut rest = &archive[..];
        unpack(&mut rest, to.path()).unwrap();
        assert!(rest.is_empty(), "{} bytes were left for the next reader", rest.len());
        let mode = |path: &str| {
            let meta = fs::symlink_metadata(to.path().join(path)).unwrap();
            (meta.mode() & 0o7777, meta.uid(), meta.gid())
        };
        assert_eq!(mode("etc/key"), (0o600, 7, 8));
        assert_eq!(mode("bin/run"), (0o4755, 7, 8));
        assert_eq!(mode("etc").0, 0o2750);
        assert_eq!(fs::read_link(to.path().join("link")).unwrap(), Path::new("/nowhere"));
        assert_eq!(fs::read(to.path().join(&deep)).unwrap(), fs::read(from.path().join(&deep)).unwrap());
        let error = unpack(&archive[..archive.len() / 2], to.path()).unwrap_err();
        assert!(error.to_string().starts_with("unpacking into"), "{error:#}");
    }
}
