use super::*;
use crate::system::modules::Texts;
use crate::system::modules::testing::{names, tree};

/// Returns a device from its chain, each link as `modalias driver module`, `-` for none.
fn device(name: &str, chain: &[&str]) -> Device {
    let link = |text: &&str| {
        let mut words = text.split(' ').map(|word| (word != "-").then(|| word.to_owned()));
        let mut next = || words.next().flatten();
        Link { modalias: next(), driver: next(), module: next() }
    };
    Device { name: name.to_owned(), chain: chain.iter().map(link).collect() }
}

const VIRTIO_PCI: &str = "pci:v00001AF4d00001042sv00001AF4sd00001042bc01sc80i00 virtio-pci virtio_pci";
const VIRTIO_BLK: &str = "virtio:d00000002v00001AF4 virtio_blk virtio_blk";
const BRIDGE: &str = "pci:v00001B36d0000000Csv00001B36sd00000000bc06sc04i00 pcieport -";
const NVME: &str = "pci:v0000144Dd0000A808sv0000144Dsd0000A801bc01sc08i02 nvme nvme";
const AHCI: &str = "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01 ahci ahci";

fn loaded(tree: &Tree, disk: &[&str], also: Also) -> (BTreeSet<String>, Vec<Undriven>) {
    let hardware = Hardware { disks: vec![device("disk", disk)], ..Hardware::default() };
    let drivers = drivers(&hardware, tree, "disk", &[], also).unwrap();
    (names(&drivers.load).into_iter().collect(), drivers.undriven)
}

#[test]
fn a_chain_gets_the_drivers_of_all_its_links() {
    let tree = tree();
    let safe = loaded(&tree, &[], Also::default()).0;
    for (chain, added) in [
        (&[VIRTIO_BLK, VIRTIO_PCI][..], ""),
        (&["scsi:t-0x00 sd sd_mod", "virtio:d00000008v00001AF4 virtio_scsi virtio_scsi", VIRTIO_PCI], ""),
        (&["scsi:t-0x00 sd sd_mod", AHCI], ""),
        (&[NVME, BRIDGE], ""),
        // Behind Intel's volume controller, which hides the disk unless it is driven.
        (&[NVME, "pci:v00008086d00009A0Bsv0sd0bc01sc04i00 vmd vmd"], "vmd"),
        (
            &[
                "scsi:t-0x00 sd -",
                "usb:v0781p5581d0100dc00dsc00dp00ic08isc06ip50in00 usb-storage usb_storage",
                "- usb usbcore",
                "pci:v00001B36d0000000Dsv00001AF4sd00001100bc0Csc03i30 xhci_hcd xhci_pci",
            ],
            "uas usb_common usb_storage usbcore xhci_hcd xhci_pci",
        ),
        (
            &[
                "scsi:t-0x00 sd sd_mod",
                "vmbus:4acc9b2f6900f34ab76b6fd0be528cda hv_storvsc hv_storvsc",
                "acpi:VMBUS: - -",
            ],
            "hv_storvsc hv_vmbus scsi_transport_fc",
        ),
        (&["xen:vbd vbd -"], "xen_blkfront"),
        (
            &["mmc:block mmcblk mmc_block", "pci:v0sv0sd0bc08sc05i01 sdhci-pci sdhci_pci"],
            "cqhci mmc_block mmc_core sdhci sdhci_pci",
        ),
        // Nothing drives it today, as where a rescue of another kernel looks.
        (&["virtio:d00000002v00001AF4 - -", "acpi:PNP0A08: - -"], ""),
    ] {
        let (loaded, undriven) = loaded(&tree, chain, Also::default());
        let added = added.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>();
        assert_eq!(loaded.difference(&safe).cloned().collect::<BTreeSet<_>>(), added, "{chain:?}");
        assert_eq!(undriven, [], "{chain:?}");
    }
    let wanted =
        ["virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net", "net_failover", "sd_mod", "ahci", "nvme"];
    assert!(wanted.iter().all(|name| safe.contains(*name)), "{safe:?}");
}

#[test]
fn the_disk_comes_first_and_dependencies_before_it() {
    let hardware = Hardware {
        disks: vec![device("sda", &["xen:vbd vbd -"]), device("vda", &[VIRTIO_BLK, VIRTIO_PCI])],
        cards: vec![
            device("eth0", &["pci:v000010ECd00008168sv0sd0bc02sc00i00 r8169 r8169", "mdio:0 - -"]),
            device("eth1", &["xen:vif vif -"]),
            device("ib0", &["pci:v000015B3d00001003sv0sd0bc02sc80i00 mlx4_core mlx4_core"]),
        ],
        others: Vec::new(),
    };
    let drivers = drivers(&hardware, &tree(), "vda", &["eth0", "ib0"], Also::default()).unwrap();
    assert_eq!(drivers.undriven, []);
    let order = names(&drivers.load).join(" ");
    assert!(
        order.starts_with(
            "virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk "
        ),
        "{order}"
    );
    assert!(order.contains(" realtek r8169 mlx4_core mlx4_en "), "{order}");
    assert!(!order.contains("xen"), "{order}");
}

