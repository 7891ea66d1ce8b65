//! Messages as Linux 6.1 and 6.18 wrote them, less the counters and what else is not read.

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const LINKS: [&str; 8] = [
    // lo
    "00000403010000000800000000000000070003006c6f000008000400000001000a00010000000000000000000a0002000000000000000000",
    // eth0
    "0000010003000000031800000000000009000300657468300000000008000400dc05000008000a00060000000a00010052540000000100000a000200ffffffffffff00005400120009000100766574680000000009000400626f6e6400000000380005000500010001000000050002000200000008000300000000000a0004005254000000010000060005000000000008000900000000000800050002000000",
    // eth1
    "0000010005000000031800000000000009000300657468310000000008000400dc05000008000a00060000000a00010052540000000100000a000200ffffffffffff00005400120009000100766574680000000009000400626f6e6400000000380005000500010001000000050002000200000008000300000000000a0004005254000000020000060005000000000008000900000000000800050004000000",
    // bond0
    "000001000600000003140000000000000a000300626f6e643000000008000400dc0500000a00010052540000000100000a000200ffffffffffff0000dc00120009000100626f6e6400000000cc000200050001000100000008000300640000000800040000000000080005000000000008001c000000000005000600010000000800070000000000080009000000000008000a000000000008000b000500000005000c000000000005000d000000000005000e000000000008000f00010000000500100001000000050011000000000008001200000000000800130001000000080014000100000005001d00010000000500150000000000050016000000000005001b000100000005001e00020000000500200001000000",
    // up0
    "00000100070000000214000000000000080003007570300008000400dc0500000a000100663d344f065900000a000200ffffffffffff0000f000120009000100626f6e6400000000e0000200050001000400000008000300320000000800040064000000080005000000000008001c000000000005000600010000000800070000000000080009000000000008000a000000000005000c000000000005000d000000000005000e000100000008000f00010000000500100001000000050011000000000008001200010000000800130001000000080014000100000005001d00010000000500150001000000050016000000000005001b000100000005001e0002000000050020000100000006001800ffff000006001900000000000a001a000000000000000000",
    // arp0
    "0000010008000000021400000000000009000300617270300000000008000400dc0500000a000100025872f2638b00000a000200ffffffffffff0000e800120009000100626f6e6400000000d8000200050001000100000008000300000000000800040000000000080005000000000008001c0000000000050006000100000008000700f401000014000800080000000a000001080001000a000002080009000000000008000a000000000005000c000000000005000d000000000005000e000000000008000f00010000000500100001000000050011000000000008001200000000000800130001000000080014000100000005001d00010000000500150000000000050016000000000005001b000100000005001e00020000000500200001000000",
    // lan.7
    "000001000900000002100000000000000a0003006c616e2e3700000008000400dc0500000a00010052540000000100000a000200ffffffffffff00003000120009000100766c616e0000000020000200060005008100000006000100070000000c00020001000000ffffffff0800050006000000",
    // outer
    "000001000a00000002100000000000000a0003006f7574657200000008000400dc0500000a00010052540000000100000a000200ffffffffffff00003000120009000100766c616e00000000200002000600050088a8000006000100640000000c00020001000000ffffffff0800050009000000",
];
const BRIDGE: &str = "000001000b0000000210000000000000080003006272300008000400dc0500000a0001001a7e550687d100000a000200ffffffffffff00002c0012000b00010062726964676500001c00020008000100dc05000008000200c80000000500070001000000";

