//! Decides which link of a rescue is which card of its machine.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::network::Card;
use crate::sys::netlink::entry::LinkEntry;

/// Tells which link is which card, by the address from its maker rather than by the one that it has.
pub fn matched<'a>(
    cards: &'a [Card],
    links: &'a [LinkEntry],
    bonds: &BTreeSet<&str>,
) -> BTreeMap<&'a str, &'a LinkEntry> {
    let ours =
        |master: u32| links.iter().any(|link| link.index == master && bonds.contains(link.name.as_str()));
    // What stands behind another card than our bonds is that one's affair.
    let free = |link: &&LinkEntry| is_card(link) && link.master.is_none_or(ours);
    let mut found: BTreeMap<&str, &LinkEntry> = BTreeMap::new();
    let by_maker = |link: &LinkEntry, card: &Card| link.permanent_mac == Some(card.known_by);
    let by_address = |link: &LinkEntry, card: &Card| link.mac == Some(card.known_by);
    // What was set the first time it was called, on a card whose maker gave it nothing.
    let by_wish = |link: &LinkEntry, card: &Card| card.mac.is_some() && link.mac == card.mac;
    for fits in [&by_maker as &dyn Fn(&LinkEntry, &Card) -> bool, &by_address, &by_wish] {
        for card in cards {
            let taken = |link: &LinkEntry| found.values().any(|have| have.index == link.index);
            let link = links.iter().filter(free).find(|link| fits(link, card) && !taken(link));
            if let Some(link) = link.filter(|_| !found.contains_key(card.name.as_str())) {
                found.insert(&card.name, link);
            }
        }
    }
    found
}

fn is_card(link: &LinkEntry) -> bool {
    link.is_ethernet() && link.kind.as_deref().is_none_or(|kind| kind == "veth")
}

/// Takes the one card that is there for the one that is missed: some have another address at each start.
pub fn only_one_left<'a>(
    cards: &'a [Card],
    links: &'a [LinkEntry],
    found: &mut BTreeMap<&'a str, &'a LinkEntry>,
) -> Option<String> {
    let taken = |link: &LinkEntry| found.values().any(|have| have.index == link.index);
    let left: Vec<&LinkEntry> =
        links.iter().filter(|link| is_card(link) && link.master.is_none() && !taken(link)).collect();
    let missed: Vec<&Card> = cards.iter().filter(|card| !found.contains_key(card.name.as_str())).collect();
    let ([link], [card]) = (&left[..], &missed[..]) else { return None };
    found.insert(&card.name, link);
    Some(format!("{} is taken for {}, for there is no other card", link.name, card.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::network::Mac;

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    fn link(index: u32, address: u8, maker: Option<u8>, master: Option<u32>) -> LinkEntry {
        LinkEntry {
            index,
            hardware: 1,
            up: false,
            name: format!("link{index}"),
            mac: Some(mac(address)),
            permanent_mac: maker.map(mac),
            mtu: 1500,
            below: None,
            master,
            kind: None,
            vlan: None,
            bond: None,
            filtering: false,
        }
    }

    fn card(name: &str, known_by: u8, wanted: Option<u8>) -> Card {
        Card { name: name.into(), known_by: mac(known_by), mac: wanted.map(mac), mtu: 1500 }
    }

    #[test]
    fn cards_are_found_by_what_their_makers_gave_them_before_what_they_have() {
        let of = |kind: &str, link: LinkEntry| LinkEntry { kind: Some(kind.into()), ..link };
        let bond = of("bond", link(9, 1, None, None));
        let (one, two) = (card("eth0", 1, None), card("eth1", 2, None));
        for (cards, links, expected) in [
            (
                vec![one.clone(), two.clone()],
                vec![link(4, 2, Some(2), None), link(5, 1, Some(1), None)],
                vec![5, 4],
            ),
            // Both have the bond's address by now.
            (
                vec![one.clone(), two.clone()],
                vec![bond.clone(), link(4, 1, Some(2), Some(9)), link(5, 1, Some(1), Some(9))],
                vec![5, 4],
            ),
            // A VLAN has the address of its card, and is none.
            (vec![one.clone()], vec![of("vlan", link(3, 1, None, None)), link(4, 1, None, None)], vec![4]),
            // What stands behind a card is not looked for, though it has the same address.
            (vec![one.clone()], vec![link(3, 1, Some(1), Some(4)), link(4, 1, Some(1), None)], vec![4]),
            // A card that was given another address, and one that has got it already.
            (vec![card("eth0", 1, Some(7))], vec![link(3, 7, None, None)], vec![3]),
            (
                vec![card("eth0", 1, Some(7))],
                vec![link(3, 7, Some(7), None), link(4, 1, Some(1), None)],
                vec![4],
            ),
            (vec![one.clone(), two.clone()], vec![link(4, 2, None, None)], vec![4]),
            (vec![one], vec![link(4, 2, None, None)], vec![]),
        ] {
            let names = BTreeSet::from(["link9"]);
            let found = matched(&cards, &links, &names);
            let numbers: Vec<u32> =
                cards.iter().filter_map(|card| Some(found.get(card.name.as_str())?.index)).collect();
            assert_eq!(numbers, expected, "{links:?}");
        }
    }

    #[test]
    fn the_only_one_left_is_taken_and_never_one_of_two() {
        let cards = [card("eth0", 1, Some(1)), card("eth1", 2, Some(2))];
        for (links, taken) in [
            (vec![link(3, 1, None, None), link(4, 9, None, None)], Some(4)),
            (vec![link(3, 1, None, None), link(4, 9, None, None), link(5, 8, None, None)], None),
            (vec![link(4, 9, None, None)], None),
            (vec![link(3, 1, None, None), link(4, 9, None, Some(3))], None),
        ] {
            let mut found = matched(&cards, &links, &BTreeSet::new());
            let told = only_one_left(&cards, &links, &mut found);
            assert_eq!(told.is_some(), taken.is_some(), "{links:?}");
            assert_eq!(found.get("eth1").map(|link| link.index), taken, "{links:?}");
        }
    }
}
