//! A real kernel takes the modules of an initrd of ours.

use std::fs;
use std::process::Command;

use nixos_install_via::facts::hardware::{Device, Hardware, Link};
use nixos_install_via::plan::{self, Also};
use nixos_install_via::sys::cpio::Archive;
use nixos_install_via::sys::unpack;

use crate::env::{fixture, in_root};
use crate::link::free_port;
use crate::modules::both;
use crate::vm::{BOOT, Machine, Start};

const INIT: &str = r#"#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
while read -r module; do
    busybox insmod "/modules/$module" || echo "refused: $module"
done < /modules/order
busybox sleep 1
busybox mount -t ext4 /dev/vda /mnt && echo "disk says $(busybox cat /mnt/word)"
echo "cards: $(busybox ls /sys/class/net)"
echo "second archive: $(busybox cat /replaced) $(busybox stat -c %a /secret)"
echo "initrd is done"
busybox sleep 1
busybox poweroff -f
"#;

#[test]
fn a_kernel_that_takes_our_initrd_finds_its_disk_and_its_card() {
    let system = fixture("uefi");
    let both = both(&system);
    let dir = tempfile::tempdir().unwrap();
    let (image, initrd, files) =
        (dir.path().join("disk"), dir.path().join("initrd"), dir.path().join("files"));
    fs::create_dir(&files).unwrap();
    fs::write(files.join("word"), "hello").unwrap();
    let format = Command::new("mkfs.ext4").args(["-q", "-d"]).arg(&files).arg(&image).arg("16M").status();
    assert!(format.unwrap().success());

    let device = |name: &str, modaliases: [&str; 2]| {
        let link = |alias: &str| Link { modalias: Some(alias.to_owned()), ..Link::default() };
        Device { name: name.to_owned(), chain: modaliases.map(link).to_vec() }
    };
    let blk = ["virtio:d00000002v00001AF4", "pci:v00001AF4d00001001sv00001AF4sd00000002bc01sc00i00"];
    let net = ["virtio:d00000001v00001AF4", "pci:v00001AF4d00001000sv00001AF4sd00000001bc02sc00i00"];
    let (disks, cards) = (vec![device("vda", blk)], vec![device("eth0", net)]);
    let hardware = Hardware { disks, cards, others: Vec::new() };
    let also = Also { required: &["ext4"], useful: &[] };
    let drivers = plan::drivers(&hardware, &both.tree, "vda", &["eth0"], also).unwrap();
    assert_eq!(drivers.undriven, []);

    let mut archive = Archive::new(Vec::new());
    for path in ["proc", "sys", "mnt"] {
        archive.dir(path, 0o755).unwrap();
    }
    archive.dir("secret", 0o755).unwrap();
    archive.device("dev/console", 0o600, 5, 1).unwrap();
    let mut add = |path: &str, bytes: &[u8]| archive.file(path, 0o755, bytes.len() as u64, bytes).unwrap();
    add("bin/busybox", &fs::read("/bin/busybox").expect("busybox-static is installed"));
    add("init", INIT.as_bytes());
    add("replaced", b"first");
    add("modules/order", (drivers.load.join("\n") + "\n").as_bytes());
    for path in &drivers.load {
        let module = both.dir.join("lib/modules").join(&both.version).join(path);
        add(&format!("modules/{path}"), &unpack::read(&module).unwrap());
    }
    let mut second = Archive::new(archive.finish().unwrap());
    second.dir("secret", 0o700).unwrap();
    second.file("replaced", 0o644, 6, &b"second"[..]).unwrap();
    fs::write(&initrd, second.finish().unwrap()).unwrap();

    let kernel = in_root(&system.root, &system.toplevel).join("kernel");
    let kernel = in_root(&system.root, fs::read_link(kernel).unwrap().to_str().unwrap());
    let parameters = "console=ttyS0 panic=-1".to_owned();
    let vm = Machine::new(Start::Kernel { kernel, initrd, parameters })
        .scratch_disk(&image)
        .ssh(free_port())
        .start();
    vm.wait_serial("initrd is done", BOOT);
    let said = vm.serial();
    for words in ["disk says hello", "second archive: second 700"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let cards = said.lines().find_map(|line| line.split_once("cards: ")).expect("it was printed").1;
    assert!(cards.contains("eth0"), "{said}");
}
