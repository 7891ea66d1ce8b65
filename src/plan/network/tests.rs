use super::*;
use crate::facts::network::{Hop, Link, LinkKind, Network};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn address(text: &str) -> Address {
    let (address, prefix) = text.split_once('/').unwrap();
    Address {
        address: ip(address),
        prefix: prefix.parse().unwrap(),
        peer: None,
        scope: if address.starts_with("fe80") { 253 } else { 0 },
        dynamic: false,
        temporary: false,
        deprecated: false,
        duplicate: false,
        no_prefix_route: false,
    }
}

fn link(name: &str, kind: LinkKind, addresses: &[&str]) -> Link {
    let last = name.bytes().fold(0_u8, |sum, byte| sum.wrapping_mul(3).wrapping_add(byte));
    Link {
        name: name.into(),
        mac: (kind != LinkKind::Loopback).then_some(Mac([2, 0, 0, 0, 0, last])),
        permanent_mac: None,
        kind,
        mtu: 1500,
        up: true,
        master: None,
        addresses: addresses.iter().map(|text| address(text)).collect(),
    }
}

fn card(name: &str, addresses: &[&str]) -> Link {
    link(name, LinkKind::Physical, addresses)
}

fn member(link: Link, master: &str) -> Link {
    Link { master: Some(master.into()), ..link }
}

fn vlan(name: &str, parent: &str, id: u16, addresses: &[&str]) -> Link {
    link(name, LinkKind::Vlan { parent: parent.into(), id, protocol: 0x8100 }, addresses)
}

fn bond(name: &str, addresses: &[&str]) -> Link {
    let options = BondOptions { mode: 1, miimon: 100, ..BondOptions::default() };
    link(name, LinkKind::Bond { options, primary: None }, addresses)
}

fn bridge(name: &str, addresses: &[&str]) -> Link {
    link(name, LinkKind::Bridge { filtering: false }, addresses)
}

fn other(name: &str, kind: &str, addresses: &[&str]) -> Link {
    link(name, LinkKind::Other(kind.into()), addresses)
}

/// Reads `DESTINATION [via GATEWAY] dev DEVICE [src ADDRESS] [metric NUMBER] [kernel] [onlink]`.
fn route(text: &str) -> Route {
    let words: Vec<&str> = text.split(' ').collect();
    let after = |word: &str| words.iter().position(|have| *have == word).map(|at| words[at + 1]);
    let (destination, prefix) = match words[0] {
        "default" => ("0.0.0.0", "0"),
        "default6" => ("::", "0"),
        network => network.split_once('/').unwrap(),
    };
    Route {
        destination: ip(destination),
        prefix: prefix.parse().unwrap(),
        metric: after("metric").map_or(0, |metric| metric.parse().unwrap()),
        source: after("src").map(ip),
        implied: words.contains(&"kernel"),
        hops: vec![Hop {
            device: after("dev").unwrap().into(),
            gateway: after("via").map(ip),
            on_link: words.contains(&"onlink"),
            weight: 1,
        }],
    }
}

fn network(links: &[Link], routes: &[&str]) -> Network {
    let loopback = link("lo", LinkKind::Loopback, &["127.0.0.1/8", "::1/128"]);
    let links = std::iter::once(loopback).chain(links.iter().cloned()).collect();
    Network { links, routes: routes.iter().map(|text| route(text)).collect(), rules: false }
}

/// What is carried, a word each: links, addresses and routes.
fn told(carried: &Carried) -> [Vec<String>; 3] {
    let cards = carried.cards();
    let bonds = carried.bonds.iter().map(|bond| format!("{}={}", bond.name, bond.members.join("+")));
    let vlans = carried.vlans.iter().map(|vlan| format!("{}@{}:{}", vlan.name, vlan.parent, vlan.id));
    let addresses = carried.addresses.iter().map(|entry| format!("{} {}", entry.device, entry.address));
    [
        cards.into_iter().chain(bonds).chain(vlans).collect(),
        addresses.collect(),
        carried.routes.iter().map(ToString::to_string).collect(),
    ]
}

