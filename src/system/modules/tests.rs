use super::testing::{names, tree};
use super::*;

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn order(tree: &Tree, names: &[&str]) -> Vec<String> {
    testing::names(&tree.load_order(names, &[]).unwrap())
}

#[test]
fn aliases_lead_to_their_drivers() {
    let tree = tree();
    for (alias, builtin, modules) in [
        ("virtio:d00000002v00001AF4", &[][..], &["virtio_blk"][..]),
        ("pci:v00001AF4d00001042sv00001AF4sd00001042bc01sc80i00", &[], &["virtio_pci"]),
        ("pci:v0000144Dd0000A808sv0000144Dsd0000A801bc01sc08i02", &[], &["nvme"]),
        ("pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00", &[], &["e1000e"]),
        ("pci:v00001234d00001111sv00001AF4sd00001100bc03sc00i00", &[], &[]),
        ("scsi:t-0x00", &[], &["sd_mod"]),
        ("scsi:t-0x05", &[], &["sr_mod"]),
        ("usb:v0781p5581d0100dc00dsc00dp00ic08isc06ip50in00", &[], &["uas", "usb_storage"]),
        ("vmbus:4acc9b2f6900f34ab76b6fd0be528cda", &[], &["hv_storvsc"]),
        ("acpi:VMBUS:", &[], &["hv_vmbus"]),
        ("xen:vbd", &[], &["xen_blkfront"]),
        ("fs-ext4", &[], &["ext4"]),
        ("net-pf-17", &["af_packet"], &[]),
        ("crypto-aes", &["aes_generic"], &["aesni_intel"]),
        ("", &[], &[]),
    ] {
        let wanted = Matches { builtin: set(builtin), modules: set(modules) };
        assert_eq!(tree.drivers_of(alias), wanted, "{alias}");
    }
}

#[test]
fn a_name_comes_before_an_alias_and_spelling_does_not_matter() {
    let tree = tree();
    for (name, builtin, modules) in [
        ("xen-blkfront", &[][..], &["xen_blkfront"][..]),
        ("nls_iso8859-1", &[], &["nls_iso8859_1"]),
        ("crypto_null", &["crypto_null"], &[]),
        ("crc32c", &[], &["crc32c_generic", "crc32c_intel"]),
        ("sha256", &["sha256_generic"], &["sha256_ssse3"]),
        ("zfs", &[], &[]),
    ] {
        assert_eq!(tree.find(name), Matches { builtin: set(builtin), modules: set(modules) }, "{name}");
    }
    assert_eq!(tree.home_of("af-packet"), Some(Home::Builtin));
    assert_eq!(tree.home_of("virtio-pci"), Some(Home::Module));
    assert_eq!(tree.home_of("crc32c"), None);
}

#[test]
fn a_part_of_the_kernel_may_have_modules_for_its_name() {
    let texts = Texts {
        dep: "kernel/crypto/crc32_generic.ko:\n",
        alias: "alias crc32 crc32_generic\n",
        builtin: "kernel/lib/crc32.ko\n",
        ..Texts::default()
    };
    let tree = Tree::parse(texts);
    assert_eq!(tree.find("crc32"), Matches { builtin: set(&["crc32"]), modules: set(&["crc32_generic"]) });
    assert_eq!(tree.home_of("crc32"), Some(Home::Builtin));
}

#[test]
fn what_is_needed_comes_first_and_once() {
    for (wanted, loaded) in [
        (&["virtio_blk"][..], "virtio_ring virtio virtio_blk"),
        (
            &["virtio_blk", "virtio_net", "virtio_blk"],
            "virtio_ring virtio virtio_blk failover net_failover virtio_net",
        ),
        // By a softdep, which is an alias of both.
        (&["ext4"], "crc32c_generic crc32c_intel jbd2 mbcache crc16 ext4"),
        (&["r8169"], "mdio_devres libphy realtek r8169"),
        (&["ipmi_msghandler"], "ipmi_msghandler ipmi_devintf"),
        (&["af_packet", "hmac"], ""),
        (&["vfat", "nls_iso8859-1"], "fat vfat nls_iso8859_1"),
    ] {
        let order = order(&tree(), wanted).join(" ");
        let order = order.replace("libphy mdio_devres", "mdio_devres libphy");
        assert_eq!(order, loaded, "{wanted:?}");
    }
}

#[test]
fn useful_modules_may_be_missing_and_required_ones_not() {
    let tree = tree();
    assert_eq!(
        tree.load_order(&["loop"], &["zfs", "fat"]).map(|paths| names(&paths).join(" ")),
        Ok("loop fat".into())
    );
    assert_eq!(tree.load_order(&["zfs"], &[]), Err(ModuleError::Unknown { name: "zfs".into() }));
}

#[test]
fn paths_are_those_of_the_tree_compressed_or_not() {
    let dep = "kernel/a-b.ko.xz: updates/c.ko.zst\nupdates/c.ko.zst:\n";
    let tree = Tree::parse(Texts { dep, ..Texts::default() });
    assert_eq!(tree.load_order(&["a_b"], &[]).unwrap(), ["updates/c.ko.zst", "kernel/a-b.ko.xz"]);
}

#[test]
fn softdeps_never_come_before_what_they_need_themselves() {
    let dep = "a.ko: c.ko\nb.ko: a.ko c.ko\nc.ko:\nd.ko:\ne.ko: d.ko\n";
    for (softdep, wanted, loaded) in [
        ("softdep a pre: b", &["a"][..], "c a b"),
        ("softdep c pre: b", &["a"], "c a b"),
        ("softdep c post: b", &["a"], "c a b"),
        ("softdep a pre: b\nsoftdep b pre: a", &["b"], "c a b"),
        ("softdep d pre: e\nsoftdep c pre: d post: c", &["a"], "d c a e"),
        ("softdep d d\nsoftdep a pre: missing", &["a"], "c a"),
        ("softdep a pre: e post: d", &["a"], "c d e a"),
    ] {
        let tree = Tree::parse(Texts { dep, softdep, ..Texts::default() });
        assert_eq!(order(&tree, wanted).join(" "), loaded, "{softdep}");
    }
}

#[test]
fn a_tree_that_lacks_a_part_is_reported() {
    let dep = "a.ko: builtin.ko gone.ko\n";
    let tree = Tree::parse(Texts { dep, builtin: "kernel/builtin.ko\n", ..Texts::default() });
    let error = ModuleError::Incomplete { module: "a".into(), missing: "gone".into() };
    assert_eq!(tree.load_order(&["a"], &[]), Err(error));
}

#[test]
fn odd_lines_are_passed_over() {
    let texts = Texts {
        dep: "\n# comment\n:\n",
        alias: "alias\nalias only\nalias two words name\noptions x y\n",
        softdep: "softdep\nsoftdep x\npre: y\n",
        builtin: "\nkernel/x.ko\n",
        builtin_modinfo: b"\0=\0noequals\0no_dot=1\0y.alias=dev-y\0\xff.license=GPL\0",
    };
    let tree = Tree::parse(texts);
    assert!(tree.find("only").is_empty());
    assert_eq!(tree.drivers_of("dev_y").builtin, set(&["y"]));
    assert_eq!(tree.home_of("x"), Some(Home::Builtin));
}
