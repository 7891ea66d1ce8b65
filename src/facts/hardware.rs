//! Hardware, as far as drivers matter.

use serde::{Deserialize, Serialize};

// More than the largest servers have of disks, cards and all that they hang on.
const DEVICES: usize = 4096;
// Deeper than any device lies below its buses.
const LINKS: usize = 64;
// Longer than all but those of processors and keyboards, which need no driver to install.
const TEXT: usize = 1024;

/// What a machine has, with the names that its running kernel gives it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hardware {
    /// Whole disks, by their kernel names, such as `nvme0n1`.
    pub disks: Vec<Device>,
    /// Network cards, by the names of their interfaces.
    pub cards: Vec<Device>,
    /// The modaliases of everything else.
    pub others: Vec<String>,
}

/// A device and what it hangs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    pub name: String,
    /// From the device itself up to the root of all, without those that no driver could be for.
    pub chain: Vec<Link>,
}

/// One device of a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// What it is, as drivers say what they are for: `pci:v00001AF4d…`.
    pub modalias: Option<String>,
    /// The driver that the running kernel has for it.
    pub driver: Option<String>,
    /// The module, or the part of the kernel, that this driver is in, where the kernel tells.
    pub module: Option<String>,
}

impl Hardware {
    /// Tells whether this can be what a machine has: another one may say anything.
    pub fn is_sane(&self) -> bool {
        let devices = || self.disks.iter().chain(&self.cards);
        devices().count() + self.others.len() <= DEVICES
            && devices().all(|device| is_plain(&device.name) && device.chain.len() <= LINKS)
            && devices().flat_map(|device| &device.chain).flat_map(Link::texts).all(is_plain)
            && self.others.iter().all(is_plain)
    }

    /// Leaves out what would not be sane, so that a strange machine is told of as far as may be.
    pub fn tame(mut self) -> Hardware {
        let mut room = DEVICES;
        for devices in [&mut self.disks, &mut self.cards] {
            devices.retain(|device| is_plain(&device.name));
            devices.truncate(room);
            room -= devices.len();
            for device in devices {
                device.chain.truncate(LINKS);
                device.chain.iter_mut().for_each(Link::tame);
            }
        }
        self.others.retain(|text| is_plain(text));
        self.others.truncate(room);
        self
    }
}

impl Link {
    /// Tells whether no driver could be for it, and none is.
    pub fn is_empty(&self) -> bool {
        self.texts().next().is_none()
    }

    fn texts(&self) -> impl Iterator<Item = &String> {
        [&self.modalias, &self.driver, &self.module].into_iter().flatten()
    }

    fn tame(&mut self) {
        for text in [&mut self.modalias, &mut self.driver, &mut self.module] {
            text.take_if(|text| !is_plain(text));
        }
    }
}

/// Tells whether a name is one that can be shown and is no flood.
fn is_plain(text: impl AsRef<str>) -> bool {
    let text = text.as_ref();
    !text.is_empty() && text.len() <= TEXT && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(name: &str, links: usize, others: usize, modalias: &str) -> Hardware {
        let link = Link { modalias: Some(modalias.to_owned()), ..Link::default() };
        let disk = Device { name: name.to_owned(), chain: vec![link; links] };
        Hardware { disks: vec![disk.clone()], cards: vec![disk], others: vec![modalias.to_owned(); others] }
    }

    #[test]
    fn floods_and_control_characters_are_no_hardware() {
        let long = "x".repeat(1024);
        let longer = "x".repeat(1025);
        for (sane, hardware) in [
            (true, Hardware::default()),
            (true, machine("sda", 64, 4094, &long)),
            (false, machine("sda", 65, 1, "pci:")),
            (false, machine("sda", 1, 4095, "pci:")),
            (false, machine(&longer, 1, 1, "pci:")),
            (false, machine("sda", 1, 0, &longer)),
            (false, machine("sda", 0, 1, &longer)),
            (false, machine("sda", 1, 0, "pci:\u{1b}[2J")),
            (false, machine("s\nda", 1, 0, "pci:")),
            (false, machine("", 1, 0, "pci:")),
        ] {
            assert_eq!(hardware.is_sane(), sane);
            assert!(hardware.clone().tame().is_sane());
            assert_eq!(hardware.clone().tame() == hardware, sane);
        }
    }
}