#[test]
fn links_are_told_with_what_they_are_made_of() {
    let [lo, eth0, eth1, bond0, up0, arp0, lan, outer] = LINKS.map(|hex| link(&bytes(hex)).unwrap());
    assert!(lo.is_loopback() && !lo.is_ethernet() && !lo.up);
    assert_eq!((lo.index, lo.name.as_str(), lo.mac, lo.mtu), (1, "lo", None, 65536));

    let mac = |last| Some(Mac([0x52, 0x54, 0, 0, 0, last]));
    assert!(eth0.is_ethernet() && eth0.up);
    assert_eq!((eth0.name.as_str(), eth0.kind.as_deref(), eth0.mtu), ("eth0", Some("veth"), 1500));
    assert_eq!((eth0.mac, eth0.permanent_mac, eth0.master), (mac(1), mac(1), Some(6)));
    // A member has the address of its bond, and got its own from its maker.
    assert_eq!((eth1.mac, eth1.permanent_mac, eth1.master), (mac(1), mac(2), Some(6)));

    let (options, primary) = bond0.bond.unwrap();
    assert_eq!(options, BondOptions { mode: 1, miimon: 100, ..BondOptions::default() });
    assert_eq!((primary, bond0.vlan, bond0.up), (Some(eth1.index), None, true));
    let (options, primary) = up0.bond.unwrap();
    let wanted = BondOptions {
        mode: 4,
        miimon: 50,
        up_delay: 100,
        xmit_hash_policy: 1,
        min_links: 1,
        lacp_rate: 1,
        ..BondOptions::default()
    };
    assert_eq!((options, primary), (wanted, None));
    let (options, _) = arp0.bond.unwrap();
    assert_eq!((options.mode, options.miimon, options.arp_interval), (1, 0, 500));
    assert_eq!(options.arp_targets, [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)]);

    assert_eq!(
        (lan.kind.as_deref(), lan.vlan, lan.below),
        (Some("vlan"), Some((7, 0x8100)), Some(bond0.index))
    );
    assert_eq!((outer.vlan, outer.below), (Some((100, 0x88a8)), Some(lan.index)));
    let bridge = link(&bytes(BRIDGE)).unwrap();
    assert_eq!(
        (bridge.name.as_str(), bridge.kind.as_deref(), bridge.filtering),
        ("br0", Some("bridge"), true)
    );
}

#[test]
fn the_other_end_of_a_cable_in_another_namespace_is_no_link_of_this_one() {
    let eth0 = bytes(LINKS[1]);
    // The number 2 elsewhere, as IFLA_LINK and IFLA_LINK_NETNSID.
    let elsewhere = [&eth0[..], &bytes("08000500020000000800250001000000")].concat();
    assert_eq!(link(&elsewhere).unwrap().below, None);
    assert_eq!(link(&elsewhere[..elsewhere.len() - 8]).unwrap().below, Some(2));
    // IFLA_PERM_ADDRESS, which cards have, counts more than what a bond remembers.
    let card = [&eth0[..], &bytes("0a0036005254000000990000")].concat();
    assert_eq!(link(&card).unwrap().permanent_mac, Some(Mac([0x52, 0x54, 0, 0, 0, 0x99])));
}

#[test]
fn addresses_are_told_with_their_other_end_and_their_flags() {
    for (hex, text, prefix, peer, scope, flags) in [
        (
            "020880fe01000000080001007f000001080002007f000001070003006c6f00000800080080000000",
            "127.0.0.1",
            8,
            None,
            254,
            0x80,
        ),
        (
            "022080000300000008000100c000020a08000200c000020a0900030065746830000000000800080080000000",
            "192.0.2.10",
            32,
            None,
            0,
            0x80,
        ),
        (
            "0220800003000000080001000a000001080002000a0000020900030065746830000000000800080080000000",
            "10.0.0.2",
            32,
            Some("10.0.0.1"),
            0,
            0x80,
        ),
        (
            "0a402200030000001400010020010db80000000000000000000000021400060000000000e803000011550300115503000800080022000000",
            "2001:db8::2",
            64,
            None,
            0,
            0x22,
        ),
        (
            "0a40c0fd0300000014000100fe80000000000000505400fffe00000108000800c0000000",
            "fe80::5054:ff:fe00:1",
            64,
            None,
            253,
            0xc0,
        ),
        // Before 3.14 there were no more than eight flags.
        (
            "0a40c0fd0300000014000100fe80000000000000505400fffe000001",
            "fe80::5054:ff:fe00:1",
            64,
            None,
            253,
            0xc0,
        ),
    ] {
        let entry = address(&bytes(hex)).unwrap();
        assert_eq!((entry.address, entry.prefix, entry.peer), (ip(text), prefix, peer.map(ip)), "{text}");
        assert_eq!((entry.scope, entry.flags), (scope, flags), "{text}");
    }
}

