//! Sets up, in a rescue, the network that its machine had.
//!
//! Whatever cannot be set is told at the end, after all that can be: half a network may be enough to be reached. What
//! is there already is left as it is, so it can be called again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::libc;

use crate::facts::network::{Hop, Mac, Route};
use crate::plan::network::{Card, Carried, CarriedAddress, LOOPBACK};
use crate::sys::netlink::entry::{AddressEntry, HopEntry, LinkEntry, RouteEntry};
use crate::sys::netlink::{Netlink, NewLink};

mod cards;

const CARDS_POLL: Duration = Duration::from_millis(100);

/// Waits for the cards as long as patience lasts, and sets up what is carried; returns what it did, line by line.
pub fn bring_up(carried: &Carried, patience: Duration) -> Result<Vec<String>> {
    if !carried.is_sane() {
        bail!("the network that was carried over is not as it was written; nothing was set up");
    }
    let netlink = Netlink::open().context("opening a socket to the kernel's network")?;
    let mut work = Work { netlink, numbers: BTreeMap::new(), done: Vec::new(), failed: Vec::new() };
    work.loopback();
    work.find(carried, patience)?;
    work.links(carried);
    for address in &carried.addresses {
        work.address(address);
    }
    for route in &carried.routes {
        work.route(route);
    }
    if work.failed.is_empty() {
        return Ok(work.done);
    }
    bail!("{}; what was set up: {}", work.failed.join("; "), work.done.join("; "))
}

struct Work {
    netlink: Netlink,
    /// The number of each link, by the name that it has on the machine.
    numbers: BTreeMap<String, u32>,
    done: Vec<String>,
    failed: Vec<String>,
}

impl Work {
    /// Takes note of what came of a step; tells whether it went well.
    fn note(&mut self, doing: String, result: io::Result<()>) -> bool {
        if let Err(error) = &result {
            let reason = match error.raw_os_error() {
                Some(libc::EOPNOTSUPP) => {
                    "the kernel does not know how; its module may be missing".to_owned()
                }
                _ => error.to_string(),
            };
            self.failed.push(format!("{doing}: {reason}"));
        }
        result.is_ok()
    }

    fn loopback(&mut self) {
        let links = self.netlink.links().unwrap_or_default();
        let Some(index) = links.iter().find(|link| link.is_loopback()).map(|link| link.index) else { return };
        self.numbers.insert(LOOPBACK.to_owned(), index);
        let result = self.netlink.set_up(index);
        self.note("setting up the loopback link".to_owned(), result);
    }

    /// Finds out which link is which card.
    fn find(&mut self, carried: &Carried, patience: Duration) -> Result<()> {
        let begun = Instant::now();
        let bonds: BTreeSet<&str> = carried.bonds.iter().map(|bond| bond.name.as_str()).collect();
        loop {
            let links = self.netlink.links().context("looking for the network cards")?;
            let mut found = cards::matched(&carried.cards, &links, &bonds);
            let late = begun.elapsed() >= patience;
            if late {
                self.done.extend(cards::only_one_left(&carried.cards, &links, &mut found));
            }
            if late || found.len() == carried.cards.len() {
                for card in &carried.cards {
                    match found.get(card.name.as_str()) {
                        Some(link) => self.found(card, link),
                        None => self.failed.push(missing(card, patience)),
                    }
                }
                return Ok(());
            }
            sleep(CARDS_POLL.min(patience));
        }
    }

    fn found(&mut self, card: &Card, link: &LinkEntry) {
        self.numbers.insert(card.name.clone(), link.index);
        let here = if link.name == card.name { String::new() } else { format!(", here {}", link.name) };
        self.done.push(format!("{} ({}){here}", card.name, card.known_by));
    }

    fn links(&mut self, carried: &Carried) {
        for card in &carried.cards {
            let Some(&index) = self.numbers.get(&card.name) else { continue };
            // A link that is up keeps its address, with most drivers.
            let links = self.netlink.links().unwrap_or_default();
            let now = links.into_iter().find(|link| link.index == index);
            if let Some(mac) = card.mac.filter(|&mac| now.as_ref().is_some_and(|now| now.mac != Some(mac))) {
                let result = self.netlink.set_down(index).and_then(|()| self.netlink.set_mac(index, mac));
                self.note(format!("giving {} the address {mac}", card.name), result);
            }
            // A member gets its length from its bond, which sets it up.
            if card.mac.is_some() {
                self.length(&card.name, index, now.map(|now| now.mtu), card.mtu);
                self.up(&card.name, index);
            }
        }
        for bond in &carried.bonds {
            let members = bond.members.iter().filter_map(|name| self.numbers.get(name).copied()).collect();
            let primary = bond.primary.as_ref().and_then(|name| self.numbers.get(name).copied());
            let new = NewLink::Bond { options: &bond.options, primary };
            self.made(&bond.name, bond.mac, bond.mtu, members, &new);
        }
        for vlan in &carried.vlans {
            let Some(&below) = self.numbers.get(&vlan.parent) else {
                self.failed.push(format!("making {}: there is no {}", vlan.name, vlan.parent));
                continue;
            };
            let new = NewLink::Vlan { below, id: vlan.id, protocol: vlan.protocol };
            self.made(&vlan.name, vlan.mac, vlan.mtu, Vec::new(), &new);
        }
    }