#[test]
fn what_leads_to_the_machine_is_carried_and_nothing_else() {
    for (links, routes, reached_by, expected) in [
        (
            // Docker, a tunnel and guests are left where they are.
            vec![
                card("eth0", &["10.0.0.2/24", "2001:db8::2/64", "fe80::5/64"]),
                bridge("docker0", &["172.17.0.1/16"]),
                member(link("veth1", LinkKind::Veth, &[]), "docker0"),
                other("tun0", "tun", &["10.8.0.1/24"]),
            ],
            vec![
                "default via 10.0.0.1 dev eth0 metric 100",
                "10.0.0.0/24 dev eth0 src 10.0.0.2 kernel",
                "172.17.0.0/16 dev docker0 kernel",
                "10.8.0.0/24 dev tun0 kernel",
                "2001:db8::/64 dev eth0 metric 256 kernel",
                "fe80::/64 dev eth0 metric 256 kernel",
                "default6 via fe80::1 dev eth0 metric 1024",
            ],
            Some("10.0.0.2"),
            [
                vec!["eth0"],
                vec!["eth0 10.0.0.2/24", "eth0 2001:db8::2/64"],
                vec!["default via 10.0.0.1 dev eth0 metric 100", "default via fe80::1 dev eth0 metric 1024"],
            ],
        ),
        (
            // A gateway outside of every network of the machine.
            vec![card("eth0", &["203.0.113.7/32"])],
            vec!["default via 172.31.1.1 dev eth0", "172.31.1.1/32 dev eth0"],
            Some("203.0.113.7"),
            [
                vec!["eth0"],
                vec!["eth0 203.0.113.7/32"],
                vec!["172.31.1.1/32 dev eth0", "default via 172.31.1.1 dev eth0"],
            ],
        ),
        (
            // The gateway is of the other family, and on the link whatever the addresses say.
            vec![card("eth0", &["203.0.113.7/32"])],
            vec!["default via fe80::1 dev eth0 onlink"],
            None,
            [vec!["eth0"], vec!["eth0 203.0.113.7/32"], vec!["default via inet6 fe80::1 dev eth0 onlink"]],
        ),
        (
            // IPv6 only, and a mapped address is the address that it stands for.
            vec![card("eth0", &["2001:db8::2/128"])],
            vec![
                "default6 via fe80::1 dev eth0 metric 1024 src 2001:db8::2",
                "fe80::/64 dev eth0 metric 256 kernel",
            ],
            Some("2001:db8::2"),
            [
                vec!["eth0"],
                vec!["eth0 2001:db8::2/128"],
                vec!["default via fe80::1 dev eth0 src 2001:db8::2 metric 1024"],
            ],
        ),
        (
            // A VLAN on a bond; a second VLAN is not needed.
            vec![
                member(card("eth0", &[]), "bond0"),
                member(card("eth1", &[]), "bond0"),
                bond("bond0", &[]),
                vlan("bond0.7", "bond0", 7, &["10.0.7.2/24"]),
                vlan("bond0.8", "bond0", 8, &["10.0.8.2/24"]),
            ],
            vec!["default via 10.0.7.1 dev bond0.7"],
            Some("::ffff:10.0.7.2"),
            [
                vec!["eth0", "eth1", "bond0=eth0+eth1", "bond0.7@bond0:7"],
                vec!["bond0.7 10.0.7.2/24"],
                vec!["default via 10.0.7.1 dev bond0.7"],
            ],
        ),
        (
            // A hypervisor: its addresses move to the card, and its VLAN on the bridge goes with them.
            vec![
                member(card("eth0", &[]), "vmbr0"),
                bridge("vmbr0", &["10.0.0.2/24"]),
                vlan("vmbr0.7", "vmbr0", 7, &["10.0.7.2/24"]),
                member(link("veth1", LinkKind::Veth, &[]), "vmbr0"),
                member(other("tap1", "tun", &[]), "vmbr0"),
            ],
            vec!["default via 10.0.0.1 dev vmbr0", "10.5.0.0/16 via 10.0.7.1 dev vmbr0.7"],
            Some("10.0.0.2"),
            [
                vec!["eth0", "vmbr0.7@eth0:7"],
                vec!["eth0 10.0.0.2/24", "vmbr0.7 10.0.7.2/24"],
                vec!["default via 10.0.0.1 dev eth0", "10.5.0.0/16 via 10.0.7.1 dev vmbr0.7"],
            ],
        ),
        (
            // The connection comes one way, and answers go another one.
            vec![card("eth0", &["10.0.0.2/24"]), card("eth1", &["10.1.0.2/24"])],
            vec!["default via 10.0.0.1 dev eth0"],
            Some("10.1.0.2"),
            [
                vec!["eth1", "eth0"],
                vec!["eth0 10.0.0.2/24", "eth1 10.1.0.2/24"],
                vec!["default via 10.0.0.1 dev eth0"],
            ],
        ),
        (
            // The address is the machine's own, whatever the card.
            vec![
                card("eth0", &["10.0.0.2/24"]),
                link("any0", LinkKind::Dummy, &["203.0.113.7/32", "203.0.113.8/32"]),
            ],
            vec!["default via 10.0.0.1 dev eth0"],
            Some("203.0.113.7"),
            [
                vec!["eth0"],
                vec!["eth0 10.0.0.2/24", "lo 203.0.113.7/32"],
                vec!["default via 10.0.0.1 dev eth0"],
            ],
        ),
        (
            // The machine and its card have the same address.
            vec![
                link("any0", LinkKind::Dummy, &["203.0.113.7/32"]),
                card("eth0", &["10.0.0.2/24"]),
                card("eth1", &["203.0.113.7/32"]),
            ],
            vec!["default via 10.0.0.1 dev eth0"],
            Some("203.0.113.7"),
            [
                vec!["eth1", "eth0"],
                vec!["lo 203.0.113.7/32", "eth0 10.0.0.2/24", "eth1 203.0.113.7/32"],
                vec!["default via 10.0.0.1 dev eth0"],
            ],
        ),
        (
            // A virtual card has a faster one behind it, with the same address.
            vec![card("eth0", &["10.0.0.2/24"]), member(card("enP1", &[]), "eth0")],
            vec!["default via 10.0.0.1 dev eth0"],
            Some("10.0.0.2"),
            [vec!["eth0"], vec!["eth0 10.0.0.2/24"], vec!["default via 10.0.0.1 dev eth0"]],
        ),
        (
            // A sender that the machine does not have in the rescue would make the kernel refuse the route.
            vec![card("eth0", &["10.0.0.2/24"]), other("wg0", "wireguard", &["10.9.0.1/24"])],
            vec!["default via 10.0.0.1 dev eth0 src 10.9.0.1", "10.9.0.0/24 dev wg0 kernel"],
            Some("10.0.0.2"),
            [vec!["eth0"], vec!["eth0 10.0.0.2/24"], vec!["default via 10.0.0.1 dev eth0"]],
        ),
    ] {
        let carried = carried(&network(&links, &routes), reached_by.map(ip)).unwrap();
        assert_eq!(told(&carried), expected, "{routes:?}");
        assert!(carried.is_sane());
        let json = serde_json::to_string(&carried).unwrap();
        assert_eq!(serde_json::from_str::<Carried>(&json).unwrap(), carried);
    }
}

