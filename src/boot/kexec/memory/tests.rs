// Machines may have one piece of memory.
#![allow(clippy::single_range_in_vec_init)]

use super::super::bzimage::tests::debian;
use super::*;

/// A machine of 512 MiB, with memory kept for a kernel after a crash.
pub const IOMEM: &str = "\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
0009fc00-0009ffff : Reserved
000a0000-000bffff : PCI Bus 0000:00
000f0000-000fffff : Reserved
  000f0000-000fffff : System ROM
00100000-1ffdefff : System RAM
  01000000-01e02536 : Kernel code
  02000000-029cdfff : Kernel rodata
  10000000-13ffffff : Crash kernel
1ffdf000-1fffffff : ACPI Tables
febc0000-febdffff : 0000:00:03.0
";

#[test]
fn texts_of_the_kernel_become_areas() {
    let area = |start, end, kind| Area { range: start..end, kind };
    let wanted = [
        area(0, 0x1000, RESERVED),
        area(0x1000, 0x9fc00, RAM),
        area(0x9fc00, 0xa0000, RESERVED),
        area(0xf0000, 0x10_0000, RESERVED),
        area(0x10_0000, 0x1ffd_f000, RAM),
        area(0x1ffd_f000, 0x2000_0000, 3),
    ];
    assert_eq!(areas_of_iomem(IOMEM), wanted);
    assert_eq!(free_ram(IOMEM), [0x1000..0x9fc00, 0x10_0000..0x1000_0000, 0x1400_0000..0x1ffd_f000]);
    for (kind, number) in [("System RAM", 1), ("Reserved", 2), ("Unknown E820 type", 2), ("ACPI Tables", 3)] {
        let wanted = Some(area(0x10_0000, 0x1ffd_f000, number));
        assert_eq!(firmware_area("0x100000\n", "0x1ffdefff\n", &format!("{kind}\n")), wanted);
    }
    // What somebody who is not root reads, and what nobody should.
    assert_eq!(free_ram("00000000-00000000 : System RAM\n"), [0..1]);
    assert_eq!(free_ram("no address : System RAM\n0-ffffffffffffffff : System RAM\n"), []);
    assert_eq!(firmware_area("0x100000", "0xffffffffffffffff", "Reserved"), None);
}

#[test]
fn what_swap_makes_room_for_is_available_too() {
    for (meminfo, wanted) in [
        ("MemTotal:  481040 kB\nMemAvailable:   100 kB\nSwapFree:  28 kB\n", Some(Bytes(128 << 10))),
        ("MemAvailable:   100 kB\n", Some(Bytes(100 << 10))),
        ("MemFree:   100 kB\nSwapFree:  28 kB\n", None),
        ("", None),
    ] {
        assert_eq!(available(meminfo), wanted, "{meminfo}");
    }
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[test]
fn each_part_finds_its_place() {
    let image = Image::parse(&debian()).unwrap();
    let rooms = Rooms { kernel: 52 * MIB, initrd: 40 * MIB, handover: 4 * PAGE };
    let fixed = Image { relocatable: false, ..image.clone() };
    let low = Image { above_4_gib: false, ..image.clone() };
    for (ram, image, wanted) in [
        // One piece, and one with a hole.
        (vec![MIB..512 * MIB], &image, Some((16 * MIB, 472 * MIB, 472 * MIB - 4 * PAGE))),
        (
            vec![MIB..80 * MIB, 100 * MIB..141 * MIB],
            &image,
            Some((16 * MIB, 101 * MIB, 101 * MIB - 4 * PAGE)),
        ),
        // The preferred address is taken: the next that is aligned; not for a kernel that cannot move.
        (vec![MIB..17 * MIB, 19 * MIB..200 * MIB], &image, Some((20 * MIB, 160 * MIB, 160 * MIB - 4 * PAGE))),
        (vec![MIB..17 * MIB, 19 * MIB..200 * MIB], &fixed, None),
        // Never below 1 MiB, where there is room for the handover.
        (vec![PAGE..640 << 10, 16 * MIB..108 * MIB], &image, None),
        // An initrd stays below the limit of the kernel's header, and what follows below 4 GiB.
        (
            vec![MIB..3 * GIB, 4 * GIB..8 * GIB],
            &image,
            Some((16 * MIB, 2 * GIB - 40 * MIB, 3 * GIB - 4 * PAGE)),
        ),
        // Above 4 GiB only those who can, and only when there is no other place.
        (
            vec![MIB..30 * MIB, 4 * GIB..5 * GIB],
            &image,
            Some((4 * GIB, 5 * GIB - 40 * MIB, 30 * MIB - 4 * PAGE)),
        ),
        (vec![MIB..30 * MIB, 4 * GIB..5 * GIB], &low, None),
        // No memory at all, and ranges that are no whole pages.
        (vec![], &image, None),
        (vec![MIB + 1..512 * MIB - 1], &image, Some((16 * MIB, 472 * MIB - PAGE, 472 * MIB - 5 * PAGE))),
    ] {
        let wanted = wanted.map(|(kernel, initrd, handover)| Places { kernel, initrd, handover });
        assert_eq!(place(&ram, image, rooms), wanted, "in {ram:x?}");
    }
}
