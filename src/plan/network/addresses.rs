//! Decides which addresses are set up again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{CarriedAddress, LOOPBACK};
use crate::facts::network::{Address, Link, LinkKind, Network};

const SCOPE_MACHINE: u8 = 254;

/// Returns the addresses of links that are carried, and those of the machine itself that are in `used`.
///
/// The one that the machine is reached by is among them, whatever it is.
pub fn carried(
    network: &Network,
    carriers: &BTreeMap<String, String>,
    reached_by: Option<IpAddr>,
    used: &BTreeSet<IpAddr>,
    notes: &mut Vec<String>,
) -> Vec<CarriedAddress> {
    let mut carried = Vec::new();
    for link in &network.links {
        let inside = matches!(link.kind, LinkKind::Loopback | LinkKind::Dummy);
        let carrier = if inside { Some(LOOPBACK) } else { carriers.get(&link.name).map(String::as_str) };
        let Some(device) = carrier else { continue };
        let wanted = |address: &&Address| match reached_by == Some(address.address) {
            true => true,
            false if inside => used.contains(&address.address),
            false => is_lasting(address),
        };
        let addresses: Vec<&Address> = link.addresses.iter().filter(wanted).collect();
        if addresses.iter().any(|address| address.dynamic) {
            notes.push(format!(
                "{} has addresses from DHCP or a router: the rescue keeps them, and does not renew the lease",
                link.name
            ));
        }
        carried.extend(addresses.into_iter().map(|address| CarriedAddress {
            device: device.to_owned(),
            address: Address { dynamic: false, temporary: false, duplicate: false, ..address.clone() },
        }));
    }
    carried
}

/// Tells of links that lead outside too, and are not carried.
pub fn left_out(network: &Network, carriers: &BTreeMap<String, String>) -> Vec<String> {
    let told = |link: &&Link| {
        let leads = match &link.kind {
            LinkKind::Bridge { .. } => network.members(&link.name).any(|member| member.kind.leads_outside()),
            kind => kind.leads_outside(),
        };
        leads && link.up && !carriers.contains_key(&link.name) && link.addresses.iter().any(is_lasting)
    };
    let sentence = |link: &Link| {
        let lasting = link.addresses.iter().filter(|address| is_lasting(address));
        let addresses: Vec<String> = lasting.map(ToString::to_string).collect();
        let addresses = addresses.join(", ");
        format!("{} ({addresses}) is not part of the way to the machine, and is left out", link.name)
    };
    network.links.iter().filter(told).map(sentence).collect()
}

fn is_lasting(address: &Address) -> bool {
    let passing = address.temporary || address.duplicate || address.is_link_local();
    !passing && (address.scope != SCOPE_MACHINE || address.address.is_ipv6())
}
