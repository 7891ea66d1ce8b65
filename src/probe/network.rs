//! Looks at how this machine is connected.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};

use crate::facts::network::{Address, Hop, Link, LinkKind, Network, Route};
use crate::sys::netlink::Netlink;
use crate::sys::netlink::entry::{AddressEntry, LinkEntry, RouteEntry};

const MADE_BY_KERNEL: u8 = 2;
// Each tells that a card has no cable: one for today's drivers, one for the oldest.
const WIRELESS: [&str; 2] = ["phy80211", "wireless"];
const CARDS: &str = "/sys/class/net";

/// Looks at the network that this thread is in.
pub fn network() -> Result<Network> {
    let mut netlink = Netlink::open().context("opening a socket to the kernel's network")?;
    let links = netlink.links().context("looking at the network links")?;
    let addresses = netlink.addresses().context("looking at the network addresses")?;
    let routes = netlink.routes().context("looking at the routes")?;
    let rules = netlink.rules().context("looking at the rules for routes")?;
    let names: Names = links.iter().map(|link| (link.index, link.name.as_str())).collect();
    let mut network = Network {
        links: links.iter().map(|entry| link(entry, &names, &addresses)).collect(),
        routes: routes.iter().filter_map(|entry| route(entry, &names)).collect(),
        rules: rules.iter().any(|rule| !rule.is_usual()),
    };
    network.routes.sort_by_key(|route| (route.destination, route.prefix, route.metric));
    Ok(network)
}

type Names<'a> = BTreeMap<u32, &'a str>;

fn name(index: u32, names: &Names) -> Option<String> {
    names.get(&index).map(|&name| name.to_owned())
}

fn link(entry: &LinkEntry, names: &Names, addresses: &[AddressEntry]) -> Link {
    Link {
        name: entry.name.clone(),
        mac: entry.mac,
        permanent_mac: entry.permanent_mac,
        kind: kind(entry, names),
        mtu: entry.mtu,
        up: entry.up,
        master: entry.master.and_then(|index| name(index, names)),
        addresses: addresses.iter().filter(|address| address.link == entry.index).map(address).collect(),
    }
}

fn kind(entry: &LinkEntry, names: &Names) -> LinkKind {
    if entry.is_loopback() {
        return LinkKind::Loopback;
    }
    let Some(kind) = entry.kind.as_deref() else { return card(entry) };
    if let (Some((id, protocol)), Some(parent)) =
        (entry.vlan, entry.below.and_then(|index| name(index, names)))
    {
        return LinkKind::Vlan { parent, id, protocol };
    }
    if let Some((options, primary)) = &entry.bond {
        let primary = primary.and_then(|index| name(index, names));
        return LinkKind::Bond { options: options.clone(), primary };
    }
    match kind {
        "veth" => LinkKind::Veth,
        "dummy" => LinkKind::Dummy,
        "bridge" => LinkKind::Bridge { filtering: entry.filtering },
        other => LinkKind::Other(other.to_owned()),
    }
}

fn card(entry: &LinkEntry) -> LinkKind {
    if !entry.is_ethernet() {
        let kind = match entry.hardware {
            32 => "InfiniBand".to_owned(),
            512 => "ppp".to_owned(),
            other => format!("hardware type {other}"),
        };
        return LinkKind::Other(kind);
    }
    let below = Path::new(CARDS).join(&entry.name);
    match WIRELESS.iter().any(|word| below.join(word).exists()) {
        true => LinkKind::Wireless,
        false => LinkKind::Physical,
    }
}

fn address(entry: &AddressEntry) -> Address {
    let v6 = matches!(entry.address, IpAddr::V6(_));
    Address {
        address: entry.address,
        prefix: entry.prefix,
        peer: entry.peer,
        scope: entry.scope,
        dynamic: !entry.has(AddressEntry::PERMANENT),
        // For IPv4 the same bit says that another address of the same network came first.
        temporary: v6 && entry.has(AddressEntry::TEMPORARY),
        deprecated: entry.has(AddressEntry::DEPRECATED),
        duplicate: entry.has(AddressEntry::DUPLICATE),
        no_prefix_route: entry.has(AddressEntry::NO_PREFIX_ROUTE),
    }
}

fn route(entry: &RouteEntry, names: &Names) -> Option<Route> {
    let hops = entry.hops.iter().filter_map(|hop| {
        let device = name(hop.link, names)?;
        Some(Hop { device, gateway: hop.gateway, on_link: hop.on_link, weight: hop.weight })
    });
    let hops: Vec<Hop> = hops.collect();
    (!hops.is_empty()).then_some(Route {
        destination: entry.destination,
        prefix: entry.prefix,
        metric: entry.metric,
        source: entry.source,
        implied: entry.origin == MADE_BY_KERNEL,
        hops,
    })
}