#[test]
fn a_way_that_cannot_be_carried_is_refused_in_a_sentence() {
    let wireless = |name: &str, addresses: &[&str]| link(name, LinkKind::Wireless, addresses);
    let two =
        [member(card("eth0", &[]), "br0"), member(card("eth1", &[]), "br0"), bridge("br0", &["10.0.0.2/24"])];
    let no_mac = Link { mac: None, ..card("eth0", &["10.0.0.2/24"]) };
    for (links, routes, reached_by, expected) in [
        (
            vec![card("eth0", &["10.0.0.2/24"])],
            vec![],
            Some("10.0.0.3"),
            "none of the machine's links has 10.0.0.3",
        ),
        (vec![], vec![], Some("::1"), "the machine is reached by ::1, which is its own end only"),
        (
            vec![card("eth0", &["10.0.0.2/24"])],
            vec![],
            None,
            "the machine has no default route, and it is not known",
        ),
        (
            vec![card("eth0", &["10.0.0.2/24"]), other("wg0", "wireguard", &["10.9.0.1/24"])],
            vec!["default via 10.0.0.1 dev eth0"],
            Some("10.9.0.1"),
            "the machine is reached through wg0, a WireGuard tunnel, which the rescue does not set up; connect to",
        ),
        (
            vec![card("eth0", &["10.0.0.2/24"]), other("ppp0", "ppp", &["203.0.113.7/32"])],
            vec!["default dev ppp0"],
            Some("10.0.0.2"),
            "the machine's default route goes through ppp0, a PPP connection, which the rescue does not set up",
        ),
        (
            vec![wireless("wlan0", &["10.0.0.2/24"])],
            vec!["default via 10.0.0.1 dev wlan0"],
            None,
            "the machine's default route goes through wlan0, a wireless card, whose network the rescue cannot join",
        ),
        (
            two.to_vec(),
            vec!["default via 10.0.0.1 dev br0"],
            Some("10.0.0.2"),
            "reached through br0, a bridge of eth0, eth1, of which the rescue could set up just one",
        ),
        (
            vec![bridge("br0", &["10.0.0.2/24"])],
            vec![],
            Some("10.0.0.2"),
            "reached through br0, a bridge without a network card",
        ),
        (
            vec![
                member(card("eth0", &[]), "vrf1"),
                other("vrf1", "vrf", &[]),
                vlan("v", "eth0", 5, &["10.0.0.2/24"]),
            ],
            vec![],
            Some("10.0.0.2"),
            "reached through eth0, a member of vrf1, a link of the kind vrf, which the rescue does not set up",
        ),
        (
            vec![
                bond("bond0", &["10.0.0.2/24"]),
                member(vlan("eth0.5", "eth0", 5, &[]), "bond0"),
                card("eth0", &[]),
            ],
            vec![],
            Some("10.0.0.2"),
            "reached through bond0, a bond of eth0.5, which is no network card",
        ),
        (
            vec![bond("bond0", &["10.0.0.2/24"])],
            vec![],
            Some("10.0.0.2"),
            "through bond0, a bond without members",
        ),
        (vec![no_mac], vec![], Some("10.0.0.2"), "through eth0, whose card has no Ethernet address"),
        (
            vec![vlan("v", "gone", 5, &["10.0.0.2/24"])],
            vec![],
            Some("10.0.0.2"),
            "through gone, which is not to be seen",
        ),
        (
            vec![vlan("a", "b", 5, &["10.0.0.2/24"]), vlan("b", "a", 5, &[])],
            vec![],
            Some("10.0.0.2"),
            "which stands on too many other links",
        ),
    ] {
        let error = carried(&network(&links, &routes), reached_by.map(ip)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}\n{expected}");
    }
}

