//! Looks at the devices of this machine, and at the drivers that they have now.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::read_line;
use crate::facts::hardware::{Device, Hardware, Link};

/// Looks at the disks and the network cards of this machine, and at all that they hang on.
pub fn hardware() -> Result<Hardware> {
    below(Path::new("/sys"))
}

fn below(sys: &Path) -> Result<Hardware> {
    let sys = &fs::canonicalize(sys).with_context(|| format!("looking for {}", sys.display()))?;
    let hardware = Hardware {
        disks: devices(sys, "class/block", |name, node| disk(sys, name, node))?,
        cards: devices(sys, "class/net", |name, node| card(sys, name, node))?,
        others: Vec::new(),
    };
    let others = others(sys, &hardware)?;
    Ok(Hardware { others, ..hardware }.tame())
}

/// Returns what `look` makes of each device of a class, by their names.
fn devices(sys: &Path, class: &str, look: impl Fn(&str, &Path) -> Option<Device>) -> Result<Vec<Device>> {
    let names = list(&sys.join(class))?;
    // What is gone by now is no device any more.
    let found =
        names.iter().filter_map(|path| Some((path.file_name()?.to_str()?, fs::canonicalize(path).ok()?)));
    Ok(found.filter_map(|(name, node)| look(name, &node)).collect())
}

fn disk(sys: &Path, name: &str, node: &Path) -> Option<Device> {
    let hidden = read_line(&node.join("hidden")).is_some_and(|hidden| hidden != "0");
    if hidden || node.join("partition").exists() {
        return None;
    }
    if !node.starts_with(sys.join("devices/virtual")) {
        return Some(Device { name: name.to_owned(), chain: chain(sys, node) });
    }
    // Of several paths to one NVMe disk the kernel makes one disk, beside links to its controllers.
    let subsystem =
        node.parent().filter(|dir| dir.starts_with(sys.join("devices/virtual/nvme-subsystem")))?;
    let links = list(subsystem).ok()?.into_iter().filter(|path| path.is_symlink());
    let controllers = links.filter(|path| is_controller(path)).filter_map(|path| fs::canonicalize(path).ok());
    Some(Device { name: name.to_owned(), chain: controllers.flat_map(|path| chain(sys, &path)).collect() })
}

/// Tells `nvme0` from `nvme0n1`, `subsystem` and `device`.
fn is_controller(path: &Path) -> bool {
    let number = path.file_name().and_then(|name| name.to_str()?.strip_prefix("nvme"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn card(sys: &Path, name: &str, node: &Path) -> Option<Device> {
    // Bridges, tunnels and such have no device.
    let device = fs::canonicalize(node.join("device")).ok()?;
    let mut chain = chain(sys, &device);
    // The part that talks to the cable may have a driver of its own.
    chain.extend(fs::canonicalize(node.join("phydev")).ok().map(|phy| transceiver(&phy)));
    Some(Device { name: name.to_owned(), chain })
}

fn transceiver(node: &Path) -> Link {
    let id = read_line(&node.join("phy_id"));
    let id = id.and_then(|id| u32::from_str_radix(id.strip_prefix("0x")?, 16).ok());
    Link { modalias: id.map(|id| format!("mdio:{id:032b}")), ..link(node) }
}

/// Returns a device and all above it.
fn chain(sys: &Path, node: &Path) -> Vec<Link> {
    let nodes = node.ancestors().take_while(|path| *path != sys);
    nodes.map(link).filter(|link| !link.is_empty()).collect()
}

fn link(node: &Path) -> Link {
    let target = |name: &str| {
        let target = fs::read_link(node.join(name)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    };
    Link {
        modalias: read_line(&node.join("modalias")),
        driver: target("driver"),
        module: target("driver/module"),
    }
}

/// Returns the modaliases of what no disk and no card hangs on, each once.
fn others(sys: &Path, hardware: &Hardware) -> Result<Vec<String>> {
    let mut all = BTreeSet::new();
    for bus in list(&sys.join("bus"))? {
        let devices = list(&bus.join("devices"))?;
        all.extend(devices.iter().filter_map(|device| read_line(&device.join("modalias"))));
    }
    for link in hardware.disks.iter().chain(&hardware.cards).flat_map(|device| &device.chain) {
        link.modalias.as_ref().map(|modalias| all.remove(modalias));
    }
    Ok(all.into_iter().collect())
}

/// Returns what is in a directory, in the order of the names; nothing if there is none.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let looking = || format!("looking into {}", dir.display());
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(looking)?,
    };
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    let mut paths = paths.with_context(looking)?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests;
