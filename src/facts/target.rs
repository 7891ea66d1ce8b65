//! A machine that is to run another system: what runs there now, and what it is made of.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::hardware::Hardware;
use super::network::Network;
use super::{DiskFacts, DiskKind, Refusal};
use crate::size::Bytes;

/// A machine as seen from its inside, before anything of it is changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetFacts {
    /// What its kernel says it is, such as `x86_64`.
    pub machine: String,
    pub boot_id: String,
    /// The kernel's release.
    pub kernel: String,
    /// The parameters that its kernel was started with.
    pub kernel_parameters: String,
    /// What it calls itself in `os-release`.
    pub os: Option<String>,
    pub firmware: Firmware,
    /// The kernel's lockdown mode, where it has any: `none`, `integrity` or `confidentiality`.
    pub lockdown: Option<String>,
    /// Which kind of container it is, if it is none of the kernel's own machines.
    pub container: Option<String>,
    /// What its firmware says it is, such as `QEMU Standard PC`.
    pub model: Option<String>,
    /// Whether `kernel.kexec_load_disabled` forbids the jump until the next boot.
    pub kexec_disabled: bool,
    /// The hardware's watchdog that restarts the machine unless it is fed, by its own name.
    pub watchdog: Option<String>,
    pub memory: Bytes,
    pub available_memory: Bytes,
    /// Where all that runs lies.
    pub runs_from: RunsFrom,
    pub disks: Vec<TargetDisk>,
    pub network: Network,
    /// Its own address and port, as the connection has them.
    pub reached: Option<(IpAddr, u16)>,
    /// The public host keys, as lines.
    pub host_keys: Vec<String>,
    pub hardware: Hardware,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Firmware {
    Bios,
    Uefi {
        /// Of its own programs, 32 or 64.
        bits: u8,
        secure_boot: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RunsFrom {
    Disk,
    /// As installers do, and other rescue systems: the disks can be written while it runs.
    Memory,
    /// The rescue of this program.
    Rescue,
}

/// A whole disk of such a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetDisk {
    /// The kernel's name, such as `vda`.
    pub name: String,
    /// Where it is attached, such as `pci0000:00/0000:00:03.0/virtio1`: the same to every kernel, mostly.
    pub place: String,
    pub facts: DiskFacts,
}

impl TargetDisk {
    /// Tells what speaks against it even when nothing of what runs now is left.
    pub fn lasting_refusals(&self) -> impl Iterator<Item = &Refusal> {
        self.facts.refusals.iter().filter(|refusal| !matches!(refusal, Refusal::Held(_)))
    }

    /// Tells whether a system can be put onto it at all.
    pub fn is_usable(&self) -> bool {
        self.facts.kind == DiskKind::BlockDevice
            && self.facts.size > Bytes(0)
            && self.lasting_refusals().next().is_none()
    }

    /// Returns the disk as it is when nothing holds it.
    pub fn let_go(&self) -> DiskFacts {
        let refusals = self.lasting_refusals().cloned().collect();
        DiskFacts { refusals, ..self.facts.clone() }
    }

    /// Finds this disk among those that another kernel of the same machine sees.
    ///
    /// By its serial, or else by the place where it is attached, or else by its size; never one that
    /// merely has the same name, for kernels number disks as they find them.
    pub fn among<'d>(&self, others: &'d [TargetDisk]) -> Option<&'d TargetDisk> {
        let same_size = |other: &&TargetDisk| {
            other.facts.size == self.facts.size && other.facts.sector_size == self.facts.sector_size
        };
        let the_only = |is_it: &dyn Fn(&&TargetDisk) -> bool| {
            let mut found = others.iter().filter(same_size).filter(|other| is_it(other));
            found.next().filter(|_| found.next().is_none())
        };
        if self.facts.serial.is_some() {
            // Some hypervisors give several disks one serial.
            if let Some(found) = the_only(&|other| other.facts.serial == self.facts.serial) {
                return Some(found);
            }
        }
        the_only(&|other| other.place == self.place)
            .or_else(|| the_only(&|other| other.facts.serial == self.facts.serial))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::disk::contents::{Contents, TableKind};
    use crate::facts::hardware::{Device, Link};
    use crate::facts::network;

    pub fn disk(name: &str, place: &str, serial: Option<&str>, gib: u64) -> TargetDisk {
        TargetDisk {
            name: name.to_owned(),
            place: place.to_owned(),
            facts: DiskFacts {
                path: format!("/dev/{name}").into(),
                node: format!("/dev/{name}").into(),
                kind: DiskKind::BlockDevice,
                model: None,
                serial: serial.map(str::to_owned),
                size: Bytes::gib(gib),
                sector_size: 512,
                removable: false,
                transport: None,
                room: None,
                contents: Contents { table: TableKind::None, partitions: Vec::new(), content: None },
                mounts: Vec::new(),
                refusals: Vec::new(),
            },
        }
    }

    /// A small virtual server.
    pub fn facts() -> TargetFacts {
        let (gateway, own): (IpAddr, IpAddr) = ("10.0.2.2".parse().unwrap(), "10.0.2.15".parse().unwrap());
        let device = |name: &str, modalias: &str| Device {
            name: name.to_owned(),
            chain: vec![Link {
                modalias: Some(modalias.to_owned()),
                driver: Some("virtio_net".to_owned()),
                module: None,
            }],
        };
        let mac = "52:54:00:12:34:56".parse().ok();
        TargetFacts {
            machine: "x86_64".to_owned(),
            boot_id: "6f4e2a3c-0f55-4a54-8d9b-2d9f9e0a7c11".to_owned(),
            kernel: "6.1.0-28-cloud-amd64".to_owned(),
            kernel_parameters: "root=/dev/vda1 console=ttyS0".to_owned(),
            os: Some("Debian GNU/Linux 12 (bookworm)".to_owned()),
            firmware: Firmware::Uefi { bits: 64, secure_boot: false },
            lockdown: Some("none".to_owned()),
            container: None,
            model: Some("QEMU Standard PC".to_owned()),
            kexec_disabled: false,
            watchdog: None,
            memory: Bytes::mib(480),
            available_memory: Bytes::mib(400),
            runs_from: RunsFrom::Disk,
            disks: vec![disk("vda", "pci0000:00/0000:00:03.0/virtio1", Some("x1"), 8)],
            network: Network {
                links: vec![network::Link {
                    name: "ens3".to_owned(),
                    mac,
                    permanent_mac: mac,
                    kind: network::LinkKind::Physical,
                    mtu: 1500,
                    up: true,
                    master: None,
                    addresses: vec![network::Address {
                        address: own,
                        prefix: 24,
                        peer: None,
                        scope: 0,
                        dynamic: false,
                        temporary: false,
                        deprecated: false,
                        duplicate: false,
                        no_prefix_route: false,
                    }],
                }],
                routes: vec![network::Route {
                    destination: "0.0.0.0".parse().unwrap(),
                    prefix: 0,
                    metric: 100,
                    source: None,
                    implied: false,
                    hops: vec![network::Hop {
                        device: "ens3".to_owned(),
                        gateway: Some(gateway),
                        on_link: false,
                        weight: 1,
                    }],
                }],
                rules: false,
            },
            reached: Some((own, 22)),
            host_keys: vec!["ssh-ed25519 AAAA root@debian".to_owned()],
            hardware: Hardware {
                disks: vec![device("vda", "virtio:d00000002v00001AF4")],
                cards: vec![device("ens3", "virtio:d00000001v00001AF4")],
                others: vec!["cpu:type:x86".to_owned()],
            },
        }
    }

    #[test]
    fn a_disk_is_found_again_whatever_it_is_called() {
        let (first, second) = ("pci0/virtio1", "pci0/virtio2");
        for (wanted, others, found) in [
            (disk("vda", first, None, 8), vec![disk("sda", first, None, 8)], Some("sda")),
            // Numbered the other way round.
            (
                disk("vda", first, None, 8),
                vec![disk("vda", second, None, 8), disk("vdb", first, None, 8)],
                Some("vdb"),
            ),
            (
                disk("vda", first, Some("a"), 8),
                vec![disk("vda", first, Some("b"), 8), disk("vdb", "elsewhere", Some("a"), 8)],
                Some("vdb"),
            ),
            // A serial that two have says nothing; the place does.
            (
                disk("vda", first, Some("a"), 8),
                vec![disk("vda", second, Some("a"), 8), disk("vdb", first, Some("a"), 8)],
                Some("vdb"),
            ),
            // Another driver, another place; but there is no other of that size.
            (
                disk("vda", first, None, 8),
                vec![disk("sda", "ata1", None, 8), disk("sdb", "ata2", None, 9)],
                Some("sda"),
            ),
            (
                disk("vda", first, None, 8),
                vec![disk("sda", "ata1", None, 8), disk("sdb", "ata2", None, 8)],
                None,
            ),
            (disk("vda", first, None, 8), vec![disk("vda", first, None, 9)], None),
            (disk("vda", first, None, 8), vec![], None),
        ] {
            assert_eq!(wanted.among(&others).map(|disk| disk.name.as_str()), found, "{others:?}");
        }
    }
}
