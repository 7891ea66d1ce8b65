//! Which modules a rescue loads, so that the disk and the network of its machine work.
//!
//! What drives a device now may be called otherwise in the new system's kernel, so aliases decide. A
//! builtin driver seldom says what it is for; there the name of today's driver helps.

use std::collections::BTreeSet;
use std::fmt;

use crate::facts::hardware::{Device, Hardware, Link};
use crate::system::modules::{Home, Matches, ModuleError, Tree};

/// The drivers of a rescue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drivers {
    /// Files below the tree's directory, in the order of loading. Those for processors that the machine
    /// does not have refuse to load, which is no failure.
    pub load: Vec<String>,
    /// What would not work.
    pub undriven: Vec<Undriven>,
}

/// Something that the new system's kernel has no driver for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undriven {
    /// Such as `the disk vda` or `the driver ext4`.
    pub what: String,
    /// Of its parts that have no driver; none for a driver that was asked for by name, and for a
    /// device that the machine does not have.
    pub modaliases: Vec<String>,
}

impl fmt::Display for Undriven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match self.modaliases.is_empty() {
            true => Ok(()),
            false => write!(f, " ({})", self.modaliases.join(", ")),
        }
    }
}

/// Modules that are wanted beside those of the hardware, by their names or aliases.
#[derive(Clone, Copy, Debug, Default)]
pub struct Also<'a> {
    /// Such as the file systems of the layout.
    pub required: &'a [&'a str],
    /// Passed over where the kernel has none of that name.
    pub useful: &'a [&'a str],
}

// Small, and what most machines on offer have: worth having if the facts should be incomplete.
const SAFE: [&str; 8] =
    ["virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net", "sd_mod", "ahci", "nvme", "af_packet"];
const SAFE_ON_USB: [&str; 4] = ["xhci_pci", "ehci_pci", "usb_storage", "uas"];

// What a module asks for by a call to modprobe, which a rescue does not have.
const COMPANIONS: [(&str, &[&str]); 7] = [
    ("vfat", &["nls_cp437", "nls_iso8859_1", "nls_ascii", "nls_utf8"]),
    ("ext4", &["crypto-crc32c"]),
    ("xfs", &["crypto-crc32c"]),
    ("btrfs", &["crypto-crc32c", "crypto-xxhash64", "crypto-sha256", "crypto-blake2b-256"]),
    ("f2fs", &["crypto-crc32"]),
    (
        "dm_crypt",
        &[
            "crypto-xts",
            "crypto-aes",
            "crypto-cbc",
            "crypto-essiv",
            "crypto-sha256",
            "algif_skcipher",
            "algif_hash",
        ],
    ),
    ("mlx4_core", &["mlx4_en"]),
];

// Drivers that are not called as the module that they are in.
const OTHER_NAMES: [(&str, &str); 6] = [
    ("sd", "sd_mod"),
    ("sr", "sr_mod"),
    ("vbd", "xen_blkfront"),
    ("vif", "xen_netfront"),
    ("xhci_hcd", "xhci_pci"),
    ("mmcblk", "mmc_block"),
];

// Where a device that has a driver works only with one. Others, such as platform devices and bridges,
// may be driven by parts of the kernel that are listed nowhere.
const BUSES: [&str; 7] = ["pci", "virtio", "scsi", "usb", "vmbus", "xen", "mmc"];
const PCI_BRIDGE: &str = "bc06";

/// Decides which modules of a tree are loaded for a disk, for cards, and for what is wanted beside.
pub fn drivers(
    hardware: &Hardware,
    tree: &Tree,
    disk: &str,
    cards: &[&str],
    also: Also,
) -> Result<Drivers, ModuleError> {
    let mut wanted = Wanted::default();
    let device = hardware.disks.iter().find(|device| device.name == disk);
    wanted.device(tree, format!("the disk {disk}"), device);
    let on_usb = device.is_some_and(|device| device.chain.iter().any(|link| bus(link) == Some("usb")));
    for card in cards {
        let device = hardware.cards.iter().find(|device| device.name == *card);
        wanted.device(tree, format!("the network card {card}"), device);
    }
    for name in also.required {
        if tree.find(name).is_empty() {
            wanted.undriven.push(Undriven { what: format!("the driver {name}"), modaliases: Vec::new() });
        }
        wanted.name(tree, name);
    }
    let safe = SAFE.iter().chain(if on_usb { &SAFE_ON_USB[..] } else { &[] });
    for name in safe.chain(also.useful) {
        wanted.name(tree, name);
    }
    Ok(Drivers { load: tree.load_order(&[], &wanted.modules)?, undriven: wanted.undriven })
}

