//! Physical memory: what the kernel's texts say of it, and where the parts of another system go.
//!
//! Decides only: texts and sizes in, addresses out.

use std::ops::Range;

use super::bzimage::Image;
use crate::size::Bytes;

pub const PAGE: u64 = 4096;
// Below lie the firmware's own areas, and what the kernel needs to wake its other processors.
const LOW: u64 = 1 << 20;
const GIB_4: u64 = 1 << 32;

/// What a range of physical memory is, by the numbers of the firmware's E820 map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    pub range: Range<u64>,
    pub kind: u32,
}

const RAM: u32 = 1;
const RESERVED: u32 = 2;
const KINDS: [(&str, u32); 7] = [
    ("System RAM", RAM),
    ("ACPI Tables", 3),
    ("ACPI Non-volatile Storage", 4),
    ("Unusable memory", 5),
    ("Persistent Memory", 7),
    ("Persistent Memory (legacy)", 12),
    ("Soft Reserved", 0xefff_ffff),
];

/// Returns an area as `/sys/firmware/memmap/N/{start,end,type}` tells it.
pub fn firmware_area(start: &str, end: &str, kind: &str) -> Option<Area> {
    let kind = KINDS.iter().find(|(name, _)| *name == kind.trim()).map_or(RESERVED, |(_, kind)| *kind);
    Some(Area { range: hexadecimal(start)?..hexadecimal(end)?.checked_add(1)?, kind })
}

/// Returns the firmware's areas that `/proc/iomem` still tells of; the places of devices are left out.
pub fn areas_of_iomem(iomem: &str) -> Vec<Area> {
    let lines = iomem.lines().filter(|line| !line.starts_with(' ')).filter_map(iomem_line);
    lines
        .filter_map(|(range, name)| {
            let known = KINDS.iter().find(|(kind, _)| *kind == name).map(|(_, kind)| *kind);
            let kind = known.or(name.eq_ignore_ascii_case("reserved").then_some(RESERVED))?;
            Some(Area { range, kind })
        })
        .collect()
}

/// Returns the memory that `/proc/iomem` calls RAM and that nobody but the running kernel lies in.
pub fn free_ram(iomem: &str) -> Vec<Range<u64>> {
    let mut free = Free(Vec::new());
    for line in iomem.lines() {
        let Some((range, name)) = iomem_line(line) else { continue };
        match line.starts_with(' ') {
            false if name == "System RAM" => free.0.push(range),
            // The kernel goes with the jump, and what is kept for one after a crash is not for us.
            true if !name.starts_with("Kernel ") => free.remove(&range),
            _ => {}
        }
    }
    free.0
}

fn iomem_line(line: &str) -> Option<(Range<u64>, &str)> {
    let (range, name) = line.split_once(" : ")?;
    let (start, end) = range.trim().split_once('-')?;
    let end = u64::from_str_radix(end, 16).ok()?.checked_add(1)?;
    Some((u64::from_str_radix(start, 16).ok()?..end, name.trim()))
}

/// Reads a number such as `0x7f0000` and a newline.
pub fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
}

/// Reads from `/proc/meminfo` how much memory programs can be given, swapping others out if need be.
pub fn available(meminfo: &str) -> Option<Bytes> {
    let kib = |name: &str| {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some(Bytes((kib("MemAvailable")? + kib("SwapFree").unwrap_or_default()) << 10))
}

/// Where each part comes to lie.
#[derive(Debug, PartialEq, Eq)]
pub struct Places {
    pub kernel: u64,
    pub initrd: u64,
    pub handover: u64,
}

/// How much room each part needs, in whole pages.
#[derive(Clone, Copy, Debug)]
pub struct Rooms {
    pub kernel: u64,
    pub initrd: u64,
    pub handover: u64,
}

/// Places a kernel low, where it wants to be, and what it is given high, out of its way.
pub fn place(ram: &[Range<u64>], image: &Image, rooms: Rooms) -> Option<Places> {
    let mut free = Free(ram.to_vec());
    free.remove(&(0..LOW));
    // Where it may lie anywhere, below 4 GiB is still what every boot loader does.
    let limits = if image.above_4_gib { &[GIB_4, u64::MAX][..] } else { &[GIB_4] };
    // A kernel below its preferred address moves itself there, onto whatever lies there.
    let mut kernels = limits.iter().filter_map(|&limit| {
        free.lowest(rooms.kernel, image.alignment, image.preferred_address, limit)
            .filter(|&place| image.relocatable || place == image.preferred_address)
    });
    let kernel = kernels.next()?;
    free.remove(&(kernel..kernel + rooms.kernel));
    let mut high = |room: u64, first: u64| {
        let place = [first].iter().chain(limits).find_map(|&limit| free.highest(room, limit))?;
        free.remove(&(place..place + room));
        Some(place)
    };
    let initrd = high(rooms.initrd, image.initrd_limit.saturating_add(1).min(GIB_4))?;
    let handover = high(rooms.handover, GIB_4)?;
    Some(Places { kernel, initrd, handover })
}

/// Memory that nothing was placed in yet.
struct Free(Vec<Range<u64>>);

impl Free {
    fn remove(&mut self, taken: &Range<u64>) {
        let pieces = self
            .0
            .iter()
            .flat_map(|free| [free.start..free.end.min(taken.start), free.start.max(taken.end)..free.end]);
        self.0 = pieces.filter(|piece| piece.start < piece.end).collect();
    }

    fn lowest(&self, room: u64, alignment: u64, from: u64, limit: u64) -> Option<u64> {
        let fits = |free: &Range<u64>| {
            let start = free.start.max(from).checked_next_multiple_of(alignment.max(PAGE))?;
            (start.checked_add(room)? <= free.end.min(limit)).then_some(start)
        };
        self.0.iter().filter_map(fits).min()
    }

    fn highest(&self, room: u64, limit: u64) -> Option<u64> {
        let fits = |free: &Range<u64>| {
            let start = free.end.min(limit).checked_sub(room)? / PAGE * PAGE;
            (start >= free.start).then_some(start)
        };
        self.0.iter().filter_map(fits).max()
    }
}

#[cfg(test)]
pub mod tests;
