//! Kexec: loading another kernel beside the one that runs, and jumping into it.
//!
//! The kernel that runs can do all of it ([`load_file`]). Where it was built without, wants a signature or
//! lacks the memory, and nothing forbids the older way, we place the parts ([`load_segments`], on x86-64 only).
//! What is loaded stays in memory and changes nothing until [`jump`], which nothing of the old system outlives.
//!
//! Until the jump, both kernels and both initrds lie in memory: the room of the new kernel (52 MiB for
//! Debian's of version 6.1) and its initrd, together no more than half of the memory. `load_file` holds
//! both files another time while it reads them. Memory that is not there is not asked for: the running
//! kernel would kill programs to get it.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

use self::bzimage::Image;
use self::memory::{PAGE, Rooms};
pub use self::refusal::KexecError;
use self::refusal::{explain, has_second_way, lockdown};
use crate::size::Bytes;
use crate::sys::kexec::{self, Mapping, Segment};

mod bzimage;
mod handover;
mod machine;
mod memory;
mod refusal;
mod trampoline;

// The limit of PCs, and of most others; the NUL counts.
const LONGEST_COMMAND_LINE: usize = 2048;

// What the page tables of the jump take, and what others take while we look.
const MARGIN: Bytes = Bytes::mib(16);

// How long file systems may take to become read-only: they were synced before.
const REMOUNT: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(50);

/// Loads a kernel and an initrd for the jump; nothing else of the machine changes.
///
/// The files must not be open for writing anywhere, and may go once they are loaded.
pub fn load(kernel: &File, initrd: &File, command_line: &str) -> Result<(), KexecError> {
    match load_file(kernel, initrd, command_line) {
        Err(first) if cfg!(target_arch = "x86_64") && has_second_way(&first, lockdown().as_deref()) => {
            match load_segments(kernel, initrd, command_line) {
                Err(KexecError::NotBuiltIn | KexecError::NotPermitted) if first != KexecError::NotBuiltIn => {
                    Err(first)
                }
                second => second,
            }
        }
        result => result,
    }
}

/// Has the running kernel read, check and place both files.
pub fn load_file(kernel: &File, initrd: &File, command_line: &str) -> Result<(), KexecError> {
    let line = checked(command_line, LONGEST_COMMAND_LINE - 1)?;
    let (code, disk) = (length(kernel)?, length(initrd)?);
    // The kernels of other machines say it elsewhere, and are as large as their files or little more.
    let room = head(kernel).ok().and_then(|head| Image::parse(&head)).map_or(code, |image| image.room);
    let need = room + code + disk * 2;
    machine::must_have(need + MARGIN)?;
    kexec::load_files(kernel, initrd, &line).map_err(|errno| explain(errno, need))
}

/// Places the parts of a bzImage and of the initrd by what the kernel tells of the memory.
///
/// The other kernel can call UEFI where this one can; where this one does not say how, it does without, and
/// has no `efivars`. On other machines than x86-64 this is [`KexecError::NotBuiltIn`].
pub fn load_segments(kernel: &File, initrd: &File, command_line: &str) -> Result<(), KexecError> {
    if !cfg!(target_arch = "x86_64") {
        return Err(KexecError::NotBuiltIn);
    }
    let image = Image::parse(&head(kernel)?).ok_or(KexecError::NotAKernel)?;
    checked(command_line, image.longest_command_line)?;
    // A kernel that does not know of a fifth level of page tables finds nothing where it looks.
    if !image.five_levels && machine::has_five_levels() {
        return Err(KexecError::NotAKernel);
    }
    let mapped = |file, name| Mapping::of(file).map_err(|error| KexecError::unreadable(name, &error));
    let (code, disk) = (mapped(kernel, "the kernel")?, mapped(initrd, "the initrd")?);
    let machine = machine::look()?;
    let rooms = Rooms {
        kernel: image.room.0.max(code.length() - image.code.0.min(code.length())).next_multiple_of(PAGE),
        initrd: disk.length().next_multiple_of(PAGE),
        handover: handover::room(&machine, &image, command_line),
    };
    let need = Bytes(rooms.kernel + rooms.initrd + rooms.handover);
    machine::must_have(need + MARGIN)?;
    let places = memory::place(&machine::free_ram()?, &image, rooms).ok_or(KexecError::NoMemory(need))?;
    let handover = handover::handover(&machine, &image, command_line, disk.length(), &places);
    let segments = [
        Segment::of_bytes(&handover, places.handover, rooms.handover),
        Segment::of_file(&code, image.code.0, places.kernel, rooms.kernel),
        Segment::of_file(&disk, 0, places.initrd, rooms.initrd),
    ];
    kexec::load_segments(places.handover, &segments).map_err(|errno| explain(errno, need))
}

