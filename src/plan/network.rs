//! What of a machine's network is set up again in its rescue, so that it is reached as before.
//!
//! Cards are known by their addresses from their makers, because another kernel may call them something else. What they
//! were called stays the word for them here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::facts::network::{Address, BondOptions, Mac, Route};

mod addresses;
mod decide;
mod error;
mod routes;
#[cfg(test)]
mod tests;

pub use decide::carried;
pub use error::{NetworkError, Obstacle, Way};

/// The loopback link, which has the same name everywhere.
pub const LOOPBACK: &str = "lo";

// More than machines have, and little enough for an initrd's configuration.
const MOST_LINKS: usize = 64;
const MOST_ADDRESSES: usize = 4096;
const MOST_ROUTES: usize = 1024;
// What IPv4 asks of a link, and the length of the largest packet.
const MTU: std::ops::RangeInclusive<u32> = 68..=65_536;

/// What is set up in a rescue, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Carried {
    pub cards: Vec<Card>,
    pub bonds: Vec<CarriedBond>,
    /// Each after the one that it is on.
    pub vlans: Vec<CarriedVlan>,
    pub addresses: Vec<CarriedAddress>,
    /// Those that others need come first.
    pub routes: Vec<Route>,
    /// What is not as it was, a sentence each.
    pub notes: Vec<String>,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Card {
    /// What it was called.
    pub name: String,
    /// What it has from its maker, if that was told; else what it has.
    pub known_by: Mac,
    /// What it shall have; nothing for a member of a bond, which gets it from there.
    pub mac: Option<Mac>,
    pub mtu: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CarriedBond {
    pub name: String,
    /// Names of cards.
    pub members: Vec<String>,
    pub options: BondOptions,
    pub primary: Option<String>,
    pub mac: Option<Mac>,
    pub mtu: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CarriedVlan {
    pub name: String,
    /// A card, a bond or another VLAN.
    pub parent: String,
    pub id: u16,
    pub protocol: u16,
    pub mac: Option<Mac>,
    pub mtu: u32,
}

/// An address of a card, a bond, a VLAN, or the machine itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CarriedAddress {
    pub device: String,
    pub address: Address,
}

impl Carried {
    /// Returns what the cards are called on the machine, so that their drivers can be looked up.
    pub fn cards(&self) -> Vec<String> {
        self.cards.iter().map(|card| card.name.clone()).collect()
    }

    /// Returns the kernel modules that links other than cards need.
    pub fn modules(&self) -> Vec<&'static str> {
        let mut modules = Vec::new();
        modules.extend((!self.bonds.is_empty()).then_some("bonding"));
        modules.extend((!self.vlans.is_empty()).then_some("8021q"));
        modules
    }

    /// Tells whether it can be meant: everything is named once and before it is used, and numbers are in their bounds.
    pub fn is_sane(&self) -> bool {
        let mut names = BTreeSet::from([LOOPBACK]);
        let cards = self.cards.iter().all(|card| MTU.contains(&card.mtu) && is_new(&card.name, &mut names));
        let mut taken = BTreeSet::new();
        let bonds = self.bonds.iter().all(|bond| {
            let is_card = |name: &String| self.cards.iter().any(|card| card.name == *name);
            let members = bond.members.iter().all(|member| is_card(member) && taken.insert(member));
            members && !bond.members.is_empty() && MTU.contains(&bond.mtu) && is_new(&bond.name, &mut names)
        });
        let vlans = self.vlans.iter().all(|vlan| {
            let below = names.contains(vlan.parent.as_str()) && vlan.parent != LOOPBACK;
            let tag = (1..=4094).contains(&vlan.id) && [0x8100, 0x88a8].contains(&vlan.protocol);
            below && tag && MTU.contains(&vlan.mtu) && is_new(&vlan.name, &mut names)
        });
        let addresses = self.addresses.iter().all(|CarriedAddress { device, address }| {
            let same = address.peer.is_none_or(|peer| peer.is_ipv4() == address.address.is_ipv4());
            names.contains(device.as_str()) && same && address.prefix <= longest(address.address)
        });
        let routes = self.routes.iter().all(|route| {
            let source = route.source.is_none_or(|source| source.is_ipv4() == route.destination.is_ipv4());
            let hops = route.hops.iter().all(|hop| names.contains(hop.device.as_str()) && hop.weight > 0);
            source && hops && !route.hops.is_empty() && route.prefix <= longest(route.destination)
        });
        let links = self.cards.len() + self.bonds.len() + self.vlans.len();
        let few =
            links <= MOST_LINKS && self.addresses.len() <= MOST_ADDRESSES && self.routes.len() <= MOST_ROUTES;
        few && !self.cards.is_empty() && cards && bonds && vlans && addresses && routes
    }
}

/// Tells whether the kernel takes a link's name, and nobody has it yet.
fn is_new<'a>(name: &'a str, names: &mut BTreeSet<&'a str>) -> bool {
    let plain = name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
    (1..16).contains(&name.len()) && plain && name != "." && name != ".." && names.insert(name)
}

fn longest(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
