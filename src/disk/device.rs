//! Devices: a disk or image opened for writing, and a device node for each of its partitions.
//!
//! Nodes are resolved through `/sys` by device number, so that symlinks such as
//! `/dev/disk/by-id/x` work and no name is guessed. The kernel is told of each partition, for the
//! table that says where they are is written last.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::libc;
use nix::sys::stat::{Mode, SFlag};

use super::contents;
use super::seen::Seen;
use super::table::{self, Table};
use crate::size::Bytes;
use crate::sys::ioctl;

// udev opens a disk after each change; it lets go within a second or two.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// A whole disk, opened so that nobody else can claim it.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    file: File,
    locked: File,
    name: String,
    pub size: Bytes,
    pub sector_size: u64,
}

impl Disk {
    /// Opens a block device exclusively: it fails while anything on the disk is in use.
    pub fn open(path: &Path) -> Result<Disk> {
        let locked = locked(path)?;
        let opening = || format!("opening {} exclusively", path.display());
        let flags = libc::O_EXCL;
        let deadline = Instant::now() + PATIENCE;
        let file = loop {
            match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    std::thread::sleep(PAUSE);
                }
                result => break result.with_context(opening)?,
            }
        };
        let meta = file.metadata().with_context(opening)?;
        ensure!(meta.file_type().is_block_device(), "{} is no block device", path.display());
        let size = ioctl::device_size(&file).with_context(|| format!("measuring {}", path.display()))?;
        let sector_size =
            ioctl::sector_size(&file).with_context(|| format!("measuring {}", path.display()))?;
        let name = kernel_name(meta.rdev())?;
        Ok(Disk { path: path.to_owned(), file, locked, name, size, sector_size })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fails unless this is the disk that was seen, as it was then.
    pub fn check(&self, seen: &Seen) -> Result<()> {
        seen.check(&self.file, &self.path.display().to_string())
    }

    /// Returns the kernel's name, such as `nvme0n1`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Erases the old contents and returns the disk and the node of each partition that `table` will have.
    ///
    /// The exclusive claim ends here, for it would keep the partitions from being mounted. The lock
    /// stays with the disk that is returned.
    pub fn partition(mut self, table: &Table) -> Result<(File, Vec<PathBuf>)> {
        contents::wipe_disk(&mut self.file, self.size, self.sector_size, &table.slots)
            .with_context(|| format!("wiping {}", self.path.display()))?;
        if self.name.starts_with("loop") {
            ioctl::let_loop_have_partitions(&self.file)
                .with_context(|| format!("letting {} have partitions", self.path.display()))?;
        }
        reread(&self.file)
            .with_context(|| format!("rereading the partition table of {}", self.path.display()))?;
        drop(self.file);
        let nodes = nodes(&self.locked, &self.name, table)?;
        Ok((self.locked, nodes))
    }
}

/// Opens a disk and takes the lock that keeps udev from looking for a table, which would be none yet.
fn locked(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = file.try_lock() {
        let late = Instant::now() >= deadline;
        if late || matches!(error, TryLockError::Error(_)) {
            return Err(error).with_context(|| format!("locking {}", path.display()));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(file)
}

/// Makes the kernel read the table of a disk of which nothing is in use.
pub fn reread(disk: &File) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ioctl::reread_partitions(disk) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
}

/// Returns the kernel's name of a block device, by its number.
pub fn kernel_name(number: u64) -> Result<String> {
    let (major, minor) = (libc::major(number), libc::minor(number));
    let link = format!("/sys/dev/block/{major}:{minor}");
    let target = fs::read_link(&link).with_context(|| format!("reading {link}"))?;
    let name = target.file_name().ok_or_else(|| anyhow!("{link} leads nowhere"))?;
    Ok(name.to_string_lossy().into_owned())
}

/// Returns the node of each partition of the disk that the kernel calls `name`.
pub(super) fn nodes(disk: &File, name: &str, table: &Table) -> Result<Vec<PathBuf>> {
    for slot in &table.slots {
        match ioctl::add_partition(disk, slot.number, slot.start, slot.size) {
            // Another program made the kernel look.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) => {}
            result => {
                result.with_context(|| format!("telling of partition {} of {name}", slot.number))?;
            }
        }
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found: Option<Vec<(String, u64)>> =
            table.slots.iter().map(|slot| partition_of(name, slot)).collect();
        if let Some(found) = found {
            return found.iter().map(|(name, number)| node(name, *number)).collect();
        }
        if Instant::now() >= deadline {
            bail!(
                "the kernel still sees other partitions on {name} after {} seconds; detach it or unplug it, and retry",
                PATIENCE.as_secs()
            );
        }
        std::thread::sleep(PAUSE);
    }
}

/// Finds a partition of a disk in `/sys` whose number, start and size are the table's.
fn partition_of(disk: &str, slot: &table::Slot) -> Option<(String, u64)> {
    for entry in fs::read_dir(format!("/sys/class/block/{disk}")).ok()?.flatten() {
        let number = |file: &str| -> Option<u64> {
            fs::read_to_string(entry.path().join(file)).ok()?.trim().parse().ok()
        };
        // /sys counts in sectors of 512 bytes on every disk.
        let same = number("partition") == Some(u64::from(slot.number))
            && number("start") == Some(slot.start.0 / 512)
            && number("size") == Some(slot.size.0 / 512);
        if same {
            let device = fs::read_to_string(entry.path().join("dev")).ok()?;
            let (major, minor) = device.trim().split_once(':')?;
            let device = libc::makedev(major.parse().ok()?, minor.parse().ok()?);
            return Some((entry.file_name().to_string_lossy().into_owned(), device));
        }
    }
    None
}

/// Returns the node of a partition, made if it does not appear by itself.
fn node(name: &str, number: u64) -> Result<PathBuf> {
    // Sysfs writes `/` as `!`, as in cciss!c0d0p1.
    let path = Path::new("/dev").join(name.replace('!', "/"));
    let is_it =
        || fs::metadata(&path).is_ok_and(|meta| meta.file_type().is_block_device() && meta.rdev() == number);
    let deadline = Instant::now() + PATIENCE;
    while !is_it() && path.exists() && Instant::now() < deadline {
        std::thread::sleep(PAUSE);
    }
    if !path.exists() {
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        nix::sys::stat::mknod(&path, SFlag::S_IFBLK, mode, number)
            .or_else(|error| if is_it() { Ok(()) } else { Err(error) })
            .with_context(|| format!("making the device node {}", path.display()))?;
    }
    ensure!(is_it(), "{} is not the partition the kernel means by {name}", path.display());
    Ok(path)
}