fn checked(command_line: &str, most: usize) -> Result<CString, KexecError> {
    if command_line.len() > most {
        return Err(KexecError::CommandLine { have: command_line.len(), most });
    }
    CString::new(command_line).map_err(|_| KexecError::Other(Errno::EINVAL))
}

/// Reads what an [`Image`] is parsed from.
fn head(kernel: &File) -> Result<Vec<u8>, KexecError> {
    let mut head = vec![0; bzimage::HEAD];
    kernel.read_exact_at(&mut head, 0).map_err(|_| KexecError::NotAKernel)?;
    Ok(head)
}

fn length(file: &File) -> Result<Bytes, KexecError> {
    let metadata = file.metadata().map_err(|error| KexecError::unreadable("a file to load", &error))?;
    Ok(Bytes(metadata.len()))
}

/// Takes back what was loaded; without anything loaded, nothing happens.
pub fn unload() {
    // Where there is no kexec there is nothing to take back.
    let _ = kexec::unload();
}

/// Syncs, makes every file system read-only and starts what is loaded. Returns only on failure.
///
/// No program is asked to end, so services should be stopped by then where their data matters.
pub fn jump() -> Result<Infallible> {
    let loaded =
        fs::read_to_string("/sys/kernel/kexec_loaded").context("asking whether a kernel is loaded")?;
    if loaded.trim() != "1" {
        bail!("no kernel is loaded to jump into");
    }
    nix::unistd::sync();
    // Not each machine has it, and what was synced is safe without.
    if sysrq(b"u").is_ok() {
        wait_for_remount();
    }
    nix::unistd::sync();
    kexec::start().context("jumping into the other kernel; the file systems are read-only by now, so reboot")
}

fn sysrq(key: &[u8]) -> std::io::Result<()> {
    File::options().write(true).open("/proc/sysrq-trigger")?.write_all(key)
}

/// Waits until no disk can be written any more: the kernel remounts while we go on.
fn wait_for_remount() {
    let start = Instant::now();
    let writable = || fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| any_writable(&mounts));
    while start.elapsed() < REMOUNT && writable() {
        sleep(GLANCE);
    }
}

/// Tells whether `/proc/self/mountinfo` has a file system of a block device that can be written.
fn any_writable(mountinfo: &str) -> bool {
    mountinfo.lines().filter_map(|line| line.split_once(" - ")).any(|(_, rest)| {
        // The file system's own options: a mount may be read-only where the file system is not.
        let mut words = rest.split(' ');
        let (kind, device) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let options = words.next().unwrap_or_default();
        device.starts_with("/dev/")
            && kind != "fuse"
            && !kind.starts_with("fuse.")
            && options.split(',').any(|option| option == "rw")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_that_can_be_written_are_waited_for() {
        for (line, wanted) in [
            ("22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro", true),
            ("22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 ro,errors=remount-ro", false),
            // A read-only mount of a file system that can be written, and the other way round.
            ("23 1 0:25 /nix /nix ro,noatime - btrfs /dev/sda2 rw,space_cache=v2", true),
            ("23 1 0:25 /nix /nix rw,noatime master:3 propagate_from:2 - btrfs /dev/sda2 ro", false),
            ("24 1 0:5 / /dev rw,nosuid - devtmpfs udev rw,size=10k", false),
            ("25 1 0:40 / /run/user/0/doc rw - fuse.portal /dev/fuse rw,user_id=0", false),
            ("26 1 8:3 / /mnt rw - fuseblk /dev/sda3 rw,user_id=0", true),
            ("nonsense", false),
        ] {
            assert_eq!(any_writable(line), wanted, "{line}");
        }
    }

    #[test]
    fn a_command_line_is_of_one_piece_and_not_too_long() {
        let long = "x".repeat(2048);
        assert_eq!(checked(&long, 2047), Err(KexecError::CommandLine { have: 2048, most: 2047 }));
        assert!(checked(&long[..2047], 2047).is_ok());
        assert_eq!(checked("a\0b", 2047), Err(KexecError::Other(Errno::EINVAL)));
    }
}
