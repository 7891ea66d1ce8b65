//! Decides which routes are set up again, and in which order.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{CarriedAddress, MOST_ROUTES};
use crate::facts::network::Network;
use crate::facts::network::{Hop, Route};

/// Returns the routes through links that are carried, through what stands for those.
pub fn carried(network: &Network, carriers: &BTreeMap<String, String>) -> Vec<Route> {
    let hop = |hop: &Hop| Some(Hop { device: carriers.get(&hop.device)?.clone(), ..hop.clone() });
    let own = |destination: IpAddr| match destination {
        IpAddr::V4(address) => address.is_loopback() || address.is_multicast(),
        // Every link makes these by itself.
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || address.is_multicast() || address.is_loopback()
        }
    };
    let routes = network.routes.iter().filter(|route| !own(route.destination));
    let routes =
        routes.map(|route| Route { hops: route.hops.iter().filter_map(hop).collect(), ..route.clone() });
    routes.filter(|route| !route.hops.is_empty()).collect()
}

/// Chooses what is set, for these addresses: routes to links first, because gateways are found by them.
pub fn chosen(routes: Vec<Route>, addresses: &[CarriedAddress], notes: &mut Vec<String>) -> Vec<Route> {
    let mut seen = BTreeSet::new();
    let mut chosen: Vec<Route> = Vec::new();
    for mut route in routes {
        let first = seen.insert((route.destination, route.prefix, route.metric));
        if !first || is_implied(&route, addresses) {
            continue;
        }
        // The kernel takes only what the machine has.
        route.source =
            route.source.filter(|source| addresses.iter().any(|have| have.address.address == *source));
        route.implied = false;
        chosen.push(route);
    }
    chosen.sort_by_key(|route| {
        (route.has_gateway(), !route.is_default() && route.has_gateway(), Reverse(route.prefix))
    });
    if chosen.len() > MOST_ROUTES {
        notes
            .push(format!("of the machine's {} routes the rescue has the first {MOST_ROUTES}", chosen.len()));
        chosen.truncate(MOST_ROUTES);
    }
    chosen
}

/// Tells whether the kernel makes a route by itself, of an address.
fn is_implied(route: &Route, addresses: &[CarriedAddress]) -> bool {
    let [hop] = &route.hops[..] else { return false };
    let makes = |CarriedAddress { device, address }: &CarriedAddress| {
        let there = address.peer.unwrap_or(address.address);
        *device == hop.device
            && !address.no_prefix_route
            && address.prefix == route.prefix
            && network_of(there, address.prefix) == route.destination
    };
    route.implied && hop.gateway.is_none() && addresses.iter().any(makes)
}

/// Returns the first address of a network.
fn network_of(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix.into())).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_begin_with_zeros() {
        for (address, prefix, network) in [
            ("10.1.2.3", 24, "10.1.2.0"),
            ("10.1.2.3", 32, "10.1.2.3"),
            ("10.1.2.3", 0, "0.0.0.0"),
            ("2001:db8:1:2:3::4", 64, "2001:db8:1:2::"),
            ("2001:db8::4", 128, "2001:db8::4"),
            ("2001:db8::4", 0, "::"),
        ] {
            let found = network_of(address.parse().unwrap(), prefix);
            assert_eq!(found, network.parse::<IpAddr>().unwrap(), "{address}/{prefix}");
        }
    }
}