#[test]
fn routes_of_the_main_table_are_told_with_their_gateways() {
    type Row = (
        &'static str,
        Option<(
            &'static str,
            u8,
            u32,
            Option<&'static str>,
            u8,
            Vec<(u32, Option<&'static str>, bool, u16)>,
        )>,
    );
    let rows: Vec<Row> = vec![
        (
            "02000000fe0300010400000008000f00fe00000008000500cb0071010800040003000000",
            Some(("0.0.0.0", 0, 0, None, 3, vec![(3, Some("203.0.113.1"), true, 1)])),
        ),
        (
            "02000000fe0300010000000008000f00fe000000080006000700000008000700c000020a08000500c00002010800040003000000",
            Some(("0.0.0.0", 0, 7, Some("192.0.2.10"), 3, vec![(3, Some("192.0.2.1"), false, 1)])),
        ),
        (
            "02200000fe02fd010000000008000f00fe000000080001000a000001080007000a0000020800040003000000",
            Some(("10.0.0.1", 32, 0, Some("10.0.0.2"), 2, vec![(3, None, false, 1)])),
        ),
        (
            "02100000fe0300010000000008000f00fe000000080001000a050000160012000a00fe80000000000000000000000000000100000800040003000000",
            Some(("10.5.0.0", 16, 0, None, 3, vec![(3, Some("fe80::1"), false, 1)])),
        ),
        (
            "02180000fe0300010000000008000f00fe00000008000100c633640034000900100004020300000008000500c00002012000000003000000160012000a00fe8000000000000000000000000000010000",
            Some((
                "198.51.100.0",
                24,
                0,
                None,
                3,
                vec![(3, Some("192.0.2.1"), true, 3), (3, Some("fe80::1"), false, 1)],
            )),
        ),
        (
            "0a000000fe0300010000000008000f00fe000000080006000004000014000500fe800000000000000000000000000001080004000300000024000c0000000000000000000000000000000000000000000000000000000000000000000500140000000000",
            Some(("::", 0, 1024, None, 3, vec![(3, Some("fe80::1"), false, 1)])),
        ),
        (
            "0a400000fe0200010000000008000f00fe0000001400010020010db80000000000000000000000000800060000010000080004000300000024000c0000000000000000007286010000000000000000000000000000000000000000000500140000000000",
            Some(("2001:db8::", 64, 256, None, 2, vec![(3, None, false, 1)])),
        ),
        // Another table, a black hole, and an address of the machine itself.
        ("02000000640300010400000008000f006400000008000500c00002010800040003000000", None),
        ("02100000fe0300060000000008000f00fe000000080001000a090000", None),
        ("02200000ff02fe020000000008000f00ff000000080001000a000002080007000a0000020800040003000000", None),
    ];
    for (hex, expected) in rows {
        let read = route(&bytes(hex));
        let expected = expected.map(|(destination, prefix, metric, source, origin, hops)| RouteEntry {
            destination: ip(destination),
            prefix,
            metric,
            source: source.map(ip),
            origin,
            hops: hops
                .into_iter()
                .map(|(link, gateway, on_link, weight)| HopEntry {
                    link,
                    gateway: gateway.map(ip),
                    on_link,
                    weight,
                })
                .collect(),
        });
        assert_eq!(read, expected, "{hex}");
    }
}

#[test]
fn rules_that_every_machine_has_are_known() {
    for (hex, priority, table, usual) in [
        ("02000000ff0000010000000008000f00ff00000008000e00ffffffff0500150002000000", 0, 255, true),
        (
            "02000000fe0000010000000008000f00fe00000008000e00ffffffff050015000200000008000600fe7f0000",
            32766,
            254,
            true,
        ),
        (
            "02002000640000010000000008000f006400000008000e00ffffffff050015000000000008000600fd7f0000080002000a000002",
            32765,
            100,
            false,
        ),
    ] {
        let entry = rule(&bytes(hex)).unwrap();
        assert_eq!((entry, entry.is_usual()), (RuleEntry { priority, table }, usual));
    }
}

#[test]
fn no_cut_and_no_flipped_bit_makes_a_parser_panic() {
    let whole: Vec<Vec<u8>> = LINKS
        .iter()
        .chain([&BRIDGE])
        .chain(&[
            "0220800003000000080001000a000001080002000a0000020900030065746830000000000800080080000000",
            "02180000fe0300010000000008000f00fe00000008000100c633640034000900100004020300000008000500c00002012000000003000000160012000a00fe8000000000000000000000000000010000",
            "02002000640000010000000008000f006400000008000e00ffffffff050015000000000008000600fd7f0000080002000a000002",
        ])
        .map(|hex| bytes(hex))
        .collect();
    let parse = |bytes: &[u8]| drop((link(bytes), address(bytes), route(bytes), rule(bytes)));
    for message in &whole {
        for end in 0..message.len() {
            parse(&message[..end]);
        }
        let mut flipped = message.clone();
        for at in 0..message.len() {
            for value in [0, 1, 0x7f, 0xff] {
                flipped[at] = value;
                parse(&flipped);
            }
            flipped[at] = message[at];
        }
    }
    // And what is too short for its header is nothing.
    assert!(link(&whole[0][..15]).is_none() && route(&[2; 11]).is_none());
    assert!(address(&[2; 7]).is_none() && rule(&[2; 11]).is_none());
}
