//! How a machine is connected: its links, what they are made of, their addresses, and the routes.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use crate::sys::netlink::bond::BondOptions;
pub use crate::sys::netlink::mac::Mac;

/// The network of a machine, as its kernel knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    pub links: Vec<Link>,
    /// The main table, of both families; the best of those to one place comes first.
    pub routes: Vec<Route>,
    /// Whether rules choose other tables for some packets.
    pub rules: bool,
}

/// A network card, or what the kernel makes of some.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    pub name: String,
    pub mac: Option<Mac>,
    /// What the card has from its maker, and has again under another kernel.
    pub permanent_mac: Option<Mac>,
    pub kind: LinkKind,
    pub mtu: u32,
    /// Whether it was set up, with or without a cable.
    pub up: bool,
    /// The bond or bridge that it is a member of.
    pub master: Option<String>,
    pub addresses: Vec<Address>,
}

/// What a link is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LinkKind {
    Loopback,
    /// An Ethernet card, or what a virtual machine has for one.
    Physical,
    Wireless,
    /// One end of a cable between namespaces: a container's card.
    Veth,
    /// A link to nowhere, which holds addresses.
    Dummy,
    Vlan {
        parent: String,
        id: u16,
        /// 0x8100, or 0x88a8 for the outer one of two.
        protocol: u16,
    },
    Bond {
        options: BondOptions,
        primary: Option<String>,
    },
    Bridge {
        /// Whether it sorts by VLANs.
        filtering: bool,
    },
    /// By the kernel's word, such as `wireguard`.
    Other(String),
}

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    pub address: IpAddr,
    pub prefix: u8,
    /// The other end, for a link that has just one.
    pub peer: Option<IpAddr>,
    /// 0 for the whole world, 253 for the link, 254 for this machine.
    pub scope: u8,
    /// Whether it comes from DHCP or a router, and ends.
    pub dynamic: bool,
    /// Whether it was made up for privacy, and changes.
    pub temporary: bool,
    /// Whether it is kept for what uses it already.
    pub deprecated: bool,
    /// Whether another machine has it, so that this one does not use it.
    pub duplicate: bool,
    /// Whether the kernel was asked to make no route of it.
    pub no_prefix_route: bool,
}

/// A way to other machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    pub destination: IpAddr,
    /// 0 for everything.
    pub prefix: u8,
    /// The least is taken.
    pub metric: u32,
    /// What packets get as their sender.
    pub source: Option<IpAddr>,
    /// Whether the kernel made it, of an address.
    pub implied: bool,
    /// One, or several that share the traffic.
    pub hops: Vec<Hop>,
}

/// The next machine on the way, or the link that the destination is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    pub device: String,
    /// Of either family.
    pub gateway: Option<IpAddr>,
    /// Whether the gateway is taken to be on the link, whatever the addresses say.
    pub on_link: bool,
    /// How much of the traffic it gets, from 1.
    pub weight: u16,
}

impl Network {
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Returns the links that make up a bond or a bridge.
    pub fn members<'a>(&'a self, master: &'a str) -> impl Iterator<Item = &'a Link> {
        self.links.iter().filter(move |link| link.master.as_deref() == Some(master))
    }
}

impl LinkKind {
    /// Tells whether it leads out of the machine, rather than to its guests or a program.
    pub fn leads_outside(&self) -> bool {
        matches!(
            self,
            LinkKind::Physical | LinkKind::Wireless | LinkKind::Vlan { .. } | LinkKind::Bond { .. }
        )
    }
}

impl Address {
    /// Tells whether it is valid on its link only, and comes and goes with that.
    pub fn is_link_local(&self) -> bool {
        matches!(self.address, IpAddr::V6(address) if address.is_unicast_link_local())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer {
            Some(peer) => write!(f, "{} peer {peer}/{}", self.address, self.prefix),
            None => write!(f, "{}/{}", self.address, self.prefix),
        }
    }
}

impl Route {
    pub fn is_default(&self) -> bool {
        self.prefix == 0 && self.destination.is_unspecified()
    }

    /// Tells whether it leads to other networks.
    pub fn has_gateway(&self) -> bool {
        self.hops.iter().any(|hop| hop.gateway.is_some())
    }
}

/// As `ip route` writes it.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_default() {
            true => f.write_str("default")?,
            false => write!(f, "{}/{}", self.destination, self.prefix)?,
        }
        for hop in &self.hops {
            if self.hops.len() > 1 {
                write!(f, " nexthop weight {}", hop.weight)?;
            }
            match hop.gateway {
                Some(gateway) if gateway.is_ipv4() == self.destination.is_ipv4() => {
                    write!(f, " via {gateway}")?
                }
                Some(gateway) => {
                    write!(f, " via inet{} {gateway}", if gateway.is_ipv6() { "6" } else { "" })?
                }
                None => {}
            }
            write!(f, " dev {}{}", hop.device, if hop.on_link { " onlink" } else { "" })?;
        }
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        if self.metric > 0 {
            write!(f, " metric {}", self.metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_written_as_everybody_knows_them() {
        let hop = |device: &str, gateway: Option<&str>, on_link| Hop {
            device: device.into(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            on_link,
            weight: 1,
        };
        let route = |destination: &str, prefix, hops: &[Hop]| Route {
            destination: destination.parse().unwrap(),
            prefix,
            metric: 0,
            source: None,
            implied: false,
            hops: hops.to_vec(),
        };
        for (route, text) in [
            (route("0.0.0.0", 0, &[hop("e", Some("10.0.0.1"), true)]), "default via 10.0.0.1 dev e onlink"),
            (route("0.0.0.0", 0, &[hop("e", Some("fe80::1"), false)]), "default via inet6 fe80::1 dev e"),
            (route("::", 0, &[hop("e", Some("fe80::1"), false)]), "default via fe80::1 dev e"),
            (
                Route {
                    metric: 7,
                    source: Some("10.0.0.2".parse().unwrap()),
                    ..route("10.0.0.1", 32, &[hop("e", None, false)])
                },
                "10.0.0.1/32 dev e src 10.0.0.2 metric 7",
            ),
            (
                route("::", 0, &[hop("e", Some("fe80::1"), false), hop("f", None, false)]),
                "default nexthop weight 1 via fe80::1 dev e nexthop weight 1 dev f",
            ),
        ] {
            assert_eq!(route.to_string(), text);
        }
    }
}
