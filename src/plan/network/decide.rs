//! Decides which links are set up again: those of the way to the machine, and what they stand on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::error::{NetworkError, Obstacle, Way};
use super::{Card, Carried, CarriedBond, CarriedVlan, LOOPBACK, addresses, routes};
use crate::facts::network::{Link, LinkKind, Mac, Network, Route};

// A VLAN in a VLAN on a bond below a bridge is five; more is a circle, or a mistake.
const HIGHEST: usize = 8;

/// Decides what of a network is set up in the rescue.
///
/// `reached_by` is the address that the machine has in the SSH connection to it, if there is one.
pub fn carried(network: &Network, reached_by: Option<IpAddr>) -> Result<Carried, NetworkError> {
    let reached_by = reached_by.map(|address| address.to_canonical());
    let mut made = Making { network, carried: Carried::default(), carriers: BTreeMap::new() };
    made.lifelines(reached_by)?;
    let wanted = routes::carried(network, &made.carriers);
    let sources: BTreeSet<IpAddr> =
        wanted.iter().filter_map(|route| route.source).chain(reached_by).collect();
    let Making { mut carried, carriers, .. } = made;
    carried.addresses = addresses::carried(network, &carriers, reached_by, &sources, &mut carried.notes);
    carried.routes = routes::chosen(wanted, &carried.addresses, &mut carried.notes);
    carried.notes.extend(addresses::left_out(network, &carriers));
    if network.rules {
        let note =
            "the machine has rules that choose among tables of routes: the rescue has the main table only";
        carried.notes.push(note.to_owned());
    }
    match carried.is_sane() {
        true => Ok(carried),
        false if carried.cards.is_empty() => Err(NetworkError::NoWay),
        false => Err(NetworkError::Odd(format!(
            "{} links, {} addresses",
            carried.cards.len() + carried.bonds.len() + carried.vlans.len(),
            carried.addresses.len()
        ))),
    }
}

struct Making<'a> {
    network: &'a Network,
    carried: Carried,
    /// The link of the rescue that stands for a link of the machine.
    carriers: BTreeMap<String, String>,
}

