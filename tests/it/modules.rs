//! Module trees, as the real modprobe reads them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nixos_install_via::system::modules::{Texts, Tree};

use crate::env::{System, fixture, in_root};

// Of thousands of aliases, which have long runs for one driver each.
const SAMPLE: usize = 23;

/// The modules of the fixture's kernel, by us and by modprobe.
pub struct Both {
    pub tree: Tree,
    aliases: String,
    dep: String,
    softdep: String,
    pub dir: PathBuf,
    pub version: String,
}

pub fn both(system: &System) -> Both {
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
