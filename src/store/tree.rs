//! Trees of files as a store holds them: read, written with canonical metadata, checked, removed.
//!
//! Everything goes by a name in an open directory: short for the kernel to walk, and no symlink
//! on the way can lead astray.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, UtimensatFlags, fchmod, fstat, fstatat, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

// Shorter runs of zeros cost more as an extent of their own than as blocks.
const HOLE: u64 = 64 << 10;
// A part of the binary, so not as many as fit into a hole.
static ZEROS: [u8; 4 << 10] = [0; 4 << 10];

/// The time stamp of everything in a store: one second after the epoch.
const MTIME: TimeSpec = TimeSpec::new(1, 0);

pub struct Entry {
    pub name: CString,
    /// What the directory said; some file systems do not say.
    pub kind: Option<Type>,
}

/// Opens a directory for reading and as a base for names.
pub fn open_dir(parent: BorrowedFd, name: &CStr) -> nix::Result<OwnedFd> {
    open_quietly(parent, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}

/// Opens a file for reading. A FIFO that took its place does not block.
pub fn open_file(parent: BorrowedFd, name: &CStr) -> nix::Result<File> {
    open_quietly(parent, name, OFlag::O_RDONLY | OFlag::O_NONBLOCK).map(File::from)
}

// Without O_NOATIME reading a store would write to its inodes; only their owner may ask for it.
fn open_quietly(parent: BorrowedFd, name: &CStr, flags: OFlag) -> nix::Result<OwnedFd> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(parent, name, flags | OFlag::O_NOATIME, Mode::empty()) {
        Err(Errno::EPERM) => openat(parent, name, flags, Mode::empty()),
        other => other,
    }
}

/// Returns a directory's entries in archive order, and the directory.
pub fn list(dir: OwnedFd) -> nix::Result<(OwnedFd, Vec<Entry>)> {
    let mut entries = Vec::new();
    // Dir closes what it is given.
    let mut stream = Dir::from_fd(
        dir.try_clone().map_err(|error| error.raw_os_error().map_or(Errno::EMFILE, Errno::from_raw))?,
    )?;
    for entry in stream.iter() {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            entries.push(Entry { name: entry.file_name().to_owned(), kind: entry.file_type() });
        }
    }
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok((dir, entries))
}

/// Tells whether a directory has no entries.
pub fn is_empty(dir: OwnedFd) -> nix::Result<bool> {
    let mut stream = Dir::from_fd(dir)?;
    let dots = |name: &CStr| name == c"." || name == c"..";
    Ok(stream.iter().all(|entry| entry.is_ok_and(|entry| dots(entry.file_name()))))
}

/// Returns what `name` is, without following it.
pub fn kind(parent: BorrowedFd, name: &CStr) -> nix::Result<Type> {
    let stat = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => Type::File,
        libc::S_IFDIR => Type::Directory,
        libc::S_IFLNK => Type::Symlink,
        libc::S_IFSOCK => Type::Socket,
        libc::S_IFIFO => Type::Fifo,
        libc::S_IFBLK => Type::BlockDevice,
        _ => Type::CharacterDevice,
    })
}

pub fn kind_name(kind: Type) -> &'static str {
    match kind {
        Type::Fifo => "FIFO",
        Type::CharacterDevice => "character device",
        Type::Directory => "directory",
        Type::BlockDevice => "block device",
        Type::File => "file",
        Type::Symlink => "symlink",
        Type::Socket => "socket",
    }
}

/// Tells what is not canonical about an object's metadata; `owner` is who should own it.
pub fn flaw(stat: &FileStat, owner: (u32, u32)) -> Option<String> {
    let mode = stat.st_mode & 0o7777;
    let kind = stat.st_mode & libc::S_IFMT;
    let fine = match kind {
        libc::S_IFLNK => true,
        libc::S_IFDIR => mode == 0o555,
        _ => mode == 0o444 || mode == 0o555,
    };
    if !fine {
        return Some(format!("has mode {mode:04o}"));
    }
    if (stat.st_mtime, stat.st_mtime_nsec) != (1, 0) {
        return Some(format!("was modified at {} instead of 1", stat.st_mtime));
    }
    if (stat.st_uid, stat.st_gid) != owner {
        return Some(format!("belongs to {}:{}", stat.st_uid, stat.st_gid));
    }
    None
}

/// Writes trees with canonical metadata: 0444 or 0555, time stamp 1, owned by who we are.
pub struct Builder {
    stack: Vec<OwnedFd>,
    file: Option<Writing>,
    // Whether the umask lets 0555 through, so that files need no fchmod.
    exact_modes: bool,
}

struct Writing {
    file: File,
    mode: u32,
    at: u64,
    zeros: u64,
}

impl Builder {
    /// Writes below `parent`.
    pub fn new(parent: OwnedFd, exact_modes: bool) -> Self {
        Builder { stack: vec![parent], file: None, exact_modes }
    }