/// Tells which of a machine's disks and cards a tree has no driver for, whatever they are needed for.
pub fn undriven(hardware: &Hardware, tree: &Tree) -> Vec<Undriven> {
    let mut wanted = Wanted::default();
    for disk in &hardware.disks {
        wanted.device(tree, format!("the disk {}", disk.name), Some(disk));
    }
    for card in &hardware.cards {
        wanted.device(tree, format!("the network card {}", card.name), Some(card));
    }
    wanted.undriven
}

#[derive(Default)]
struct Wanted {
    modules: Vec<String>,
    seen: BTreeSet<String>,
    undriven: Vec<Undriven>,
}

impl Wanted {
    fn device(&mut self, tree: &Tree, what: String, device: Option<&Device>) {
        let chain = device.map_or(&[][..], |device| &device.chain);
        let mut modaliases = Vec::new();
        let mut driven = false;
        // A bus comes before what is on it.
        for (link, needed) in chain.iter().zip(needed(chain)).rev() {
            let matches = matches(tree, link);
            match matches.is_empty() {
                true if needed => modaliases.extend(link.modalias.clone().or_else(|| link.driver.clone())),
                true => {}
                false => driven |= needed,
            }
            self.all(tree, matches);
        }
        if !driven || !modaliases.is_empty() {
            self.undriven.push(Undriven { what, modaliases });
        }
    }

    fn name(&mut self, tree: &Tree, name: &str) {
        self.all(tree, tree.find(name));
    }

    /// Wants modules, and what each of them, or a builtin driver, would ask for.
    fn all(&mut self, tree: &Tree, matches: Matches) {
        for name in matches.builtin.iter().chain(&matches.modules) {
            if !self.seen.insert(name.clone()) {
                continue;
            }
            if matches.modules.contains(name) {
                self.modules.push(name.clone());
            }
            let companions = COMPANIONS.iter().filter(|(module, _)| module == name);
            companions.flat_map(|(_, names)| *names).for_each(|name| self.name(tree, name));
        }
    }
}

/// Returns the drivers that a tree has for a device, by its alias or by the name of today's driver.
fn matches(tree: &Tree, link: &Link) -> Matches {
    let mut matches = link.modalias.as_ref().map(|modalias| tree.drivers_of(modalias)).unwrap_or_default();
    let other =
        |driver: &String| OTHER_NAMES.iter().find(|(name, _)| name == driver).map(|(_, module)| *module);
    let names = [link.module.as_deref(), link.driver.as_ref().map(|driver| other(driver).unwrap_or(driver))];
    for name in names.into_iter().flatten() {
        match tree.home_of(name) {
            Some(Home::Builtin) => matches.builtin.extend(tree.find(name).builtin),
            Some(Home::Module) => matches.modules.extend(tree.find(name).modules),
            None => {}
        }
    }
    matches
}

/// Tells of each device of a chain whether nothing works without a driver for it.
fn needed(chain: &[Link]) -> Vec<bool> {
    // Where the running kernel has no driver for any of them, the device itself counts.
    let first = chain.iter().position(|link| link.driver.is_some());
    let first = first.or_else(|| chain.iter().position(|link| link.modalias.is_some()));
    let known = |link: &Link| {
        link.driver.is_some() && bus(link).is_some_and(|bus| BUSES.contains(&bus)) && !is_bridge(link)
    };
    chain.iter().enumerate().map(|(place, link)| Some(place) == first || known(link)).collect()
}

fn bus(link: &Link) -> Option<&str> {
    link.modalias.as_ref()?.split_once(':').map(|(bus, _)| bus)
}

fn is_bridge(link: &Link) -> bool {
    bus(link) == Some("pci") && link.modalias.as_ref().is_some_and(|modalias| modalias.contains(PCI_BRIDGE))
}

#[cfg(test)]
mod tests;
