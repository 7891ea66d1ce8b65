//! Layouts as people write them.

use super::*;

/// Wraps partitions into a whole layout.
fn layout_of(partitions: &str) -> String {
    format!(r#"{{"disks": {{"main": {{"partitions": [{partitions}]}}}}}}"#)
}

const ESP: &str = r#"{"name": "ESP", "type": "esp", "size": "512M",
    "content": {"type": "filesystem", "format": "vfat", "mountpoint": "/boot", "options": ["umask=0077"]}}"#;
const ROOT: &str = r#"{"name": "root", "type": "root", "size": "100%",
    "content": {"type": "filesystem", "format": "ext4", "label": "nixos", "mountpoint": "/"}}"#;

#[test]
fn a_layout_is_read_and_written_back_the_same() {
    let subvolumes = r#"{"name": "pool", "type": "linux", "size": "100%", "uuid": "6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80",
        "attributes": [59], "content": {"type": "btrfs", "label": "pool", "subvolumes": [
        {"path": "/@", "mountpoint": "/", "options": ["compress=zstd"]}, {"path": "@/var/lib"}]}}"#;
    let swap =
        r#"{"name": "swap", "type": "swap", "size": "1536M", "content": {"type": "swap", "label": "swap"}}"#;
    for text in [format!("{ESP},{ROOT}"), format!("{ESP},{swap},{subvolumes}")] {
        let layout = parse(&layout_of(&text)).unwrap();
        let again = serde_json::to_string(&layout).unwrap();
        assert_eq!(parse(&again).unwrap(), layout);
    }
}

#[test]
fn mounts_come_parents_first_whatever_the_order_of_the_partitions() {
    let text = r#"{"name": "a", "type": "home", "size": "1G", "content": {"type": "filesystem", "format": "xfs", "mountpoint": "/home/x"}},
        {"name": "b", "type": "linux", "size": "1G", "content": {"type": "btrfs", "subvolumes": [
            {"path": "b", "mountpoint": "/home-b"}, {"path": "a", "mountpoint": "/home"}]}}"#;
    let layout = parse(&layout_of(&format!("{ESP},{text},{ROOT}"))).unwrap();
    let disk = layout.disk().unwrap().1;
    let points: Vec<&str> = disk.mounts().iter().map(|mount| mount.mountpoint).collect();
    assert_eq!(points, ["/", "/boot", "/home", "/home/x", "/home-b"]);
    for (path, partition) in [("/nix/store", 3), ("/boot/EFI", 0), ("/home/x/y", 1), ("/home/xy", 2)] {
        assert_eq!(disk.partition_of(path), Some(partition), "{path}");
    }
    assert_eq!(disk.partitions[2].content.as_ref().unwrap().subvolumes(), ["a", "b"]);
}

/// `root` with one field of its partition or of its content changed.
fn root_with(at: &str, key: &str, value: &str) -> String {
    let mut root: serde_json::Value = serde_json::from_str(ROOT).unwrap();
    let place = if at.is_empty() { &mut root } else { &mut root[at] };
    place[key] = serde_json::from_str(value).unwrap();
    root.to_string()
}

const INNER: &str = r#"{"type": "filesystem", "format": "ext4", "mountpoint": "/"}"#;