    /// Makes a link that is not there yet, with its members, and sets it up.
    fn made(&mut self, name: &str, mac: Option<Mac>, mtu: u32, members: Vec<u32>, new: &NewLink) {
        let made = self.make(name, mac, new);
        let Some(link) = self.kept(format!("making {name}"), made) else { return };
        self.numbers.insert(name.to_owned(), link.index);
        self.length(name, link.index, Some(link.mtu), mtu);
        for member in members {
            let result = self.enslave(member, link.index);
            self.note(format!("making link {member} a member of {name}"), result);
        }
        if self.up(name, link.index) {
            self.done.push(name.to_owned());
        }
    }

    fn kept<T>(&mut self, doing: String, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.note(doing, Err(error));
                None
            }
        }
    }

    fn make(&mut self, name: &str, mac: Option<Mac>, new: &NewLink) -> io::Result<LinkEntry> {
        let named = |link: &LinkEntry| link.name == name;
        let links = self.netlink.links()?;
        if let Some(link) = links.iter().find(|link| named(link)) {
            let empty = !links.iter().any(|other| other.master == Some(link.index));
            match same(link, new) {
                true => return Ok(link.clone()),
                // The kernel makes a bond called bond0 as soon as it can make any.
                false if link.bond.is_some() && empty => self.netlink.delete(link.index)?,
                false => return Err(io::Error::other("another link has this name")),
            }
        }
        self.netlink.create(name, mac, new)?;
        self.netlink.links()?.into_iter().find(named).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn enslave(&mut self, index: u32, master: u32) -> io::Result<()> {
        let links = self.netlink.links()?;
        if links.iter().any(|link| link.index == index && link.master == Some(master)) {
            return Ok(());
        }
        self.netlink.set_down(index)?;
        self.netlink.enslave(index, master)
    }

    fn length(&mut self, name: &str, index: u32, now: Option<u32>, mtu: u32) {
        if now != Some(mtu) {
            let result = self.netlink.set_mtu(index, mtu);
            self.note(format!("setting the MTU of {name} to {mtu}"), result);
        }
    }

    fn up(&mut self, name: &str, index: u32) -> bool {
        let result = self.netlink.set_up(index);
        self.note(format!("setting up {name}"), result)
    }

    fn address(&mut self, CarriedAddress { device, address }: &CarriedAddress) {
        let Some(&link) = self.numbers.get(device) else { return };
        // Nobody else has it, for this machine had it a moment ago; and it can be used at once.
        let mut flags = if address.address.is_ipv6() { AddressEntry::NO_DUPLICATE_DETECTION } else { 0 };
        for (set, flag) in [
            (address.deprecated, AddressEntry::DEPRECATED),
            (address.no_prefix_route, AddressEntry::NO_PREFIX_ROUTE),
        ] {
            flags |= if set { flag } else { 0 };
        }
        let entry = AddressEntry {
            link,
            address: address.address,
            prefix: address.prefix,
            peer: address.peer,
            scope: address.scope,
            flags,
        };
        let result = self.netlink.add_address(&entry);
        if self.note(format!("giving {device} the address {address}"), result) {
            self.done.push(format!("{address} on {device}"));
        }
    }

    fn route(&mut self, route: &Route) {
        let hop = |hop: &Hop| {
            let link = *self.numbers.get(&hop.device)?;
            Some(HopEntry { link, gateway: hop.gateway, on_link: hop.on_link, weight: hop.weight })
        };
        let mut entry = RouteEntry {
            destination: route.destination,
            prefix: route.prefix,
            metric: route.metric,
            source: route.source,
            origin: 0,
            hops: route.hops.iter().filter_map(hop).collect(),
        };
        if entry.hops.is_empty() {
            return;
        }
        let mut result = self.netlink.replace_route(&entry);
        // The kernel may not see how the gateway is found, which the machine did by something that is not carried.
        if result.is_err() && route.has_gateway() {
            entry.hops.iter_mut().for_each(|hop| hop.on_link |= hop.gateway.is_some());
            result = self.netlink.replace_route(&entry).or(result);
        }
        if self.note(format!("adding the route {route}"), result) {
            self.done.push(route.to_string());
        }
    }
}

fn missing(card: &Card, patience: Duration) -> String {
    let seconds = patience.as_secs();
    format!("no card with the address {} ({}) appeared within {seconds} seconds", card.known_by, card.name)
}

/// Tells whether a link is what is to be made.
fn same(link: &LinkEntry, new: &NewLink) -> bool {
    match new {
        NewLink::Vlan { below, id, protocol } => {
            link.below == Some(*below) && link.vlan == Some((*id, *protocol))
        }
        NewLink::Bond { options, .. } => link
            .bond
            .as_ref()
            .is_some_and(|(have, _)| have.mode == options.mode && have.miimon == options.miimon),
    }
}
