//! What a kernel of a PC is handed: the page it is entered through, `boot_params`, the command line and more.
//!
//! Decides only: data in, the bytes of one piece of memory out. The offsets are those of the kernel's
//! documentation (`Documentation/arch/x86/zero-page.rst` and `boot.rst`); what UEFI adds is what
//! `struct efi_setup_data` says: the firmware was told once and for all where its services lie, so
//! a second kernel has to be told too.

use std::ops::Range;

use super::bzimage::Image;
use super::memory::{Area, PAGE, Places};
use super::trampoline::{self, trampoline};

const BOOT_PARAMS: usize = 4096;
// What the running kernel was told, and the next one needs to be: the screen, and a platform that is no PC.
const SCREEN_INFO: Range<usize> = 0x000..0x040;
const HARDWARE_SUBARCH: Range<usize> = 0x23c..0x248;
const SECURE_BOOT: Range<usize> = 0x1ec..0x1ed;
const ACPI_RSDP: usize = 0x070;
const EFI_LOADER: Range<usize> = 0x1c0..0x1c4;
const EFI_SYSTAB: Range<usize> = 0x1c4..0x1c8;
const EFI_DESCRIPTOR_VERSION: Range<usize> = 0x1cc..0x1d0;
const EFI_SYSTAB_HIGH: Range<usize> = 0x1d8..0x1dc;
const EFI_64_BIT: &[u8] = b"EL64";
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const E820_MOST: usize = 128;
const UNNAMED_LOADER: u8 = 0xff;

// Kinds of `struct setup_data`; kernels leave out those they do not know.
const MORE_E820: u32 = 1;
const EFI: u32 = 4;
const RANDOM_SEED: u32 = 9;
const NODE_HEADER: usize = 16;
const EFI_DESCRIPTOR: u32 = 40;

/// What a kernel is told of the machine.
pub struct Machine {
    pub memory: Vec<Area>,
    /// What the running kernel was told, as far as it tells.
    pub boot_params: Vec<u8>,
    pub acpi_rsdp: Option<u64>,
    pub efi: Option<Efi>,
    pub random_seed: [u8; 32],
}

/// The firmware's services that a running kernel may call.
#[derive(Clone)]
pub struct Efi {
    pub vendor: u64,
    pub runtime: u64,
    pub config_table: u64,
    pub smbios: u64,
    pub map: Vec<EfiArea>,
}

/// An entry of the firmware's memory map.
#[derive(Clone)]
pub struct EfiArea {
    pub kind: u32,
    pub physical: u64,
    pub virtual_address: u64,
    pub pages: u64,
    pub attribute: u64,
}

/// Returns how much memory [`handover`] fills, which no address changes.
pub fn room(machine: &Machine, image: &Image, command_line: &str) -> u64 {
    let nowhere = Places { kernel: 0, initrd: 0, handover: 0 };
    handover(machine, image, command_line, 0, &nowhere).len() as u64
}

