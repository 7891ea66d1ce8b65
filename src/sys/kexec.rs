//! The system calls that load another kernel and jump into it, each behind a safe function.

use std::convert::Infallible;
use std::ffi::{CStr, c_long, c_ulong, c_void};
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::ptr;

use nix::errno::Errno;
use nix::libc;

// The C libraries do not all name them.
#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: c_long = 320;
#[cfg(not(target_arch = "x86_64"))]
const KEXEC_FILE_LOAD: c_long = 294;
const FILE_UNLOAD: c_ulong = 1;

/// A whole file in memory, as far as it is looked at; only the kernel looks.
pub struct Mapping {
    address: *mut c_void,
    length: usize,
}

impl Mapping {
    pub fn of(file: &File) -> io::Result<Mapping> {
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        // SAFETY: the kernel chooses where, so nothing that exists is touched, and `file` is open.
        let address = unsafe {
            libc::mmap(ptr::null_mut(), length, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { address, length })
    }

    pub fn length(&self) -> u64 {
        self.length as u64
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is what mmap returned, and no segment outlives the mapping.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

/// `struct kexec_segment`: what comes to lie where in physical memory; the rest of `room` is zeros.
#[repr(C)]
pub struct Segment<'a> {
    contents: *const c_void,
    length: usize,
    address: usize,
    room: usize,
    borrowed: PhantomData<&'a ()>,
}

impl<'a> Segment<'a> {
    /// Makes a segment of bytes in memory.
    pub fn of_bytes(bytes: &'a [u8], address: u64, room: u64) -> Segment<'a> {
        Segment::new(bytes.as_ptr().cast(), bytes.len(), address, room)
    }

    /// Makes a segment of a file from a byte on, which is its end at the most.
    pub fn of_file(file: &'a Mapping, from: u64, address: u64, room: u64) -> Segment<'a> {
        let from = from.min(file.length()) as usize;
        let contents = file.address.cast_const().wrapping_byte_add(from);
        Segment::new(contents, file.length - from, address, room)
    }

    // Both ends are machines of 64 bits.
    fn new(contents: *const c_void, length: usize, address: u64, room: u64) -> Segment<'a> {
        Segment { contents, length, address: address as usize, room: room as usize, borrowed: PhantomData }
    }
}

/// Has the kernel read another kernel and its initrd, and place them.
pub fn load_files(kernel: &File, initrd: &File, command_line: &CStr) -> Result<(), Errno> {
    let bytes = command_line.to_bytes_with_nul();
    // SAFETY: both files are open for the whole call, which reads `bytes` and no more.
    let result = unsafe {
        libc::syscall(
            KEXEC_FILE_LOAD,
            c_long::from(kernel.as_raw_fd()),
            c_long::from(initrd.as_raw_fd()),
            bytes.len() as c_ulong,
            bytes.as_ptr(),
            0 as c_ulong,
        )
    };
    Errno::result(result).map(drop)
}

/// Has the kernel keep `segments`, and jump to the physical address `entry` once they are in place.
pub fn load_segments(entry: u64, segments: &[Segment]) -> Result<(), Errno> {
    // SAFETY: each segment borrows what it points to, and the call reads no more than their lengths.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_load,
            entry as c_ulong,
            segments.len() as c_ulong,
            segments.as_ptr(),
            0 as c_ulong,
        )
    };
    Errno::result(result).map(drop)
}

/// Makes the kernel forget what was loaded by either way.
pub fn unload() -> Result<(), Errno> {
    // SAFETY: without segments nothing is read.
    let result = unsafe {
        libc::syscall(libc::SYS_kexec_load, 0 as c_ulong, 0 as c_ulong, ptr::null::<Segment>(), 0 as c_ulong)
    };
    if result == 0 {
        return Ok(());
    }
    // SAFETY: with this flag neither file nor command line is looked at.
    let result = unsafe {
        libc::syscall(
            KEXEC_FILE_LOAD,
            -1 as c_long,
            -1 as c_long,
            0 as c_ulong,
            ptr::null::<c_void>(),
            FILE_UNLOAD,
        )
    };
    Errno::result(result).map(drop)
}

/// Starts what is loaded.
pub fn start() -> Result<Infallible, Errno> {
    // SAFETY: it takes no pointer; where it succeeds, nothing of this process is left to be unsafe.
    unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) };
    Err(Errno::last())
}