#[test]
fn addresses_that_pass_are_left_and_leases_are_told() {
    let mut eth0 = card(
        "eth0",
        &["10.0.0.2/24", "2001:db8::2/64", "2001:db8::3/64", "2001:db8::4/64", "2001:db8::5/64"],
    );
    eth0.addresses[0].dynamic = true;
    eth0.addresses[1].temporary = true;
    eth0.addresses[2].duplicate = true;
    eth0.addresses[3].deprecated = true;
    let kept = |reached_by: &str| {
        let carried = carried(&network(&[eth0.clone()], &[]), Some(ip(reached_by))).unwrap();
        (told(&carried)[1].clone(), carried.addresses, carried.notes)
    };
    let (addresses, entries, notes) = kept("10.0.0.2");
    assert_eq!(addresses, ["eth0 10.0.0.2/24", "eth0 2001:db8::4/64", "eth0 2001:db8::5/64"]);
    assert!(!entries[0].address.dynamic && entries[1].address.deprecated);
    assert_eq!(
        notes,
        ["eth0 has addresses from DHCP or a router: the rescue keeps them, and does not renew the lease"]
    );
    // But not the one that the machine is reached by, however soon it passes.
    assert!(kept("2001:db8::2").0.contains(&"eth0 2001:db8::2/64".to_owned()));
}

