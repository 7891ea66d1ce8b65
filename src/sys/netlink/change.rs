//! Changes of the network, one request each. What they are made to is named by its number; the caller knows its name.

use std::io;

use super::bond::BondOptions;
use super::entry::{AddressEntry, Family, HopEntry, MAIN_TABLE, RouteEntry, UNICAST};
use super::mac::Mac;
use super::message::{self, Request};
use super::{LINK_HEADER, Netlink, octets};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;

const UP: u32 = 1;
const FOREVER: u32 = u32::MAX;
// Made by whoever set up the machine, rather than by the kernel or a daemon.
const STATIC: u8 = 4;
const SCOPE_LINK: u8 = 253;
const ON_LINK: u8 = 4;

/// What a link is that is to be made.
#[derive(Clone, Debug, PartialEq)]
pub enum NewLink<'a> {
    Vlan { below: u32, id: u16, protocol: u16 },
    Bond { options: &'a BondOptions, primary: Option<u32> },
}

impl Netlink {
    /// Makes a link, which is down.
    pub fn create(&mut self, name: &str, mac: Option<Mac>, what: &NewLink) -> io::Result<()> {
        self.change(NEWLINK, message::CREATE | message::EXCLUSIVE, &link(0, 0, 0), |mut request| {
            request = request.with_text(3, name);
            if let Some(mac) = mac {
                request = request.with(1, &mac.0);
            }
            match what {
                NewLink::Vlan { below, id, protocol } => {
                    let info = |info: Request| {
                        info.with_text(1, "vlan").with_nested(2, |data| {
                            data.with(1, &id.to_ne_bytes()).with(5, &protocol.to_be_bytes())
                        })
                    };
                    request.with(5, &below.to_ne_bytes()).with_nested(18, info)
                }
                NewLink::Bond { options, primary } => request.with_nested(18, |info| {
                    info.with_text(1, "bond").with_nested(2, |data| options.write(*primary, data))
                }),
            }
        })
    }

    pub fn delete(&mut self, index: u32) -> io::Result<()> {
        self.change(DELLINK, 0, &link(index, 0, 0), |request| request)
    }

    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.change(NEWLINK, 0, &link(index, UP, UP), |request| request)
    }

    pub fn set_down(&mut self, index: u32) -> io::Result<()> {
        self.change(NEWLINK, 0, &link(index, 0, UP), |request| request)
    }

    /// Makes a link, which must be down, a member of another one.
    pub fn enslave(&mut self, index: u32, master: u32) -> io::Result<()> {
        self.change(NEWLINK, 0, &link(index, 0, 0), |request| request.with(10, &master.to_ne_bytes()))
    }

    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        self.change(NEWLINK, 0, &link(index, 0, 0), |request| request.with(4, &mtu.to_ne_bytes()))
    }

    pub fn set_mac(&mut self, index: u32, mac: Mac) -> io::Result<()> {
        self.change(NEWLINK, 0, &link(index, 0, 0), |request| request.with(1, &mac.0))
    }

    /// Gives a link an address, or the one that is there the same properties.
    pub fn add_address(&mut self, entry: &AddressEntry) -> io::Result<()> {
        let family = Family::of(entry.address);
        let mut fixed = vec![family.number(), entry.prefix, 0, entry.scope];
        fixed.extend_from_slice(&entry.link.to_ne_bytes());
        // The kernel finds out by itself what is deprecated: what has no time left to be preferred.
        let preferred = if entry.has(AddressEntry::DEPRECATED) { 0 } else { FOREVER };
        let flags = entry.flags & (AddressEntry::NO_PREFIX_ROUTE | AddressEntry::NO_DUPLICATE_DETECTION);
        let lifetime = [preferred, FOREVER, 0, 0].map(u32::to_ne_bytes).concat();
        self.change(NEWADDR, message::CREATE | message::REPLACE, &fixed, |request| {
            request
                .with(2, &octets(entry.address))
                .with(1, &octets(entry.peer.unwrap_or(entry.address)))
                .with(8, &flags.to_ne_bytes())
                .with(6, &lifetime)
        })
    }

    /// Adds a route, in the place of one with the same destination and metric.
    pub fn replace_route(&mut self, entry: &RouteEntry) -> io::Result<()> {
        let family = Family::of(entry.destination);
        // Of IPv4 the kernel wants to know how far it goes; for IPv6 it does not care.
        let direct = entry.hops.iter().all(|hop| hop.gateway.is_none());
        let scope = if direct && family == Family::V4 { SCOPE_LINK } else { 0 };
        let on_link = match &entry.hops[..] {
            [hop] => u32::from(on_link(hop)),
            _ => 0,
        };
        let table = u8::try_from(MAIN_TABLE).expect("the main table is one of the first 256");
        let mut fixed = vec![family.number(), entry.prefix, 0, 0, table, STATIC, scope, UNICAST];
        fixed.extend_from_slice(&on_link.to_ne_bytes());
        self.change(NEWROUTE, message::CREATE | message::REPLACE, &fixed, |mut request| {
            if entry.prefix > 0 {
                request = request.with(1, &octets(entry.destination));
            }
            if entry.metric > 0 {
                request = request.with(6, &entry.metric.to_ne_bytes());
            }
            if let Some(source) = entry.source {
                request = request.with(7, &octets(source));
            }
            match &entry.hops[..] {
                [hop] => with_gateway(request, hop, family).with(4, &hop.link.to_ne_bytes()),
                hops => request.with(9, &hops.iter().flat_map(|one| hop(one, family)).collect::<Vec<u8>>()),
            }
        })
    }
}

/// `struct ifinfomsg`: which link, and its flags where `mask` has a bit.
fn link(index: u32, flags: u32, mask: u32) -> [u8; LINK_HEADER] {
    let mut fixed = [0; LINK_HEADER];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..].copy_from_slice(&mask.to_ne_bytes());
    fixed
}

fn on_link(hop: &HopEntry) -> u8 {
    if hop.on_link { ON_LINK } else { 0 }
}

fn with_gateway(request: Request, hop: &HopEntry, family: Family) -> Request {
    match hop.gateway {
        None => request,
        Some(gateway) if Family::of(gateway) == family => request.with(5, &octets(gateway)),
        Some(gateway) => {
            let other = u16::from(Family::of(gateway).number());
            request.with(18, &[other.to_ne_bytes().to_vec(), octets(gateway)].concat())
        }
    }
}

/// `struct rtnexthop` and its attributes.
fn hop(hop: &HopEntry, family: Family) -> Vec<u8> {
    let weight = u8::try_from(hop.weight.saturating_sub(1)).unwrap_or(u8::MAX);
    let mut bytes = vec![0, 0, on_link(hop), weight];
    bytes.extend_from_slice(&hop.link.to_ne_bytes());
    bytes.extend(with_gateway(Request::inner(), hop, family).into_bytes());
    let length = u16::try_from(bytes.len()).expect("a hop is short");
    bytes[..2].copy_from_slice(&length.to_ne_bytes());
    bytes
}
