//! Links, addresses, routes and rules, as the kernel tells them.
//!
//! Numbers are those of `linux/if_link.h`, `linux/if_addr.h`, `linux/rtnetlink.h` and `linux/fib_rules.h`. Parses only;
//! a message that is too short is nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::bond::{self, BondOptions};
use super::mac::Mac;
use super::message::{Attributes, number};
use super::{LINK_HEADER, split};

const UP: u32 = 1;
const ETHERNET: u16 = 1;
const LOOPBACK: u16 = 772;

pub(super) const MAIN_TABLE: u32 = 254;
pub(super) const UNICAST: u8 = 1;
// A route that the kernel made from another one, for one destination.
const CLONED: u32 = 0x200;
const ONLINK: u8 = 4;

/// Which of the two kinds of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    pub fn number(self) -> u8 {
        match self {
            Family::V4 => 2,
            Family::V6 => 10,
        }
    }

    fn from_number(number: u16) -> Option<Family> {
        [Family::V4, Family::V6].into_iter().find(|family| u16::from(family.number()) == number)
    }

    /// The address that stands for all of them.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    fn read(self, bytes: &[u8]) -> Option<IpAddr> {
        match self {
            Family::V4 => number(bytes, 0, <[u8; 4]>::from).map(IpAddr::from),
            Family::V6 => number(bytes, 0, <[u8; 16]>::from).map(IpAddr::from),
        }
    }
}

/// A link: a card, or what the kernel makes of cards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEntry {
    pub index: u32,
    pub hardware: u16,
    pub up: bool,
    pub name: String,
    pub mac: Option<Mac>,
    /// What the card has from its maker.
    pub permanent_mac: Option<Mac>,
    pub mtu: u32,
    /// The link below this one, or the other end of it, if it is in this namespace.
    pub below: Option<u32>,
    pub master: Option<u32>,
    /// What it is, if it is no card.
    pub kind: Option<String>,
    /// The number and the protocol, 0x8100 or 0x88a8.
    pub vlan: Option<(u16, u16)>,
    /// The options, and the primary member.
    pub bond: Option<(BondOptions, Option<u32>)>,
    /// Whether it is a bridge that sorts by VLANs.
    pub filtering: bool,
}

impl LinkEntry {
    pub fn is_loopback(&self) -> bool {
        self.hardware == LOOPBACK
    }

    pub fn is_ethernet(&self) -> bool {
        self.hardware == ETHERNET
    }
}

/// Parses a link.
pub fn link(body: &[u8]) -> Option<LinkEntry> {
    let (fixed, all) = split(body, LINK_HEADER)?;
    let info = all.nested(18);
    let kind = info.text(1);
    let (data, member) = (info.nested(2), info.nested(5));
    let is = |wanted: &str| kind.as_deref() == Some(wanted);
    let permanent = all.get(54).or_else(|| {
        let in_bond = info.text(4).as_deref() == Some("bond");
        in_bond.then(|| bond::permanent_address(member)).flatten()
    });
    let foreign = all.get(37).is_some();
    Some(LinkEntry {
        hardware: number(fixed, 2, u16::from_ne_bytes)?,
        index: number(fixed, 4, u32::from_ne_bytes)?,
        up: number(fixed, 8, u32::from_ne_bytes)? & UP != 0,
        name: all.text(3)?,
        mac: all.get(1).and_then(Mac::from_bytes),
        permanent_mac: permanent.and_then(Mac::from_bytes),
        mtu: all.u32(4).unwrap_or(0),
        below: all.u32(5).filter(|_| !foreign),
        master: all.u32(10),
        vlan: data.u16(1).filter(|_| is("vlan")).map(|id| {
            let protocol = data.get(5).and_then(|value| number(value, 0, u16::from_be_bytes));
            (id, protocol.unwrap_or(0x8100))
        }),
        bond: is("bond").then(|| bond::parse(data)),
        filtering: is("bridge") && data.u8(7) == Some(1),
        kind,
    })
}

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressEntry {
    pub link: u32,
    pub address: IpAddr,
    pub prefix: u8,
    /// The other end, for a link that has just one.
    pub peer: Option<IpAddr>,
    /// 0 for the whole world, 253 for the link, 254 for this machine.
    pub scope: u8,
    pub flags: u32,
}

