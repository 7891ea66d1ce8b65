//! The kernel file of a PC: what its setup header says about where it runs.
//!
//! Decides only: the first bytes of the file in. The fields are those of the kernel's documentation
//! of the x86 boot protocol (`Documentation/arch/x86/boot.rst`), by their offsets in the file, which
//! are also those in `boot_params`.

use std::ops::Range;

use crate::size::Bytes;

/// How much of the file is looked at: `boot_params` has no room for a header that goes on behind it.
pub const HEAD: usize = HEADER_LIMIT;

const HEADER: usize = 0x1f1;
const HEADER_LIMIT: usize = 0x290;
const SECTOR: u64 = 512;
const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: &[u8] = b"HdrS";
// With it came the flags of `xloadflags`.
const OLDEST_VERSION: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const KERNEL_64: u16 = 1;
const ABOVE_4_GIB: u16 = 1 << 1;
const FIVE_LEVELS: u16 = 1 << 5;

/// What a loader has to know of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The setup header, from [`HEADER`] on; it goes into `boot_params`.
    pub header: Vec<u8>,
    /// Where in the file the part starts that runs in protected mode.
    pub code: Bytes,
    /// How much memory the kernel needs from its first byte on until it knows what memory there is.
    pub room: Bytes,
    pub alignment: u64,
    pub preferred_address: u64,
    pub relocatable: bool,
    /// Whether the kernel and what is handed to it may lie anywhere.
    pub above_4_gib: bool,
    /// Whether it can be started by a kernel that has five levels of page tables.
    pub five_levels: bool,
    /// The highest address that a byte of the initrd may have.
    pub initrd_limit: u64,
    /// The longest command line, without its NUL.
    pub longest_command_line: usize,
}

impl Image {
    /// Reads the first [`HEAD`] bytes of a kernel; `None` for what is no bzImage with a 64-bit entry.
    pub fn parse(head: &[u8]) -> Option<Image> {
        let header = HEADER..(0x202 + usize::from(*head.get(0x201)?)).min(HEADER_LIMIT);
        let flags = number::<2>(head, 0x236)? as u16;
        let of_this_kind = number::<2>(head, 0x1fe)? == u64::from(BOOT_FLAG)
            && head.get(0x202..0x206)? == MAGIC
            && number::<2>(head, 0x206)? >= u64::from(OLDEST_VERSION)
            && head.get(0x211)? & LOADED_HIGH != 0
            && flags & KERNEL_64 != 0;
        if !of_this_kind {
            return None;
        }
        let sectors = match u64::from(*head.get(HEADER)?) {
            0 => 4, // as in the oldest kernels
            sectors => sectors,
        };
        Some(Image {
            code: Bytes((sectors + 1) * SECTOR),
            room: Bytes(number::<4>(head, 0x260)?),
            alignment: number::<4>(head, 0x230)?.max(1),
            preferred_address: number::<8>(head, 0x258)?,
            relocatable: *head.get(0x234)? != 0,
            above_4_gib: flags & ABOVE_4_GIB != 0,
            five_levels: flags & FIVE_LEVELS != 0,
            initrd_limit: number::<4>(head, 0x22c)?,
            longest_command_line: number::<4>(head, 0x238)? as usize,
            header: head.get(header)?.to_vec(),
        })
    }

    /// Returns where in `boot_params` the header lies.
    pub fn header_range(&self) -> Range<usize> {
        HEADER..HEADER + self.header.len()
    }
}

/// Reads a number of `N` bytes, the lowest first.
fn number<const N: usize>(bytes: &[u8], offset: usize) -> Option<u64> {
    let mut number = [0; 8];
    number[..N].copy_from_slice(bytes.get(offset..offset + N)?);
    Some(u64::from_le_bytes(number))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// The header of a Debian kernel, 6.1, as far as it matters here.
    pub fn debian() -> Vec<u8> {
        let mut head = vec![0; HEAD];
        let fields: [(usize, &[u8]); 14] = [
            (0x1f1, &[39]),
            (0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]),
            (0x202, b"HdrS"),
            (0x206, &[0x0f, 0x02]),
            (0x211, &[1]),
            (0x22c, &0x7fff_ffff_u32.to_le_bytes()),
            (0x230, &0x20_0000_u32.to_le_bytes()),
            (0x234, &[1]),
            (0x236, &0x7f_u16.to_le_bytes()),
            (0x238, &2047_u32.to_le_bytes()),
            (0x258, &0x100_0000_u64.to_le_bytes()),
            (0x260, &0x337_8000_u32.to_le_bytes()),
            (0x264, &[0x90, 0x01, 0, 0]),
            (0x268, &[0xff; 4]),
        ];
        for (offset, bytes) in fields {
            head[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn a_kernel_says_what_it_needs() {
        let head = debian();
        let image = Image::parse(&head).unwrap();
        let wanted = Image {
            header: head[0x1f1..0x26c].to_vec(),
            code: Bytes(40 * 512),
            room: Bytes(0x337_8000),
            alignment: 0x20_0000,
            preferred_address: 0x100_0000,
            relocatable: true,
            above_4_gib: true,
            five_levels: true,
            initrd_limit: 0x7fff_ffff,
            longest_command_line: 2047,
        };
        assert_eq!(image, wanted);
        assert_eq!(image.header_range(), 0x1f1..0x26c);
    }

    #[test]
    fn what_cannot_be_entered_in_64_bits_is_refused() {
        for (what, offset, byte) in [
            ("no boot sector", 0x1fe, 0),
            ("no header", 0x202, b'X'),
            ("older than the flags", 0x206, 0x0b),
            ("a zImage", 0x211, 0),
            ("a kernel of 32 bits", 0x236, 0x7e),
        ] {
            let mut head = debian();
            head[offset] = byte;
            assert_eq!(Image::parse(&head), None, "{what}");
        }
        for length in [0, 0x201, 0x202, 0x237, 0x25f, 0x26b] {
            assert_eq!(Image::parse(&debian()[..length]), None, "{length} bytes");
        }
    }
}
