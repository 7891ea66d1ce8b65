//! Module trees, as the real modprobe reads them and as a real kernel takes them from an initrd of ours.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nixos_install_via::facts::hardware::{Device, Hardware, Link};
use nixos_install_via::plan::{self, Also};
use nixos_install_via::sys::cpio::Archive;
use nixos_install_via::sys::unpack;
use nixos_install_via::system::modules::{Texts, Tree};

use crate::env::{System, fixture, in_root};
use crate::link::free_port;
use crate::vm::{Machine, Start};

// Of thousands of aliases, which have long runs for one driver each.
const SAMPLE: usize = 23;

/// The modules of the fixture's kernel, by us and by modprobe.
struct Both {
    tree: Tree,
    aliases: String,
    dep: String,
    softdep: String,
    dir: PathBuf,
    version: String,
}

fn both(system: &System) -> Both {
    let top = in_root(&system.root, &system.toplevel);
    let target = fs::read_link(top.join("kernel-modules")).unwrap();
    let base = in_root(&system.root, target.to_str().unwrap());
    let version = fs::read_dir(base.join("lib/modules")).unwrap().next().unwrap().unwrap().file_name();
    let version = version.into_string().unwrap();
    let dir = base.join("lib/modules").join(&version);
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let (dep, aliases, softdep) = (read("modules.dep"), read("modules.alias"), read("modules.softdep"));
    let tree = Tree::parse(Texts {
        dep: &dep,
        alias: &aliases,
        softdep: &softdep,
        builtin: &read("modules.builtin"),
        builtin_modinfo: &fs::read(dir.join("modules.builtin.modinfo")).unwrap(),
    });
    Both { tree, aliases, dep, softdep, dir: base, version }
}

impl Both {
    fn softdeps(&self, module: &str) -> usize {
        self.softdep.lines().filter(|line| line.split(' ').nth(1) == Some(module)).count()
    }

    fn modprobe(&self, what: &str, name: &str) -> Vec<String> {
        let output = Command::new("modprobe")
            .args(["--config", "/dev/null", "--set-version", &self.version, what, name])
            .arg("--dirname")
            .arg(&self.dir)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(|line| line.trim().to_owned()).collect()
    }
}

/// Returns the name of the module in a file.
fn name(path: &str) -> String {
    let file = Path::new(path.trim()).file_name().unwrap().to_str().unwrap();
    file.split(".ko").next().unwrap().replace('-', "_")
}

#[test]
fn modules_are_loaded_as_modprobe_loads_them() {
    let both = both(&fixture("uefi"));
    let prefix = format!("insmod {}/lib/modules/{}/", both.dir.display(), both.version);
    let mut compared = 0;
    for line in both.dep.lines() {
        let wanted = name(line.split(':').next().unwrap());
        let order = both.tree.load_order(&[&wanted], &[]).unwrap();
        let theirs = both.modprobe("--show-depends", &wanted);
        let theirs = theirs.iter().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned);
        let (ours, theirs) =
            (order.iter().cloned().collect::<BTreeSet<_>>(), theirs.collect::<BTreeSet<_>>());
        // Of several softdeps of one module modprobe reads the first only. We have no modprobe to be
        // asked for the others later.
        match ours.iter().any(|path| both.softdeps(&name(path)) > 1) {
            true => assert!(ours.is_superset(&theirs), "{wanted}: {ours:?} {theirs:?}"),
            false => assert_eq!(ours, theirs, "{wanted}"),
        }
        for (place, path) in order.iter().enumerate() {
            let needs = both
                .dep
                .lines()
                .find_map(|line| line.strip_prefix(path.as_str())?.strip_prefix(':'))
                .unwrap();
            let early = |need: &str| order[..place].iter().any(|path| path == need);
            assert!(needs.split_whitespace().all(early), "{path} of {wanted}");
            assert!(!early(path), "{path} of {wanted}");
        }
        compared += 1;
    }
    assert!(compared > 300, "{compared}");
}

#[test]
fn aliases_lead_where_modprobe_says() {
    let both = both(&fixture("uefi"));
    let lines = both.aliases.lines().filter_map(|line| line.strip_prefix("alias ")?.split_once(' '));
    let of_devices = lines.map(|(alias, _)| example(alias));
    let names =
        ["crc32c", "ext4", "fs-vfat", "virtio-net", "nvme", "net-pf-17", "nothing", "aes"].map(str::to_owned);
    let mut compared = 0;
    for alias in of_devices.step_by(SAMPLE).chain(names) {
        let ours = both.tree.find(&alias);
        let theirs = both.modprobe("--resolve-alias", &alias).into_iter().collect::<BTreeSet<_>>();
        // It asks for builtin drivers only where there is no module.
        let ours = if ours.modules.is_empty() { ours.builtin } else { ours.modules };
        assert_eq!(ours, theirs, "{alias}");
        compared += 1;
    }
    assert!(compared > 50, "{compared}");
}

/// Returns something that a pattern of an alias is about.
fn example(pattern: &str) -> String {
    let mut example = String::new();
    let mut rest = pattern.chars();
    while let Some(char) = rest.next() {
        match char {
            '*' | '?' => example.push('0'),
            '[' => {
                example.extend(rest.next());
                rest.by_ref().find(|&char| char == ']');
            }
            char => example.push(char),
        }
    }
    example
}

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
    vm.wait_serial("initrd is done", Duration::from_secs(120));
    let said = vm.serial();
    for words in ["disk says hello", "second archive: second 700"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let cards = said.lines().find_map(|line| line.split_once("cards: ")).expect("it was printed").1;
    assert!(cards.contains("eth0"), "{said}");
}
