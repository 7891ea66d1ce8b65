//! Files of a root, found as that root's own programs would find them.
//!
//! Absolute links and `..` in a root lead astray when they are followed from outside; the kernel's
//! `openat2` follows them inside.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::libc;
use nix::sys::stat::Mode;

/// Opens `path` of the root at `root`, every link on its way seen from inside.
pub fn open(root: &Path, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let root = File::open(root)?;
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(Mode::empty())
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(root, path, how)?)
}

/// Reads a file of the root, of at most `limit` bytes.
pub fn read(root: &Path, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::from(open(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?);
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a file of sensible size"));
    }
    let mut contents = Vec::new();
    file.take(limit).read_to_end(&mut contents)?;
    Ok(contents)
}

/// Tells whether `path` leads to something in the root.
pub fn exists(root: &Path, path: &Path) -> bool {
    open(root, path, OFlag::O_PATH).is_ok()
}

/// Returns where an open file or directory is, as seen from here.
pub fn path_of(fd: &OwnedFd) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Copies extended attributes as far as the file system and our rights allow, links not followed.
pub fn copy_attributes(from: &Path, to: &Path) {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    const LIMIT: usize = 1 << 16; // the kernel's own, for names and for a value
    let (Ok(from), Ok(to)) =
        (CString::new(from.as_os_str().as_bytes()), CString::new(to.as_os_str().as_bytes()))
    else {
        return;
    };
    let mut names = vec![0_u8; LIMIT];
    let mut value = vec![0_u8; LIMIT];
    // SAFETY: the paths end in NUL, and the buffer is as long as said.
    let length = unsafe { libc::llistxattr(from.as_ptr(), names.as_mut_ptr().cast(), LIMIT) };
    let Ok(length) = usize::try_from(length) else { return };
    for name in names[..length].split_inclusive(|&byte| byte == 0) {
        let Ok(name) = std::ffi::CStr::from_bytes_with_nul(name) else { continue };
        // SAFETY: as above, and the value's length is what the kernel has just returned.
        unsafe {
            let size = libc::lgetxattr(from.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), LIMIT);
            if let Ok(size) = usize::try_from(size) {
                libc::lsetxattr(to.as_ptr(), name.as_ptr(), value.as_ptr().cast(), size, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_inside_the_root() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("nix/store/x/etc")).unwrap();
        fs::write(root.path().join("nix/store/x/etc/hostname"), "inside").unwrap();
        symlink("/nix/store/x/etc", root.path().join("etc")).unwrap();
        symlink("../../../../../../nix/store/x/etc/hostname", root.path().join("up")).unwrap();
        symlink("/proc/self/status", root.path().join("astray")).unwrap();
        for path in ["/etc/hostname", "etc/hostname", "/up", "/../../etc/hostname"] {
            assert_eq!(read(root.path(), Path::new(path), 100).unwrap(), b"inside", "{path}");
        }
        assert!(!exists(root.path(), Path::new("astray")));
        assert!(exists(root.path(), Path::new("etc")));
        assert!(read(root.path(), Path::new("etc/hostname"), 3).is_err());
        assert!(read(root.path(), Path::new("etc"), 100).is_err());
    }
}
