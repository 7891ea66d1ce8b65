use super::super::bzimage::tests::debian;
use super::super::memory::{self, tests::IOMEM};
use super::*;

const PLACES: Places = Places { kernel: 0x100_0000, initrd: 0x1_8000_0000, handover: 0x1ffd_0000 };

fn machine() -> Machine {
    Machine {
        memory: memory::areas_of_iomem(IOMEM),
        boot_params: Vec::new(),
        acpi_rsdp: None,
        efi: None,
        random_seed: [7; 32],
    }
}

/// What a kernel reads there.
struct Reader(Vec<u8>);

impl Reader {
    fn at(&self, address: u64, length: usize) -> &[u8] {
        &self.0[(address - PLACES.handover) as usize..][..length]
    }

    fn number(&self, address: u64, length: usize) -> u64 {
        self.at(address, length).iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    fn param(&self, offset: u64, length: usize) -> u64 {
        self.number(PLACES.handover + 4096 + offset, length)
    }

    fn nodes(&self) -> Vec<(u64, &[u8])> {
        let mut nodes = Vec::new();
        let mut next = self.param(0x250, 8);
        while next != 0 {
            let length = self.number(next + 12, 4) as usize;
            nodes.push((self.number(next + 8, 4), self.at(next + 16, length)));
            next = self.number(next, 8);
        }
        nodes
    }
}

fn read(machine: &Machine) -> Reader {
    let image = Image::parse(&debian()).unwrap();
    let bytes = handover(machine, &image, "quiet init=/bin/sh", 0x2_0000_0001, &PLACES);
    assert_eq!(bytes.len() as u64, room(machine, &image, "quiet init=/bin/sh"));
    assert_eq!(bytes.len() % 4096, 0);
    assert_eq!(bytes[..4096], trampoline(PLACES.handover, PLACES.handover + 4096, 0x100_0200));
    Reader(bytes)
}

#[test]
fn a_kernel_finds_its_command_line_its_initrd_and_the_memory() {
    let told = read(&machine());
    assert_eq!(told.at(PLACES.handover + 4096 + 0x202, 4), b"HdrS");
    let line = told.param(0x228, 4) | told.param(0x0c8, 4) << 32;
    assert_eq!(told.at(line, 19), b"quiet init=/bin/sh\0");
    assert_eq!(told.param(0x218, 4) | told.param(0x0c0, 4) << 32, PLACES.initrd);
    assert_eq!(told.param(0x21c, 4) | told.param(0x0c4, 4) << 32, 0x2_0000_0001);
    for (field, offset, length, wanted) in [
        ("sentinel", 0x1ef, 1, 0),
        ("type_of_loader", 0x210, 1, 0xff),
        ("acpi_rsdp_addr", 0x070, 8, 0),
        ("efi_loader_signature", 0x1c0, 4, 0),
        ("e820_entries", 0x1e8, 1, 6),
        ("start of the last entry", 0x2d0 + 5 * 20, 8, 0x1ffd_f000),
        ("size of the last entry", 0x2d0 + 5 * 20 + 8, 8, 0x2_1000),
        ("type of the last entry", 0x2d0 + 5 * 20 + 16, 4, 3),
    ] {
        assert_eq!(told.param(offset, length), wanted, "{field}");
    }
    assert_eq!(told.nodes(), [(9, &[7; 32][..])]);
}

#[test]
fn more_memory_areas_than_boot_params_holds_are_handed_over_beside_it() {
    let areas = (0..131).map(|n| Area { range: n << 20..(n << 20) + 4096, kind: 1 });
    let told = read(&Machine { memory: areas.collect(), ..machine() });
    assert_eq!(told.param(0x1e8, 1), 128);
    let nodes = told.nodes();
    assert_eq!(nodes.iter().map(|node| (node.0, node.1.len())).collect::<Vec<_>>(), [(1, 60), (9, 32)]);
    assert_eq!(nodes[0].1[..8], (128_u64 << 20).to_le_bytes());
}

#[test]
fn the_firmware_is_handed_over_whole_or_not_at_all() {
    let area = EfiArea {
        kind: 5,
        physical: 0x1f8f_0000,
        virtual_address: !0 << 32,
        pages: 64,
        attribute: 1 << 63 | 0xf,
    };
    let efi = Efi { vendor: 11, runtime: 12, config_table: 13, smbios: 14, map: vec![area.clone(), area] };
    let mut boot_params = vec![0; 4096];
    boot_params[0x00f] = 0x70; // the screen is the firmware's
    boot_params[0x1c0..0x1c4].copy_from_slice(b"EL64");
    boot_params[0x1c4..0x1c8].copy_from_slice(&0x1f9e_e018_u32.to_le_bytes());
    boot_params[0x1cc] = 1;
    let whole = Machine { boot_params, acpi_rsdp: Some(0x1fb7_e014), efi: Some(efi), ..machine() };
    let told = read(&whole);
    for (field, offset, length, wanted) in [
        ("orig_video_isVGA", 0x00f, 1, 0x70),
        ("acpi_rsdp_addr", 0x070, 8, 0x1fb7_e014),
        ("efi_loader_signature", 0x1c0, 4, u64::from(u32::from_le_bytes(*b"EL64"))),
        ("efi_systab", 0x1c4, 4, 0x1f9e_e018),
        ("efi_memdesc_size", 0x1c8, 4, 40),
        ("efi_memdesc_version", 0x1cc, 4, 1),
        ("efi_memmap_size", 0x1d4, 4, 80),
    ] {
        assert_eq!(told.param(offset, length), wanted, "{field}");
    }
    let map = told.param(0x1d0, 4) | told.param(0x1dc, 4) << 32;
    let second = [0, 8, 16, 24, 32].map(|offset| told.number(map + 40 + offset, 8));
    assert_eq!(second, [5, 0x1f8f_0000, !0 << 32, 64, 1 << 63 | 0xf]);
    let (kind, node) = told.nodes()[0];
    assert_eq!((kind, node.len()), (4, 96));
    assert_eq!(node[..32].chunks(8).map(|number| number[0]).collect::<Vec<_>>(), [11, 12, 13, 14]);

    let mut of_32_bits = whole.boot_params.clone();
    of_32_bits[0x1c0..0x1c4].copy_from_slice(b"EL32");
    for partly in [
        Machine { efi: None, ..machine() },
        Machine { efi: whole.efi.clone(), ..machine() },
        Machine { efi: whole.efi.clone(), boot_params: of_32_bits, ..machine() },
    ] {
        let told = read(&partly);
        assert_eq!(told.param(0x1c0, 4), 0);
        assert!(told.nodes().iter().all(|node| node.0 != 4));
    }
}