impl AddressEntry {
    pub const TEMPORARY: u32 = 0x01;
    pub const NO_DUPLICATE_DETECTION: u32 = 0x02;
    pub const DUPLICATE: u32 = 0x08;
    pub const DEPRECATED: u32 = 0x20;
    pub const PERMANENT: u32 = 0x80;
    pub const NO_PREFIX_ROUTE: u32 = 0x200;

    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// Parses an address.
pub fn address(body: &[u8]) -> Option<AddressEntry> {
    let (fixed, all) = split(body, 8)?;
    let family = Family::from_number(fixed[0].into())?;
    let read = |kind| all.get(kind).and_then(|bytes| family.read(bytes));
    // The one that is called local is missing where both ends are the same.
    let (there, here) = (read(1), read(2));
    Some(AddressEntry {
        link: number(fixed, 4, u32::from_ne_bytes)?,
        address: here.or(there)?,
        prefix: fixed[1],
        peer: there.filter(|there| here.is_some_and(|here| here != *there)),
        scope: fixed[3],
        flags: all.u32(8).unwrap_or(fixed[2].into()),
    })
}

/// A way to other machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    pub destination: IpAddr,
    pub prefix: u8,
    pub metric: u32,
    /// The address that packets get as their sender.
    pub source: Option<IpAddr>,
    /// Who made it: 2 for the kernel, 9 for a router's announcement, 16 for DHCP.
    pub origin: u8,
    pub hops: Vec<HopEntry>,
}

/// The next machine on the way, or the link where all of them are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HopEntry {
    pub link: u32,
    pub gateway: Option<IpAddr>,
    /// Whether the gateway is taken to be on the link, whatever the addresses say.
    pub on_link: bool,
    /// How much of the traffic it gets, from 1.
    pub weight: u16,
}

/// Parses a route of the main table that packets go; others are nothing.
pub fn route(body: &[u8]) -> Option<RouteEntry> {
    let (fixed, all) = split(body, 12)?;
    let family = Family::from_number(fixed[0].into())?;
    let (from, service, origin, kind) = (fixed[2], fixed[3], fixed[5], fixed[7]);
    let flags = number(fixed, 8, u32::from_ne_bytes)?;
    let table = all.u32(15).unwrap_or(fixed[4].into());
    if table != MAIN_TABLE || kind != UNICAST || from != 0 || service != 0 || flags & CLONED != 0 {
        return None;
    }
    let hops = match all.get(9) {
        Some(list) => hops(list, family),
        None => vec![HopEntry {
            link: all.u32(4)?,
            gateway: gateway(all, family),
            on_link: flags & u32::from(ONLINK) != 0,
            weight: 1,
        }],
    };
    Some(RouteEntry {
        destination: all.get(1).map_or(Some(family.unspecified()), |bytes| family.read(bytes))?,
        prefix: fixed[1],
        metric: all.u32(6).unwrap_or(0),
        source: all.get(7).and_then(|bytes| family.read(bytes)),
        origin,
        hops,
    })
    .filter(|route| !route.hops.is_empty())
}

fn gateway(all: Attributes, family: Family) -> Option<IpAddr> {
    let same = all.get(5).and_then(|bytes| family.read(bytes));
    same.or_else(|| {
        let (other, address) = all.get(18)?.split_at_checked(2)?;
        Family::from_number(number(other, 0, u16::from_ne_bytes)?)?.read(address)
    })
}

fn hops(mut list: &[u8], family: Family) -> Vec<HopEntry> {
    let hops = std::iter::from_fn(|| {
        let length = usize::from(number(list, 0, u16::from_ne_bytes)?);
        let (fixed, all) = split(list.get(..length)?, 8)?;
        list = list.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(HopEntry {
            link: number(fixed, 4, u32::from_ne_bytes)?,
            gateway: gateway(all, family),
            on_link: fixed[2] & ONLINK != 0,
            weight: u16::from(fixed[3]) + 1,
        })
    });
    hops.collect()
}

/// A rule that says which table of routes is looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleEntry {
    pub priority: u32,
    pub table: u32,
}

impl RuleEntry {
    /// Tells whether every machine has it.
    pub fn is_usual(self) -> bool {
        [(0, 255), (32766, MAIN_TABLE), (32767, 253)].contains(&(self.priority, self.table))
    }
}

/// Parses a rule.
pub fn rule(body: &[u8]) -> Option<RuleEntry> {
    let (fixed, all) = split(body, 12)?;
    let table = all.u32(15).unwrap_or(fixed[4].into());
    Some(RuleEntry { priority: all.u32(6).unwrap_or(0), table })
}

#[cfg(test)]
mod tests;