#[test]
fn what_has_no_driver_is_told() {
    let tree = tree();
    let what = |modaliases: &[&str]| {
        vec![Undriven {
            what: "the disk disk".to_owned(),
            modaliases: modaliases.iter().map(|text| text.to_string()).collect(),
        }]
    };
    let raid = "pci:v00001000d0000005Dsv0sd0bc01sc04i00";
    for (chain, wanted) in [
        (&[][..], what(&[])),
        // The SCSI disk has a driver, and what it hangs on has none.
        (&["scsi:t-0x00 sd sd_mod", &format!("{raid} megaraid_sas megaraid_sas"), BRIDGE], what(&[raid])),
        (&["scsi:t-0x00 sd sd_mod", &format!("{raid} megaraid_sas -")], what(&[raid])),
        (&["nd:t4 nd_pmem -", "acpi:ACPI0012: nfit -"], what(&["nd:t4"])),
        (&["nd:t4 - -"], what(&["nd:t4"])),
        (&["- dasd-eckd -"], what(&["dasd-eckd"])),
        // Bridges and platform devices may be driven by what is listed nowhere.
        (&[NVME, BRIDGE, "of:NpcieT(null)Cpci-host-ecam-generic pci-host-generic -"], Vec::new()),
    ] {
        assert_eq!(loaded(&tree, chain, Also::default()).1, wanted, "{chain:?}");
    }
    let drivers = drivers(&Hardware::default(), &tree, "vda", &["eth0"], Also::default()).unwrap();
    let told = drivers.undriven.iter().map(|undriven| undriven.what.as_str()).collect::<Vec<_>>();
    assert_eq!(told, ["the disk vda", "the network card eth0"]);
}

#[test]
fn builtin_drivers_drive_by_alias_or_by_todays_name() {
    // As in Debian's kernel for clouds: of builtin drivers for PCI no aliases are listed.
    let builtin = "kernel/drivers/nvme/host/nvme-core.ko\nkernel/drivers/nvme/host/nvme.ko\nkernel/drivers/scsi/sd_mod.ko\n";
    let modinfo = b"sd_mod.alias=scsi:t-0x00*\0sd_mod.file=drivers/scsi/sd_mod\0";
    let tree = Tree::parse(Texts { builtin, builtin_modinfo: modinfo, ..Texts::default() });
    for (chain, driven) in [
        (&[NVME, BRIDGE][..], true),
        (&["pci:v0000144Dd0000A808sv0sd0bc01sc08i02 nvme -"], true),
        (&["pci:v0000144Dd0000A808sv0sd0bc01sc08i02 - -"], false),
        (&["scsi:t-0x00 - -"], true),
        (&["scsi:t-0x00 sd -", AHCI], false),
    ] {
        let (loaded, undriven) = loaded(&tree, chain, Also::default());
        assert_eq!((loaded.len(), undriven.is_empty()), (0, driven), "{chain:?}");
    }
}

#[test]
fn modules_that_are_asked_for_bring_what_they_ask_for() {
    let tree = tree();
    let safe = loaded(&tree, &[VIRTIO_BLK, VIRTIO_PCI], Also::default()).0;
    for (required, useful, added, missing) in [
        (&["ext4"][..], &[][..], "crc16 crc32c_generic crc32c_intel ext4 jbd2 mbcache", &[][..]),
        (&["vfat"], &[], "fat nls_ascii nls_cp437 nls_iso8859_1 nls_utf8 vfat", &[]),
        (&["af_packet"], &["zfs"], "", &[]),
        (&["zfs", "loop"], &["8021q"], "8021q garp llc loop mrp stp", &["the driver zfs"]),
    ] {
        let (loaded, undriven) = loaded(&tree, &[VIRTIO_BLK, VIRTIO_PCI], Also { required, useful });
        let loaded = loaded.difference(&safe).cloned().collect::<Vec<_>>().join(" ");
        let undriven = undriven.into_iter().map(|undriven| undriven.what).collect::<Vec<_>>();
        assert_eq!(
            (loaded.as_str(), &undriven.iter().map(String::as_str).collect::<Vec<_>>()[..]),
            (added, missing)
        );
    }
    let crypt = loaded(&tree, &[], Also { required: &["dm_crypt"], useful: &[] }).0;
    assert!(
        ["xts", "aesni_intel", "sha256_ssse3", "essiv", "dm_mod"].iter().all(|name| crypt.contains(*name))
    );
}

#[test]
fn of_all_disks_and_cards_those_without_a_driver_are_told() {
    let strange = "pci:v0000FFFFd0000FFFFsv0sd0bc02sc00i00 - -";
    let hardware = Hardware {
        disks: vec![
            device("vda", &[VIRTIO_BLK, VIRTIO_PCI]),
            device("sdx", &["pci:vDEADd0000BEEF strange strange"]),
        ],
        cards: vec![device("eth7", &[strange])],
        others: Vec::new(),
    };
    let told: Vec<String> = undriven(&hardware, &tree()).iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "the disk sdx (pci:vDEADd0000BEEF)",
            "the network card eth7 (pci:v0000FFFFd0000FFFFsv0sd0bc02sc00i00)"
        ]
    );
}