/// Returns what is to lie at `places.handover`, whole pages, and to be entered at its first byte.
pub fn handover(
    machine: &Machine,
    image: &Image,
    command_line: &str,
    initrd: u64,
    places: &Places,
) -> Vec<u8> {
    let here = places.handover;
    let params = trampoline::ROOM;
    let mut bytes = trampoline(here, here + params as u64, places.kernel + ENTRY);
    bytes.resize(params + BOOT_PARAMS, 0);

    let told = |range: Range<usize>| machine.boot_params.get(range);
    let mut put = |offset: usize, value: &[u8]| {
        bytes[params + offset..params + offset + value.len()].copy_from_slice(value);
    };
    for range in [SCREEN_INFO, SECURE_BOOT] {
        put(range.start, told(range).unwrap_or_default());
    }
    put(image.header_range().start, &image.header);
    put(HARDWARE_SUBARCH.start, told(HARDWARE_SUBARCH).unwrap_or_default());
    put(0x210, &[UNNAMED_LOADER]);
    put_halves(&mut put, places.initrd, 0x218, 0x0c0);
    put_halves(&mut put, initrd, 0x21c, 0x0c4);
    put(ACPI_RSDP, &machine.acpi_rsdp.unwrap_or_default().to_le_bytes());
    let (first, more) = machine.memory.split_at(machine.memory.len().min(E820_MOST));
    put(E820_ENTRIES, &[first.len() as u8]);
    put(E820_TABLE, &e820(first));

    let mut rest = Rest { here: here + (params + BOOT_PARAMS) as u64, bytes: Vec::new(), nodes: 0 };
    put_halves(&mut put, rest.add(&[command_line.as_bytes(), &[0]].concat()), 0x228, 0x0c8);
    rest.add_node(RANDOM_SEED, &machine.random_seed);
    if !more.is_empty() {
        rest.add_node(MORE_E820, &e820(more));
    }
    // Only the whole of it: a kernel that knows half would move the firmware's services again.
    if let (Some(efi), Some(EFI_64_BIT)) = (&machine.efi, told(EFI_LOADER)) {
        for range in [EFI_LOADER, EFI_SYSTAB, EFI_SYSTAB_HIGH, EFI_DESCRIPTOR_VERSION] {
            put(range.start, told(range).unwrap_or_default());
        }
        put(0x1c8, &EFI_DESCRIPTOR.to_le_bytes());
        let map: Vec<u8> = efi.map.iter().flat_map(EfiArea::descriptor).collect();
        put(0x1d4, &(map.len() as u32).to_le_bytes());
        put_halves(&mut put, rest.add(&map), 0x1d0, 0x1dc);
        let mut node: Vec<u8> =
            [efi.vendor, efi.runtime, efi.config_table, efi.smbios].map(u64::to_le_bytes).concat();
        node.resize(node.len() + 64, 0); // reserved
        rest.add_node(EFI, &node);
    }
    put(0x250, &rest.nodes.to_le_bytes());
    bytes.extend(rest.bytes);
    bytes.resize(bytes.len().next_multiple_of(PAGE as usize), 0);
    bytes
}

// Of the part of the kernel that runs in protected mode: 0x200 bytes behind the entry of 32 bits.
const ENTRY: u64 = 0x200;

/// Writes an address or a size into two fields, which lie apart.
fn put_halves(put: &mut impl FnMut(usize, &[u8]), value: u64, low: usize, high: usize) {
    put(low, &(value as u32).to_le_bytes());
    put(high, &((value >> 32) as u32).to_le_bytes());
}

fn e820(areas: &[Area]) -> Vec<u8> {
    let entry = |area: &Area| {
        let mut entry = area.range.start.to_le_bytes().to_vec();
        entry.extend((area.range.end - area.range.start).to_le_bytes());
        entry.extend(area.kind.to_le_bytes());
        entry
    };
    areas.iter().flat_map(entry).collect()
}

impl EfiArea {
    fn descriptor(&self) -> Vec<u8> {
        let numbers = [u64::from(self.kind), self.physical, self.virtual_address, self.pages, self.attribute];
        numbers.map(u64::to_le_bytes).concat()
    }
}

/// What lies behind `boot_params`, which points to it.
struct Rest {
    here: u64,
    bytes: Vec<u8>,
    /// The address of the node that was added last, or 0.
    nodes: u64,
}

impl Rest {
    /// Adds bytes and returns where they come to lie.
    fn add(&mut self, bytes: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let place = self.here + self.bytes.len() as u64;
        self.bytes.extend(bytes);
        place
    }

    /// Adds one of the chained nodes that `setup_data` points to.
    fn add_node(&mut self, kind: u32, contents: &[u8]) {
        let mut node = Vec::with_capacity(NODE_HEADER + contents.len());
        node.extend(self.nodes.to_le_bytes());
        node.extend(kind.to_le_bytes());
        node.extend((contents.len() as u32).to_le_bytes());
        node.extend(contents);
        self.nodes = self.add(&node);
    }
}

#[cfg(test)]
mod tests;
