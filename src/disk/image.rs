//! Images: regular files that hold a whole disk, reached through loop devices.
//!
//! A new image grows under a temporary name and is renamed when it is whole.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::libc;

use super::contents;
use super::device::{PartitionDevice, nodes, on_loops};
use super::table::{self, Table};
use crate::size::Bytes;
use crate::sys::{file as files, ioctl};

// Another process may take the free loop device before we do.
const ATTACH_TRIES: usize = 64;
const NODES_PATIENCE: Duration = Duration::from_millis(300);

/// A loop device, detached by the kernel when its last user closes it.
#[derive(Debug)]
pub struct Loop {
    path: PathBuf,
    name: String,
    file: File,
}

impl Loop {
    /// Attaches a part of a file or device; `scan` asks the kernel for partition nodes.
    pub fn attach(file: &File, offset: Bytes, size: Bytes, scan: bool) -> Result<Loop> {
        let read_write = || OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).clone();
        let control = read_write().open("/dev/loop-control").context("opening /dev/loop-control")?;
        for _ in 0..ATTACH_TRIES {
            let number = ioctl::free_loop(&control).context("looking for a free loop device")?;
            let name = format!("loop{number}");
            let path = Path::new("/dev").join(&name);
            let device = match read_write().open(&path) {
                Ok(device) => device,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
                    let number = libc::makedev(7, number);
                    let _ = nix::sys::stat::mknod(&path, nix::sys::stat::SFlag::S_IFBLK, mode, number);
                    read_write().open(&path).with_context(|| format!("opening {}", path.display()))?
                }
                Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
            };
            match ioctl::attach_loop(&device, file, offset, size, scan) {
                Ok(()) => return Ok(Loop { path, name, file: device }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error).with_context(|| format!("attaching {}", path.display())),
            }
        }
        bail!("every loop device was taken by somebody else, {ATTACH_TRIES} times; try again")
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes everything out and lets go.
    pub fn finish(self) -> Result<()> {
        self.file.sync_all().with_context(|| format!("writing out {}", self.path.display()))
    }
}

/// An image file opened for an installation, locked against another one.
#[derive(Debug)]
pub struct Image {
    /// Where it will be.
    path: PathBuf,
    /// Where it grows; the same for an image that was there.
    growing: PathBuf,
    file: File,
    pub size: Bytes,
}

/// Images have the sectors most disks have.
pub const SECTOR_SIZE: u64 = 512;

impl Image {
    /// Makes a sparse image under a temporary name beside `path`.
    pub fn create(path: &Path, size: Bytes) -> Result<Image> {
        let name = path.file_name().with_context(|| format!("naming the image {}", path.display()))?;
        let growing = path.with_file_name(format!(".{}.part", name.to_string_lossy()));
        let making = || format!("making {}", growing.display());
        let mut image = Self::locked(path, growing.clone(), true)?;
        // What an interrupted run left is not worth keeping.
        image.file.set_len(0).with_context(making)?;
        image.file.set_len(size.0).with_context(making)?;
        image.size = size;
        Ok(image)
    }

    /// Opens an image that is there; it is overwritten in place.
    pub fn open(path: &Path) -> Result<Image> {
        Self::locked(path, path.to_owned(), false)
    }

    fn locked(path: &Path, growing: PathBuf, create: bool) -> Result<Image> {
        let opening = || format!("opening {}", growing.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .mode(0o600)
            .open(&growing)
            .with_context(opening)?;
        if let Err(error) = file.try_lock() {
            bail!("{} is being written by another installation ({error})", growing.display());
        }
        let size = Bytes(file.metadata().with_context(opening)?.len());
        Ok(Image { path: path.to_owned(), growing, file, size })
    }

    /// Erases the old contents, writes the table, and returns a device for the whole and for each partition.
    pub fn partition(&mut self, table: &Table) -> Result<(Loop, Vec<PartitionDevice>)> {
        let name = self.growing.display().to_string();
        contents::wipe_disk(&mut self.file, self.size, SECTOR_SIZE)
            .with_context(|| format!("wiping {name}"))?;
        table::write(&mut self.file, table)
            .with_context(|| format!("writing the partition table of {name}"))?;
        let whole = Loop::attach(&self.file, Bytes(0), self.size.round_down(Bytes(SECTOR_SIZE)), true)?;
        let partitions = match nodes(&whole.name, table, NODES_PATIENCE)? {
            Some(nodes) => nodes.into_iter().map(PartitionDevice::of_kernel).collect(),
            None => on_loops(&self.file, table)?,
        };
        Ok((whole, partitions))
    }

    /// Gives the whole image its name. Every device on it must be finished.
    pub fn finish(self) -> Result<()> {
        self.file.sync_all().with_context(|| format!("syncing {}", self.growing.display()))?;
        if self.growing != self.path {
            fs::rename(&self.growing, &self.path)
                .with_context(|| format!("publishing {}", self.path.display()))?;
        }
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        files::sync_dir(dir)
    }
}