    /// The directory being filled.
    pub fn current(&self) -> BorrowedFd<'_> {
        self.stack.last().expect("the parent is never left").as_fd()
    }

    pub fn directory(&mut self, name: &CStr) -> Result<()> {
        mkdirat(self.current(), name, Mode::S_IRWXU).context("making a directory")?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = openat(self.current(), name, flags, Mode::empty()).context("opening a new directory")?;
        self.stack.push(dir);
        Ok(())
    }

    /// Completes a directory: its time stamp comes after its last entry.
    pub fn leave(&mut self) -> Result<()> {
        let dir = self.stack.pop().expect("leave follows directory");
        fchmod(&dir, Mode::from_bits_truncate(0o555)).context("setting a directory's mode")?;
        futimens(&dir, &TimeSpec::UTIME_OMIT, &MTIME).context("setting a directory's time")
    }

    pub fn symlink(&mut self, name: &CStr, target: &OsStr) -> Result<()> {
        symlinkat(target, self.current(), name).context("making a symlink")?;
        let flags = UtimensatFlags::NoFollowSymlink;
        utimensat(self.current(), name, &TimeSpec::UTIME_OMIT, &MTIME, flags)
            .context("setting a symlink's time")
    }

    /// Begins a file; its bytes come by [`Builder::data`].
    pub fn file(&mut self, name: &CStr, executable: bool) -> Result<()> {
        let mode = if executable { 0o555 } else { 0o444 };
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file =
            openat(self.current(), name, flags, Mode::from_bits_truncate(mode)).context("making a file")?;
        self.file = Some(Writing { file: file.into(), mode, at: 0, zeros: 0 });
        Ok(())
    }

    /// The file being written.
    pub fn open_file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(|writing| writing.file.as_fd())
    }

    pub fn data(&mut self, bytes: &[u8]) -> Result<()> {
        let writing = self.file.as_mut().expect("data follows file");
        if is_zero(bytes) {
            writing.zeros += bytes.len() as u64;
            return Ok(());
        }
        writing.settle().and_then(|()| writing.write(bytes)).context("writing a file")
    }

    pub fn end_file(&mut self) -> Result<()> {
        let mut writing = self.file.take().expect("end_file follows file");
        if writing.zeros >= HOLE {
            writing.file.set_len(writing.at + writing.zeros).context("writing a file")?;
        } else {
            writing.settle().context("writing a file")?;
        }
        if !self.exact_modes {
            fchmod(&writing.file, Mode::from_bits_truncate(writing.mode)).context("setting a file's mode")?;
        }
        futimens(&writing.file, &TimeSpec::UTIME_OMIT, &MTIME).context("setting a file's time")
    }
}

impl Writing {
    // Turns the zeros met before into a hole or, if they are few, into zeros.
    fn settle(&mut self) -> std::io::Result<()> {
        let zeros = std::mem::take(&mut self.zeros);
        if zeros >= HOLE {
            self.at += zeros;
            return Ok(());
        }
        let mut left = zeros as usize;
        while left > 0 {
            let count = left.min(ZEROS.len());
            self.write(&ZEROS[..count])?;
            left -= count;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // The first bytes decide nearly always.
    let (head, rest) = bytes.split_at(bytes.len().min(16));
    head.iter().all(|&byte| byte == 0) && rest.chunks(ZEROS.len()).all(|rest| rest == &ZEROS[..rest.len()])
}

/// Removes `name` and all below it. It is no error if it is not there.
pub fn remove(parent: BorrowedFd, name: &CStr) -> Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => (),
        Err(error) => return Err(error).with_context(|| format!("removing {name:?}")),
    }
    let dir = open_dir(parent, name).with_context(|| format!("removing {name:?}"))?;
    // A directory without write permission can only be emptied by root.
    fchmod(&dir, Mode::S_IRWXU).with_context(|| format!("removing {name:?}"))?;
    let (dir, entries) = list(dir).with_context(|| format!("removing {name:?}"))?;
    entries.iter().try_for_each(|entry| remove(dir.as_fd(), &entry.name))?;
    unlinkat(parent, name, UnlinkatFlags::RemoveDir).with_context(|| format!("removing {name:?}"))
}

/// Sets the time stamp every store object has on a directory that had to be touched again.
pub fn set_canonical_time(dir: BorrowedFd) -> Result<()> {
    futimens(dir, &TimeSpec::UTIME_OMIT, &MTIME).context("setting a directory's time")
}

/// Tells whether files made in `dir` get the mode asked for, whatever umask there is.
pub fn exact_modes(dir: BorrowedFd) -> Result<bool> {
    let probe = c".mode";
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = openat(dir, probe, flags, Mode::from_bits_truncate(0o555)).context("making a file")?;
    let mode = fstat(&file).context("looking at a new file")?.st_mode & 0o7777;
    unlinkat(dir, probe, UnlinkatFlags::NoRemoveDir).context("removing a file")?;
    Ok(mode == 0o555)
}
