//! Ioctls: what files and read or write calls cannot say, each behind a safe function.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc::c_int;

use crate::size::Bytes;

mod raw {
    use nix::libc::c_int;

    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_read_bad!(blksszget, 0x1268, c_int);
    nix::ioctl_read_bad!(blkroget, 0x125e, c_int);
    nix::ioctl_none_bad!(blkrrpart, 0x125f);
    nix::ioctl_write_ptr_bad!(blkpg, 0x1269, super::BlkpgArgument);
    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4c82);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4c0a, super::LoopConfig);
    nix::ioctl_write_int_bad!(loop_set_fd, 0x4c00);
    nix::ioctl_none_bad!(loop_clr_fd, 0x4c01);
    nix::ioctl_write_ptr_bad!(loop_set_status64, 0x4c04, super::LoopInfo);
    nix::ioctl_read_bad!(loop_get_status64, 0x4c05, super::LoopInfo);
    nix::ioctl_write_ptr!(btrfs_subvol_create, 0x94, 14, super::BtrfsVolume);
}

const LOOP_AUTOCLEAR: u32 = 4;
const LOOP_PARTSCAN: u32 = 8;
const BLKPG_ADD_PARTITION: c_int = 1;
const BTRFS_NAME: usize = 4088;

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
pub struct BlkpgArgument {
    operation: c_int,
    flags: c_int,
    length: c_int,
    partition: *const BlkpgPartition,
}

/// `struct blkpg_partition`, in bytes.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: c_int,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// `struct loop_info64`.
#[repr(C)]
pub struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