#[test]
fn routes_that_an_address_makes_are_left_to_it_unless_it_was_told_to_make_none() {
    let routes = ["10.0.0.0/24 dev eth0 metric 100 kernel", "default via 10.0.0.1 dev eth0"];
    for (own, expected) in [(false, 1), (true, 2)] {
        let mut eth0 = card("eth0", &["10.0.0.2/24"]);
        eth0.addresses[0].no_prefix_route = own;
        let carried = carried(&network(&[eth0], &routes), None).unwrap();
        assert_eq!(carried.routes.len(), expected);
        assert!(carried.routes.iter().all(|route| !route.implied));
    }
}

#[test]
fn a_bridge_gives_its_address_and_its_length_to_what_stands_for_it() {
    let own = Mac([2, 0, 0, 0, 0, 0x99]);
    let short = |link: Link, mtu| Link { mtu, ..link };
    let links = [
        short(member(card("eth0", &[]), "br0"), 9000),
        Link { mac: Some(own), ..short(bridge("br0", &["10.0.0.2/24"]), 1400) },
        short(vlan("eth0.5", "eth0", 5, &["10.5.0.2/24"]), 1450),
    ];
    for (routes, mtu) in [
        (vec!["default via 10.0.0.1 dev br0"], 1400),
        (vec!["default via 10.0.0.1 dev br0", "10.6.0.0/16 via 10.5.0.1 dev eth0.5"], 1450),
    ] {
        let carried = carried(&network(&links, &routes), Some(ip("10.0.0.2"))).unwrap();
        let Card { mac, known_by, .. } = carried.cards[0];
        assert_eq!((mac, known_by, carried.cards[0].mtu), (Some(own), links[0].mac.unwrap(), mtu));
    }
}

#[test]
fn what_is_not_part_of_the_way_is_told() {
    let links = [
        card("eth0", &["10.0.0.2/24"]),
        card("eth1", &["10.1.0.2/24", "fe80::7/64"]),
        card("eth2", &[]),
        other("tun0", "tun", &["10.8.0.1/24"]),
    ];
    let mut network =
        network(&links, &["default via 10.0.0.1 dev eth0", "10.9.0.0/16 via 10.8.0.2 dev tun0"]);
    network.rules = true;
    let carried = carried(&network, None).unwrap();
    assert_eq!(
        carried.notes,
        [
            "the routes through tun0 are left out: tun0 is a tunnel of some program, which the rescue does not set up",
            "eth1 (10.1.0.2/24) is not part of the way to the machine, and is left out",
            "the machine has rules that choose among tables of routes: the rescue has the main table only",
        ]
    );
    assert_eq!((carried.cards(), carried.modules()), (vec!["eth0".to_owned()], vec![]));
}

#[test]
fn what_cannot_be_meant_is_not_sane() {
    let links = [
        member(card("eth0", &[]), "bond0"),
        bond("bond0", &[]),
        vlan("bond0.7", "bond0", 7, &["10.0.7.2/24"]),
    ];
    let good = carried(&network(&links, &["default via 10.0.7.1 dev bond0.7"]), None).unwrap();
    assert!(good.is_sane());
    assert_eq!(good.modules(), ["bonding", "8021q"]);
    let spoilt: [fn(&mut Carried); 16] = [
        |carried| carried.cards.clear(),
        |carried| carried.cards[0].name = "lo".into(),
        |carried| carried.cards[0].name = "eth0/x".into(),
        |carried| carried.cards[0].name = "a-name-of-16-byt".into(),
        |carried| carried.cards[0].mtu = 67,
        |carried| carried.bonds[0].members.clear(),
        |carried| carried.bonds[0].members.push("eth0".into()),
        |carried| carried.bonds[0].name = "eth0".into(),
        |carried| carried.vlans[0].parent = "bond0.7".into(),
        |carried| carried.vlans[0].id = 4095,
        |carried| carried.vlans[0].protocol = 0x0800,
        |carried| carried.addresses[0].address.prefix = 33,
        |carried| carried.addresses[0].device = "eth1".into(),
        |carried| carried.routes[0].hops.clear(),
        |carried| carried.routes[0].source = Some(ip("::1")),
        |carried| carried.routes = vec![carried.routes[0].clone(); MOST_ROUTES + 1],
    ];
    for (number, spoil) in spoilt.iter().enumerate() {
        let mut carried = good.clone();
        spoil(&mut carried);
        assert!(!carried.is_sane(), "{number}");
    }
}
