//! Users: which programs have an image or a disk open.
//!
//! The kernel names what is mounted or stands on a device; a virtual machine or a copy that runs is known only by what
//! it has open.

use std::fs::{self, File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::thread::sleep;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

// They look at every disk, and write to none.
const WATCHERS: [&str; 8] =
    ["systemd-udevd", "(udev-worker)", "udevd", "udisksd", "multipathd", "smartd", "dmeventd", "lvm"];
// What looks for a moment is gone by then.
const GLANCES: usize = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// Names the programs that have one of these devices, or this file, open: `qemu-system-x86 (process 4711)`.
pub fn of(is_it: impl Fn(&Metadata) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for glance in 0..GLANCES {
        found = look(&is_it);
        if found.is_empty() || glance + 1 == GLANCES {
            break;
        }
        sleep(PAUSE);
    }
    found
}

fn look(is_it: &impl Fn(&Metadata) -> bool) -> Vec<String> {
    let own = std::process::id().to_string();
    let is_process = |name: &str| name != own && name.bytes().all(|byte| byte.is_ascii_digit());
    let mut found = Vec::new();
    for pid in super::names_in("/proc").into_iter().filter(|name| is_process(name)) {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut open = files.filter_map(|file| fs::metadata(file.path()).ok());
        let Some(file) = open.find(|meta| is_it(meta)) else { continue };
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let name = name.trim();
        if !(file.file_type().is_block_device() && WATCHERS.contains(&name)) {
            found.push(format!("{name} (process {pid})"));
        }
    }
    found
}

/// Returns a test for the file that has this metadata, by whatever name.
pub fn is_file(meta: &Metadata) -> impl Fn(&Metadata) -> bool + use<> {
    let (device, inode) = (meta.dev(), meta.ino());
    move |other| other.is_file() && (other.dev(), other.ino()) == (device, inode)
}

/// Tells whether a program that need not be in sight here has locked a file, as QEMU locks its images.
pub fn is_locked(file: &File) -> bool {
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut lock)).is_ok() && lock.l_type != libc::F_UNLCK as i16
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::wait;

    #[test]
    fn who_has_a_file_open_is_named_by_whatever_name_it_has_there() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("x.img"), dir.path().join("other.img"));
        fs::write(&path, "x").unwrap();
        fs::hard_link(&path, &other).unwrap();
        let is_it = is_file(&fs::metadata(&path).unwrap());
        assert_eq!(of(&is_it), [""; 0]);
        let file = File::open(&other).unwrap();
        let mut cat = Command::new("sleep").arg("1000").stdin(Stdio::from(file)).spawn().unwrap();
        let named = format!("sleep (process {})", cat.id());
        wait::until("the program is named", || (look(&is_it) == [named.clone()]).then_some(()));
        assert_eq!(of(&is_it), [named]);
        cat.kill().unwrap();
        cat.wait().unwrap();
        assert_eq!(look(&is_it), [""; 0]);
    }

    #[test]
    fn a_lock_is_known_whoever_has_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let other = file.reopen().unwrap();
        assert!(!is_locked(file.as_file()));
        let lock = libc::flock {
            l_type: libc::F_RDLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: 100,
            l_len: 1,
            l_pid: 0,
        };
        fcntl(other.as_fd(), FcntlArg::F_OFD_SETLK(&lock)).unwrap();
        assert!(is_locked(file.as_file()));
        drop(other);
        assert!(!is_locked(file.as_file()));
    }
}