/// An encrypted `root` with these fields of its encryption.
fn encrypted(fields: &str) -> String {
    format!(r#"{{"name": "root", "type": "root", "size": "100%", "content": {{"type": "luks", {fields}}}}}"#)
}

#[test]
fn what_is_encrypted_is_mounted_and_measured_as_what_is_in_it() {
    let json =
        encrypted(&format!(r#""name": "root", "settings": {{"allowDiscards": true}}, "content": {INNER}"#));
    let layout = parse(&layout_of(&format!("{ESP},{json}"))).unwrap();
    let disk = layout.disk().unwrap().1;
    assert_eq!((disk.partition_of("/nix/store"), disk.mounts()[0].format), (Some(1), Format::Ext4));
    let content = disk.partitions[1].content.as_ref().unwrap();
    assert_eq!(content.least(), LUKS_HEADER + Bytes::mib(16));
    assert_eq!(disk.partitions[1].luks().unwrap().name, "root");
    let again = serde_json::to_string(&layout).unwrap();
    assert_eq!(parse(&again), Ok(layout));
}

#[test]
fn every_mistake_has_its_sentence() {
    let esp_with = |key: &str, value: &str| ESP.replace(key, value);
    let with_root = |text: String| format!("{text},{ROOT}");
    let other =
        |size: &str, name: &str| format!(r#"{{"name": "{name}", "type": "linux", "size": "{size}"}}"#);
    let linux = |content: &str| {
        with_root(format!(r#"{{"name": "x", "type": "linux", "size": "1G", "content": {content}}}"#))
    };
    for (partitions, sentence) in [
        (String::new(), "the layout has no partition; write at least the one that holds /"),
        (
            root_with("", "colour", "1"),
            "partition \"root\" of disk \"main\" of the layout: unknown field `colour`",
        ),
        (
            root_with("content", "colour", "1"),
            "partition \"root\" of disk \"main\" of the layout: unknown field `colour`",
        ),
        (
            root_with("", "size", "\"ten\""),
            "\"ten\" is not a size; write a number with K, M, G or T (powers of 1024), such as 512M or 8G, or 100%",
        ),
        (root_with("", "size", "\"50%\""), "\"50%\" is not a size"),
        (root_with("", "size", "\"0\""), "a size of 0 holds nothing"),
        (root_with("", "size", "\"-0\""), "a size of -0 leaves nothing; write 100%"),
        (root_with("", "size", "\"-ten\""), "\"ten\" is not a size"),
        (root_with("", "size", "\"--1G\""), "\"-1G\" is not a size"),
        (root_with("", "size", "5"), "expected a string"),
        (root_with("", "type", "\"rooot\""), "\"rooot\" is no partition type; choose one of esp, bios-boot"),
        (root_with("", "uuid", "\"1\""), "\"1\" is no partition UUID"),
        (root_with("", "attributes", "[64]"), "attribute 64 of partition root is no bit"),
        (root_with("", "name", "\"\""), "partition name \"\" is empty; name the partition"),
        (root_with("", "name", &format!("{:?}", "ä".repeat(37))), "is longer than the 36 characters"),
        (
            root_with("content", "type", "\"lvm_pv\""),
            "content of type \"lvm_pv\" is not supported in this version",
        ),
        (encrypted(r#""name": "x", "content": {"type": "zfs"}"#), "content of type \"zfs\" is not supported"),
        (encrypted(r#""name": "x""#), "missing field `content`"),
        (encrypted(&format!(r#""content": {INNER}"#)), "missing field `name`"),
        (
            encrypted(&format!(r#""name": "", "content": {INNER}"#)),
            "the name \"\" of an encrypted partition is empty",
        ),
        (
            encrypted(&format!(r#""name": "control", "content": {INNER}"#)),
            "the name \"control\" of an encrypted partition is taken",
        ),
        (
            encrypted(&format!(r#""name": "a b", "content": {INNER}"#)),
            "the name \"a b\" of an encrypted partition holds something else",
        ),
        (
            encrypted(&format!(r#""name": "{}", "content": {INNER}"#, "x".repeat(128))),
            "is longer than 127 bytes",
        ),
        (
            encrypted(&format!(r#""name": "x", "label": "{}", "content": {INNER}"#, "x".repeat(48))),
            "is 48 bytes long and LUKS allows 47",
        ),
        (
            encrypted(&format!(r#""name": "x", "uuid": "ABCD-1234", "content": {INNER}"#)),
            "\"ABCD-1234\" is no UUID for LUKS",
        ),
        (
            encrypted(&format!(
                r#""name": "x", "content": {{"type": "luks", "name": "y", "content": {INNER}}}"#
            )),
            "partition root is encrypted twice",
        ),
        (
            encrypted(&format!(r#""name": "x", "content": {}"#, r#"{"type": "swap"}"#)),
            "partition root is of type root and holds swap",
        ),
        (
            esp_with(
                r#"{"type": "filesystem", "format": "vfat", "mountpoint": "/boot", "options": ["umask=0077"]}"#,
                r#"{"type": "luks", "name": "x", "content": {"type": "filesystem", "format": "vfat"}}"#,
            ),
            "partition ESP is the EFI system partition, which firmware reads as vfat",
        ),
        (root_with("content", "format", "\"zfs\""), "unknown variant `zfs`"),
        (root_with("content", "format", "\"vfat\""), "the root file system cannot be vfat"),
        (
            root_with("content", "mountpoint", "\"home\""),
            "mount point \"home\" is not absolute; start it with /",
        ),
        (root_with("content", "mountpoint", "\"/a/../b\""), "mount point \"/a/../b\" holds . or .."),
        (root_with("content", "mountpoint", "\"/a//b\""), "mount point \"/a//b\" holds an empty part"),
        (
            root_with("content", "mountpoint", "\"/srv\""),
            "nothing in the layout is mounted on /, /nix or /nix/store",
        ),
        (root_with("content", "mountpoint", "null"), "nothing in the layout is mounted on /"),
        (
            root_with("content", "label", "\"seventeen letters\""),
            "the label \"seventeen letters\" is 17 bytes long and ext4 allows 16; shorten it",
        ),
        (root_with("content", "label", "\"\""), "is empty; leave the label out instead"),
        (root_with("content", "label", "\"a/b\""), "holds '/', which ext4 does not take"),
        (root_with("content", "uuid", "\"ABCD-1234\""), "\"ABCD-1234\" is no UUID for ext4"),
        (
            root_with("content", "options", "[\"ro,noatime\"]"),
            "the mount option \"ro,noatime\" holds a comma",
        ),
        (root_with("content", "options", "[\"subvol=x\"]"), "/ chooses a subvolume by a mount option"),
        (format!("{ROOT},{ROOT}"), "partition root has size 100% and others follow it"),
        (
            format!("{},{}", root_with("", "size", "\"-1G\""), other("-512M", "b")),
            "partition b is the second that says what it leaves of the disk; write its own size",
        ),
        (
            format!("{},{}", root_with("", "size", "\"-1G\""), other("2G", "b")),
            "partition root leaves 1 GiB of the disk and what follows it takes 2 GiB; let it leave more",
        ),
        (with_root(root_with("", "size", "\"1G\"")), "the partition name \"root\" is used twice"),
        (
            with_root(root_with("", "size", "\"1G\"").replace("\"name\":\"root\"", "\"name\":\"b\"")),
            "the label \"nixos\" is used twice",
        ),
        (
            with_root(esp_with("vfat", "xfs").replace("\"esp\"", "\"linux\"").replace("512M", "299M")),
            "partition ESP is 299 MiB large and xfs needs at least 300 MiB",
        ),
        (with_root(ESP.replace("/boot", "/")), "the mount point \"/\" is used twice"),
        (
            with_root(esp_with("vfat", "ext4")),
            "partition ESP is the EFI system partition, which firmware reads as vfat",
        ),
        (
            with_root(esp_with("\"format\"", "\"label\": \"TWELVE BYTES\", \"format\"")),
            "is 12 bytes long and vfat allows 11",
        ),
        (
            with_root(esp_with("\"format\"", "\"uuid\": \"1234\", \"format\"")),
            "\"1234\" is no UUID for vfat; write it as ABCD-1234",
        ),
        (with_root(esp_with("\"esp\"", "\"bios-boot\"")), "is the BIOS boot partition"),
        (with_root(esp_with("\"esp\"", "\"swap\"")), "is of type swap and holds a file system"),
        (linux(r#"{"type": "swap", "label": "seventeen letters"}"#), "17 bytes long and swap allows 16"),
        (
            linux(r#"{"type": "filesystem", "format": "xfs", "label": "thirteen char"}"#),
            "13 bytes long and xfs allows 12",
        ),
        (
            linux(r#"{"type": "btrfs", "subvolumes": [{"path": "a/../b"}]}"#),
            "subvolume path \"a/../b\" holds ., ..",
        ),
        (linux(r#"{"type": "btrfs", "subvolumes": [{"path": "/"}]}"#), "subvolume path \"/\" names nothing"),
        (
            linux(r#"{"type": "btrfs", "subvolumes": [{"path": "a"}, {"path": "/a"}]}"#),
            "the subvolume \"/a\" is used twice",
        ),
        (linux(r#"{"type": "btrfs", "subvolumes": [{"path": "a", "x": 1}]}"#), "unknown field `x`"),
    ] {
        let error = parse(&layout_of(&partitions)).expect_err(sentence).to_string();
        assert!(error.contains(sentence), "{error}\n  is not\n{sentence}");
        assert!(!error.contains('\n'));
    }
    for (text, sentence) in [
        ("{", "the layout is no valid JSON: EOF"),
        ("{}", "the top level of the layout: missing field `disks`"),
        (r#"{"disks": {}}"#, "the layout names no disk"),
        (
            r#"{"disks": {"a": {"partitions": []}, "b": {"partitions": []}}}"#,
            "the layout names 2 disks and this version installs onto one",
        ),
        (
            r#"{"disks": {"a": {"partitions": [], "kind": "gpt"}}}"#,
            "disk \"a\" of the layout: unknown field `kind`",
        ),
        (r#"{"disks": {}, "version": 2}"#, "unknown field `version`"),
    ] {
        let error = parse(text).expect_err(sentence).to_string();
        assert!(error.contains(sentence), "{error}\n  is not\n{sentence}");
    }
}

#[test]
fn a_system_with_its_root_in_memory_needs_only_a_place_for_the_store() {
    let nix = ROOT.replace("\"/\"", "\"/nix\"");
    let layout = parse(&layout_of(&format!("{ESP},{nix}"))).unwrap();
    assert_eq!(layout.disk().unwrap().1.partition_of("/nix/store"), Some(1));
    assert_eq!(layout.disk().unwrap().1.partition_of("/etc"), None);
}

#[test]
fn sizes_are_written_in_their_largest_whole_unit() {
    for (size, text) in [
        (Size::Rest, "100%"),
        (Size::AllBut(Bytes::gib(8)), "-8G"),
        (Size::AllBut(Bytes(1_234_567)), "-1234567"),
        (Size::Fixed(Bytes::mib(512)), "512M"),
        (Size::Fixed(Bytes::gib(2048)), "2T"),
        (Size::Fixed(Bytes(1_234_567)), "1234567"),
    ] {
        assert_eq!(size.to_string(), text);
        assert_eq!(text.parse(), Ok(size));
    }
}

#[test]
fn the_examples_of_the_documentation_are_layouts() {
    let text = include_str!("../../../docs/layout.md");
    let examples: Vec<&str> =
        text.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(examples.len(), 4);
    for example in examples {
        parse(example).unwrap_or_else(|error| panic!("{error}\n{example}"));
    }
}