impl Making<'_> {
    /// Carries the links through which the machine is reached, and from which it answers.
    fn lifelines(&mut self, reached_by: Option<IpAddr>) -> Result<(), NetworkError> {
        let closed = |way| move |(link, obstacle)| NetworkError::Closed { way, link, obstacle };
        if let Some(address) = reached_by {
            let link = home(self.network, address)?;
            self.carry(&link.name, 0).map_err(closed(Way::Connection))?;
        }
        let defaults = [true, false].map(|v4| best_default(self.network, v4));
        let own = |route: &&Route| {
            reached_by.is_none_or(|address| address.is_ipv4() == route.destination.is_ipv4())
        };
        let first = defaults.into_iter().flatten().find(own);
        if reached_by.is_none() && first.is_none() {
            return Err(NetworkError::NoWay);
        }
        if let Some(route) = first {
            let mut obstacles = Vec::new();
            for hop in &route.hops {
                obstacles.extend(self.carry(&hop.device, 0).err());
            }
            if obstacles.len() == route.hops.len() {
                return Err(closed(Way::DefaultRoute)(obstacles.remove(0)));
            }
        }
        // Answers may take another way than questions; where they cannot, it is told.
        let network = self.network;
        let elsewhere = network.routes.iter().filter(|route| route.has_gateway() || route.is_default());
        for hop in elsewhere.flat_map(|route| &route.hops) {
            if let Err((link, obstacle)) = self.carry(&hop.device, 0) {
                let note = format!("the routes through {} are left out: {link} is {obstacle}", hop.device);
                if !self.carried.notes.contains(&note) {
                    self.carried.notes.push(note);
                }
            }
        }
        self.widen();
        Ok(())
    }

    /// Carries a link and what it stands on; returns the link that stands for it.
    fn carry(&mut self, name: &str, height: usize) -> Result<String, (String, Obstacle)> {
        if let Some(carrier) = self.carriers.get(name) {
            return Ok(carrier.clone());
        }
        let stop = |obstacle| Err((name.to_owned(), obstacle));
        let Some(link) = self.network.link(name) else { return stop(Obstacle::Missing) };
        if height > HIGHEST {
            return stop(Obstacle::Tower);
        }
        let carrier = match &link.kind {
            LinkKind::Loopback | LinkKind::Dummy => LOOPBACK.to_owned(),
            LinkKind::Physical | LinkKind::Veth => match self.master(link)? {
                Some(master) => self.carry(&master, height + 1)?,
                None => self.card(link, true)?,
            },
            LinkKind::Vlan { parent, id, protocol } => {
                self.master(link)?;
                let parent = self.carry(parent, height + 1)?;
                if parent == LOOPBACK {
                    return stop(Obstacle::Loopback);
                }
                let (name, mac, mtu) = (link.name.clone(), link.mac, link.mtu);
                let vlan = CarriedVlan { name, parent, id: *id, protocol: *protocol, mac, mtu };
                self.carried.vlans.push(vlan);
                link.name.clone()
            }
            LinkKind::Bond { options, primary } => {
                self.master(link)?;
                let members: Vec<&Link> = self.network.members(name).collect();
                if members.is_empty() {
                    return stop(Obstacle::EmptyBond);
                }
                let no_card = members.iter().find(|member| !is_card(&member.kind));
                if let Some(member) = no_card {
                    return stop(Obstacle::BondOf(member.name.clone()));
                }
                if members.iter().any(|member| known_by(member).is_none()) {
                    return stop(Obstacle::NoMac);
                }
                for member in &members {
                    self.card(member, false)?;
                }
                self.carried.bonds.push(CarriedBond {
                    name: link.name.clone(),
                    members: members.iter().map(|member| member.name.clone()).collect(),
                    options: options.clone(),
                    primary: primary.clone(),
                    mac: link.mac,
                    mtu: link.mtu,
                });
                link.name.clone()
            }
            LinkKind::Bridge { filtering } => {
                self.master(link)?;
                self.bridge(link, *filtering, height)?
            }
            LinkKind::Wireless => return stop(Obstacle::Wireless),
            LinkKind::Other(kind) => return stop(Obstacle::Kind(kind.clone())),
        };
        self.carriers.insert(name.to_owned(), carrier.clone());
        Ok(carrier)
    }

    /// Returns the link that a card stands behind; a bridge does not keep its members from being used.
    fn master(&self, link: &Link) -> Result<Option<String>, (String, Obstacle)> {
        let Some(master) = &link.master else { return Ok(None) };
        match self.network.link(master).map(|master| &master.kind) {
            Some(LinkKind::Bridge { .. }) => Ok(None),
            // The second is a virtual card that has a faster one for a part of its traffic.
            Some(LinkKind::Bond { .. } | LinkKind::Physical) => Ok(Some(master.clone())),
            other => {
                let kind = match other {
                    Some(LinkKind::Other(kind)) => kind.clone(),
                    _ => "unknown".to_owned(),
                };
                Err((link.name.clone(), Obstacle::Member { master: master.clone(), kind }))
            }
        }
    }

    fn card(&mut self, link: &Link, alone: bool) -> Result<String, (String, Obstacle)> {
        let stop = |obstacle| Err((link.name.clone(), obstacle));
        let Some(known_by) = known_by(link) else { return stop(Obstacle::NoMac) };
        let mac = link.mac.filter(|_| alone);
        self.carried.cards.push(Card { name: link.name.clone(), known_by, mac, mtu: link.mtu });
        Ok(link.name.clone())
    }

    /// Lets the one link that leads outside stand for the bridge: what else is on it does not run in the rescue.
    fn bridge(&mut self, link: &Link, filtering: bool, height: usize) -> Result<String, (String, Obstacle)> {
        let members: Vec<&Link> = self.network.members(&link.name).collect();
        let mut outside: Vec<&Link> =
            members.iter().copied().filter(|member| member.kind.leads_outside()).collect();
        if outside.is_empty() {
            outside = members.into_iter().filter(|member| member.kind == LinkKind::Veth).collect();
        }
        let [member] = outside[..] else {
            let names = outside.iter().map(|member| member.name.clone()).collect();
            return Err((link.name.clone(), Obstacle::Bridge(names)));
        };
        let carrier = self.carry(&member.name, height + 1)?;
        let (mac, mtu) = self.properties(&carrier);
        *mac = link.mac.or(*mac);
        *mtu = link.mtu.min(*mtu);
        let sorted = if filtering { "; it sorts by VLANs, and the rescue takes what has no tag" } else { "" };
        self.carried
            .notes
            .push(format!("{} has the addresses of the bridge {} in the rescue{sorted}", carrier, link.name));
        Ok(carrier)
    }

    fn properties(&mut self, carrier: &str) -> (&mut Option<Mac>, &mut u32) {
        let Carried { cards, bonds, vlans, .. } = &mut self.carried;
        let cards = cards.iter_mut().map(|card| (&card.name, &mut card.mac, &mut card.mtu));
        let bonds = bonds.iter_mut().map(|bond| (&bond.name, &mut bond.mac, &mut bond.mtu));
        let vlans = vlans.iter_mut().map(|vlan| (&vlan.name, &mut vlan.mac, &mut vlan.mtu));
        let found = cards.chain(bonds).chain(vlans).find(|(name, ..)| *name == carrier);
        let (_, mac, mtu) = found.expect("what carries a member of a bridge was made just before");
        (mac, mtu)
    }

    /// Lets no link be narrower than a VLAN on it, which a bridge beside that may be.
    fn widen(&mut self) {
        for number in (0..self.carried.vlans.len()).rev() {
            let (parent, wanted) =
                (self.carried.vlans[number].parent.clone(), self.carried.vlans[number].mtu);
            let (_, mtu) = self.properties(&parent);
            *mtu = wanted.max(*mtu);
        }
    }
}

/// Returns the link that has an address.
fn home(network: &Network, address: IpAddr) -> Result<&Link, NetworkError> {
    if address.is_loopback() || address.is_unspecified() {
        return Err(NetworkError::Inside(address));
    }
    let has = |link: &&Link| link.addresses.iter().any(|have| have.address == address);
    let inside = |link: &&Link| matches!(link.kind, LinkKind::Loopback | LinkKind::Dummy);
    // Where the machine itself has it too, packets come to the other one.
    network.links.iter().filter(has).min_by_key(inside).ok_or(NetworkError::NotHere(address))
}

fn best_default(network: &Network, v4: bool) -> Option<&Route> {
    let defaults =
        network.routes.iter().filter(|route| route.is_default() && route.destination.is_ipv4() == v4);
    defaults.min_by_key(|route| route.metric)
}

fn is_card(kind: &LinkKind) -> bool {
    matches!(kind, LinkKind::Physical | LinkKind::Veth)
}

fn known_by(card: &Link) -> Option<Mac> {
    card.permanent_mac.or(card.mac)
}