const NO_INFO: LoopInfo = LoopInfo {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    sizelimit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// `struct loop_config`.
#[repr(C)]
pub struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
pub struct BtrfsVolume {
    fd: i64,
    name: [u8; BTRFS_NAME],
}

/// Returns a block device's size.
pub fn device_size(device: &File) -> io::Result<Bytes> {
    let mut size = 0;
    // SAFETY: BLKGETSIZE64 writes one u64, and `device` is open for the whole call.
    unsafe { raw::blkgetsize64(device.as_raw_fd(), &mut size) }?;
    Ok(Bytes(size))
}

/// Returns a block device's logical sector size.
pub fn sector_size(device: &File) -> io::Result<u64> {
    let mut size: c_int = 0;
    // SAFETY: BLKSSZGET writes one int, and `device` is open for the whole call.
    unsafe { raw::blksszget(device.as_raw_fd(), &mut size) }?;
    Ok(u64::try_from(size).unwrap_or(0))
}

/// Tells whether a block device is read-only.
pub fn is_read_only(device: &File) -> io::Result<bool> {
    let mut flag: c_int = 0;
    // SAFETY: BLKROGET writes one int, and `device` is open for the whole call.
    unsafe { raw::blkroget(device.as_raw_fd(), &mut flag) }?;
    Ok(flag != 0)
}

/// Makes the kernel read a disk's partition table again.
pub fn reread_partitions(disk: &File) -> io::Result<()> {
    // SAFETY: BLKRRPART takes no argument, and `disk` is open for the whole call.
    unsafe { raw::blkrrpart(disk.as_raw_fd()) }?;
    Ok(())
}

/// Tells the kernel of a partition, which then has a device node. `EBUSY` if the kernel knows one there.
pub fn add_partition(disk: &File, number: u32, start: Bytes, size: Bytes) -> io::Result<()> {
    let signed = |bytes: Bytes| i64::try_from(bytes.0).map_err(io::Error::other);
    let partition = BlkpgPartition {
        start: signed(start)?,
        length: signed(size)?,
        number: c_int::try_from(number).map_err(io::Error::other)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let argument = BlkpgArgument {
        operation: BLKPG_ADD_PARTITION,
        flags: 0,
        length: size_of::<BlkpgPartition>() as c_int,
        partition: &partition,
    };
    // SAFETY: BLKPG reads one blkpg_ioctl_arg and the blkpg_partition it points to; both outlive the
    // call, and `disk` is open for the whole of it.
    unsafe { raw::blkpg(disk.as_raw_fd(), &argument) }?;
    Ok(())
}

/// Returns the number of a loop device that is free now; another process may take it first.
pub fn free_loop(control: &File) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument, and `control` is open for the whole call.
    let number = unsafe { raw::loop_ctl_get_free(control.as_raw_fd()) }?;
    u32::try_from(number).map_err(io::Error::other)
}

/// Attaches the first `size` bytes of a file to a loop device, which lets go of the file, and of its
/// own partitions, at its last close.
pub fn attach_loop(device: &File, file: &impl AsFd, size: Bytes) -> io::Result<()> {
    let info = LoopInfo { sizelimit: size.0, flags: LOOP_AUTOCLEAR | LOOP_PARTSCAN, ..NO_INFO };
    let fd = file.as_fd().as_raw_fd();
    let config = LoopConfig { fd: fd.cast_unsigned(), block_size: 512, info, reserved: [0; 8] };
    // SAFETY: LOOP_CONFIGURE reads one loop_config, and both files are open for the whole call.
    match unsafe { raw::loop_configure(device.as_raw_fd(), &config) } {
        Ok(_) => return Ok(()),
        // Kernels before 5.8 have no LOOP_CONFIGURE.
        Err(nix::Error::EINVAL | nix::Error::ENOTTY) => {}
        Err(error) => return Err(error.into()),
    }
    // SAFETY: LOOP_SET_FD takes a file descriptor that is open for the whole call.
    unsafe { raw::loop_set_fd(device.as_raw_fd(), fd) }?;
    // SAFETY: LOOP_SET_STATUS64 reads one loop_info64.
    if let Err(error) = unsafe { raw::loop_set_status64(device.as_raw_fd(), &config.info) } {
        // SAFETY: LOOP_CLR_FD takes no argument; the device was attached just now, by us.
        let _ = unsafe { raw::loop_clr_fd(device.as_raw_fd()) };
        return Err(error.into());
    }
    Ok(())
}

/// Returns the device and the inode of the file that an attached loop device stands on.
pub fn loop_file(device: &File) -> io::Result<(u64, u64)> {
    let mut info = NO_INFO;
    // SAFETY: LOOP_GET_STATUS64 writes one loop_info64, and `device` is open for the whole call.
    unsafe { raw::loop_get_status64(device.as_raw_fd(), &mut info) }?;
    // The kernel's own way to write a device number in 32 bits.
    let number = info.device as u32;
    let (major, minor) = ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00));
    Ok((nix::libc::makedev(major, minor), info.inode))
}

/// Lets a loop device that is attached have partitions, which go when it is detached.
pub fn let_loop_have_partitions(device: &File) -> io::Result<()> {
    let mut info = NO_INFO;
    // SAFETY: LOOP_GET_STATUS64 writes one loop_info64, and `device` is open for the whole call.
    unsafe { raw::loop_get_status64(device.as_raw_fd(), &mut info) }?;
    info.flags |= LOOP_PARTSCAN;
    // SAFETY: LOOP_SET_STATUS64 reads one loop_info64, and `device` is open for the whole call.
    unsafe { raw::loop_set_status64(device.as_raw_fd(), &info) }?;
    Ok(())
}

/// Makes a btrfs subvolume called `name` in an open directory.
pub fn create_subvolume(parent: &File, name: &str) -> io::Result<()> {
    let mut volume = BtrfsVolume { fd: 0, name: [0; BTRFS_NAME] };
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() >= BTRFS_NAME || bytes.contains(&b'/') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    volume.name[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: BTRFS_IOC_SUBVOL_CREATE reads one btrfs_ioctl_vol_args, whose name ends with a NUL.
    unsafe { raw::btrfs_subvol_create(parent.as_raw_fd(), &volume) }?;
    Ok(())
}
