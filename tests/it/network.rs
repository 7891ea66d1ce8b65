//! The network of a machine is looked at, taken away, and set up again as a rescue does it, between namespaces.
//!
//! The real `ip` makes what is looked at, and says what came of it: that must be the same. Cables are pairs of veth, and
//! the cards of the second machine have the addresses of the first one's, but other names, and one card too many is there.
//! What this machine's kernel does not know is tested under Debian's: see [`crate::network_machine`].

use std::collections::BTreeSet;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nixos_install_via::facts::network::Network;
use nixos_install_via::plan::network::{Carried, carried};
use nixos_install_via::{probe, run};
use serde_json::Value;

use crate::space::{Space, checked};
use crate::wait;

/// Set where the kernel is known to have what every case needs.
pub const COMPLETE: &str = "NETWORK_IS_COMPLETE";

impl Space {
    /// Lays cables to `far`, whose ends there are called `far0` and so on.
    fn cables(&self, far: &Space, number: usize, name: &str) {
        // The last one first, as other kernels may find them.
        for cable in (0..number).rev() {
            let (here, there) = (self.name(), far.name());
            let ends =
                format!("{name}{cable} netns {here} address {} type veth peer name far{cable}", mac(cable));
            checked(
                Command::new("ip").args(["link", "add"]).args(ends.split_whitespace()).args(["netns", there]),
            );
            far.ip(&format!("link set far{cable} up"));
        }
    }

    /// What `ip` says of links, addresses and routes, with the names that the cards had.
    fn picture(&self, card: &str) -> Picture {
        let json = |words: &str| -> Value {
            let text = self.ip(words).replace(&format!("\"{card}"), "\"eth");
            if text.trim().is_empty() {
                Value::Array(Vec::new())
            } else {
                serde_json::from_str(&text).unwrap()
            }
        };
        let mut picture = Picture::new();
        for link in json("-json -details address").as_array().unwrap() {
            // A card is told by its cable's end elsewhere, which has another number each time.
            let name = link["ifname"].as_str().unwrap();
            if name == "spare" || name == "lo" || name.starts_with("probe") {
                continue;
            }
            let info = &link["linkinfo"];
            let below = if info["info_kind"] == "vlan" { &link["link"] } else { &Value::Null };
            let options: Vec<&Value> =
                ["protocol", "id", "mode", "miimon", "xmit_hash_policy", "ad_lacp_rate", "primary"]
                    .map(|option| &info["info_data"][option])
                    .into();
            let up = link["flags"].as_array().unwrap().iter().any(|flag| flag == "UP");
            picture.insert(format!(
                "{name}: {} {} up={up} master={} {} below={below} {options:?}",
                link["address"], link["mtu"], link["master"], info["info_kind"]
            ));
            for address in link["addr_info"].as_array().unwrap() {
                let (local, prefix) = (address["local"].as_str().unwrap(), &address["prefixlen"]);
                if !local.starts_with("fe80:") {
                    let deprecated = &address["deprecated"];
                    picture.insert(format!(
                        "{name}: {local} {} {prefix} {} {deprecated}",
                        address["address"], address["scope"]
                    ));
                }
            }
        }
        for family in ["-4", "-6"] {
            for route in json(&format!("{family} -json route")).as_array().unwrap() {
                if route["dst"] != "fe80::/64" {
                    let parts = ["dst", "gateway", "via", "dev", "metric", "prefsrc", "flags", "nexthops"];
                    let parts: Vec<&Value> = parts.map(|part| &route[part]).into();
                    picture.insert(format!("{family} {parts:?}"));
                }
            }
        }
        picture
    }
}

type Picture = BTreeSet<String>;

fn mac(card: usize) -> String {
    format!("52:54:00:00:00:{:02x}", card + 1)
}

struct Case {
    /// What the kernel must have; the real `ip` says if it has not.
    kinds: &'static [&'static str],
    cables: usize,
    /// A command of `ip` a line.
    here: &'static str,
    there: &'static str,
    reached_by: &'static str,
    far: &'static str,
}

/// Moves a network from one machine to another, and hands both over for a look.
fn moved(case: &Case) -> Option<(Picture, Space, Space, Carried)> {
    let (old, new) = (Space::new("old"), Space::new("new"));
    if !case.kinds.iter().all(|kind| has(&new, kind)) {
        return None;
    }
    let far = Space::new("far");
    let set = |space: &Space, words: &str| {
        for line in words.lines().map(str::trim).filter(|line| !line.is_empty()) {
            space.ip(line);
        }
    };
    old.cables(&far, case.cables, "eth");
    set(&far, case.there);
    set(&old, case.here);
    if !case.far.is_empty() {
        old.answers(case.far);
    }
    let network: Network = old.inside(|| probe::network().unwrap());
    let before = old.picture("eth");
    let reached_by = case.reached_by.parse().unwrap();
    let decided = carried(&network, Some(reached_by)).unwrap();
    drop((old, far));

    let json = serde_json::to_string(&decided).unwrap();
    let decided: Carried = serde_json::from_str(&json).unwrap();
    let far = Space::new("far");
    new.cables(&far, case.cables, "wan");
    new.ip("link add spare type veth peer name probe");
    set(&far, case.there);
    new.inside(|| run::bring_up(&decided, wait::BACKSTOP).unwrap());
    if !case.far.is_empty() {
        new.answers(case.far);
    }
    let after = new.picture("wan");
    // Nothing happens the second time.
    new.inside(|| run::bring_up(&decided, wait::BACKSTOP).unwrap());
    assert_eq!(new.picture("wan"), after);
    Some((before, new, far, decided))
}

#[track_caller]
fn same(case: &Case) {
    let Some((before, new, _far, decided)) = moved(case) else { return };
    let after = new.picture("wan");
    let lost: Vec<&String> = before.difference(&after).collect();
    let gained: Vec<&String> = after.difference(&before).collect();
    assert!(lost.is_empty() && gained.is_empty(), "lost {lost:#?}\ngained {gained:#?}\n{decided:#?}");
    assert!(before.len() >= 2, "there was nothing: {before:?}");
}

/// Tells whether the kernel has a kind of links, by the word of the real `ip`.
fn has(space: &Space, kind: &str) -> bool {
    space.ip("link add probe0 type veth peer name probe1");
    let words = match kind {
        "vlan" => "link add link probe0 name probe2 type vlan id 5".to_owned(),
        other => format!("link add probe2 type {other}"),
    };
    let output = space.try_ip(&words);
    for probe in ["probe0", "probe2"] {
        space.try_ip(&format!("link delete {probe}"));
    }
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(std::env::var_os(COMPLETE).is_none(), "ip {words}: {said}");
        println!("left out, for this kernel has no {kind}: ip {words}: {said}");
    }
    output.status.success()
}

#[test]
fn a_card_with_a_network_and_a_default_route() {
    same(&Case {
        kinds: &[],
        cables: 2,
        here: "link set eth0 up
            address add 10.1.0.2/24 dev eth0
            address add 10.1.0.3/24 dev eth0
            address add 10.2.0.2 peer 10.2.0.1/32 dev eth0
            address add 2001:db8:1::2/64 dev eth0 nodad
            address add 2001:db8:1::3/64 dev eth0 nodad preferred_lft 0
            route add default via 10.1.0.1 dev eth0 metric 100 src 10.1.0.3
            route add 10.9.0.0/16 via 10.1.0.1 dev eth0
            route add 10.8.0.0/16 nexthop via 10.1.0.1 dev eth0 weight 2 nexthop via 10.1.0.9 dev eth0 weight 1
            -6 route add default via 2001:db8:1::1 dev eth0 metric 50",
        there: "address add 10.1.0.1/24 dev far0
            address add 203.0.113.1/32 dev lo",
        reached_by: "10.1.0.2",
        far: "203.0.113.1",
    });
}

#[test]
fn an_address_without_a_network_and_a_gateway_that_is_on_the_link() {
    for route in [
        "route add 192.0.2.1 dev eth0
            route add default via 192.0.2.1 dev eth0",
        "route add default via 192.0.2.1 dev eth0 onlink",
    ] {
        same(&Case {
            kinds: &[],
            cables: 1,
            here: Box::leak(
                format!("link set eth0 up\naddress add 203.0.113.7/32 dev eth0\n{route}").into_boxed_str(),
            ),
            there: "address add 192.0.2.1/32 dev far0
                route add 203.0.113.7 dev far0",
            reached_by: "203.0.113.7",
            far: "192.0.2.1",
        });
    }
}

#[test]
fn version_4_through_a_gateway_of_version_6() {
    same(&Case {
        kinds: &[],
        cables: 1,
        here: "link set eth0 up
            address add 203.0.113.7/32 dev eth0
            -4 route add default via inet6 fe80::1 dev eth0",
        there: "address add fe80::1/64 dev far0 nodad
            address add 192.0.2.1/32 dev lo
            route add 203.0.113.7 dev far0",
        reached_by: "203.0.113.7",
        far: "192.0.2.1",
    });
}

#[test]
fn version_6_only_with_short_packets() {
    same(&Case {
        kinds: &[],
        cables: 1,
        here: "link set eth0 up mtu 1400
            address add 2001:db8:1::2/128 dev eth0 nodad
            -6 route add default via fe80::1 dev eth0 src 2001:db8:1::2",
        there: "link set far0 mtu 1400
            address add fe80::1/64 dev far0 nodad
            address add 2001:db8::9/128 dev lo nodad
            -6 route add 2001:db8:1::/64 dev far0",
        reached_by: "2001:db8:1::2",
        far: "2001:db8::9",
    });
}

#[test]
fn addresses_whose_routes_somebody_else_makes() {
    same(&Case {
        kinds: &[],
        cables: 1,
        here: "link set eth0 up
            address add 10.1.0.2/24 dev eth0 noprefixroute
            address add 2001:db8:1::2/64 dev eth0 nodad noprefixroute
            route add 10.1.0.0/24 dev eth0 proto kernel src 10.1.0.2 metric 100
            route add default via 10.1.0.1 dev eth0 proto dhcp metric 100
            -6 route add 2001:db8:1::/64 dev eth0 proto kernel metric 100
            -6 route add default via fe80::1 dev eth0 proto ra metric 100",
        there: "address add 10.1.0.1/24 dev far0",
        reached_by: "10.1.0.2",
        far: "10.1.0.1",
    });
}

#[test]
fn the_addresses_of_a_bridge_are_given_to_its_card() {
    let case = Case {
        kinds: &["bridge"],
        cables: 2,
        here: "link set eth0 up mtu 1400
            link add br0 address 52:54:00:00:00:99 type bridge
            link set eth0 master br0
            link set br0 up
            address add 10.1.0.2/24 dev br0
            route add default via 10.1.0.1 dev br0
            link add docker0 type bridge
            link set docker0 up
            address add 172.17.0.1/16 dev docker0",
        there: "address add 10.1.0.1/24 dev far0",
        reached_by: "10.1.0.2",
        far: "10.1.0.1",
    };
    let Some((_, new, _far, decided)) = moved(&case) else { return };
    let after = new.picture("wan");
    assert!(
        after.iter().any(|line| line.starts_with("eth0: \"52:54:00:00:00:99\" 1400 up=true")),
        "{after:#?}"
    );
    assert!(after.iter().any(|line| line.starts_with("eth0: 10.1.0.2")), "{after:#?}");
    assert!(!after.iter().any(|line| line.contains("172.17")), "{after:#?}");
    assert_eq!(decided.cards(), ["eth0"]);
    assert_eq!(decided.notes, ["eth0 has the addresses of the bridge br0 in the rescue"]);
}

#[test]
fn a_vlan() {
    same(&Case {
        kinds: &["vlan"],
        cables: 1,
        here: "link set eth0 up
            link add link eth0 name lan.7 type vlan id 7
            link set lan.7 up mtu 1450
            address add 10.1.0.2/24 dev lan.7
            route add default via 10.1.0.1 dev lan.7",
        there: "link add link far0 name v7 type vlan id 7
            link set v7 up
            address add 10.1.0.1/24 dev v7",
        reached_by: "10.1.0.2",
        far: "10.1.0.1",
    });
}

#[test]
fn a_bond_of_which_one_card_works() {
    same(&Case {
        kinds: &["bond", "bridge"],
        cables: 2,
        here: "link add bond0 type bond mode active-backup miimon 100 primary eth1
            link set eth0 master bond0
            link set eth1 master bond0
            link set bond0 up mtu 1480
            address add 10.1.0.2/24 dev bond0
            address add 2001:db8:1::2/64 dev bond0 nodad
            route add default via 10.1.0.1 dev bond0",
        there: "link add switch type bridge
            link set far0 master switch
            link set far1 master switch
            link set switch up
            address add 10.1.0.1/24 dev switch",
        reached_by: "10.1.0.2",
        far: "10.1.0.1",
    });
}

#[test]
fn a_vlan_in_a_vlan_on_a_bond_that_agrees_with_its_other_end() {
    same(&Case {
        kinds: &["bond", "vlan"],
        cables: 2,
        here: "link add up0 type bond mode 802.3ad miimon 50 xmit_hash_policy layer3+4 lacp_rate fast
            link set eth0 master up0
            link set eth1 master up0
            link set up0 up
            link add link up0 name outer type vlan protocol 802.1ad id 100
            link set outer up
            link add link outer name inner type vlan id 4094
            link set inner up
            address add 10.1.0.2/24 dev inner
            route add default via 10.1.0.1 dev inner",
        there: "link add bond0 type bond mode 802.3ad miimon 50 lacp_rate fast
            link set far0 down
            link set far1 down
            link set far0 master bond0
            link set far1 master bond0
            link set bond0 up
            link add link bond0 name outer type vlan protocol 802.1ad id 100
            link set outer up
            link add link outer name inner type vlan id 4094
            link set inner up
            address add 10.1.0.1/24 dev inner",
        reached_by: "10.1.0.2",
        far: "10.1.0.1",
    });
}

#[test]
fn a_card_that_comes_late_is_waited_for_and_one_with_another_address_is_taken_if_it_is_the_only_one() {
    let (old, far) = (Space::new("old"), Space::new("far"));
    old.cables(&far, 1, "eth");
    for words in ["link set eth0 up", "address add 10.1.0.2/24 dev eth0"] {
        old.ip(words);
    }
    let network = old.inside(|| probe::network().unwrap());
    let decided = carried(&network, Some("10.1.0.2".parse().unwrap())).unwrap();
    drop((old, far));

    let (new, far) = (Space::new("new"), Space::new("far"));
    let error = new.inside(|| run::bring_up(&decided, Duration::ZERO).unwrap_err()).to_string();
    assert!(error.contains(&format!("no card with the address {} (eth0) appeared", mac(0))), "{error}");
    thread::scope(|scope| {
        new.ip("link set lo down");
        scope.spawn(|| {
            // It begins with that, and then waits.
            wait::until("the loopback link is up", || {
                new.ip("link show lo up").contains("lo:").then_some(())
            });
            new.cables(&far, 1, "wan");
        });
        let done = new.inside(|| run::bring_up(&decided, wait::BACKSTOP).unwrap());
        assert_eq!(done, [format!("eth0 ({}), here wan0", mac(0)), "10.1.0.2/24 on eth0".to_owned()]);
    });

    let other = Space::new("other");
    other.ip("link add spare type veth peer name far9");
    other.ip(&format!("link set far9 netns {}", far.name()));
    let done = other.inside(|| run::bring_up(&decided, Duration::ZERO).unwrap());
    assert_eq!(done[0], "spare is taken for eth0, for there is no other card");
    let link = other.ip("-oneline address show dev spare") + &other.ip("-oneline link show dev spare");
    assert!(link.contains(&mac(0)) && link.contains("10.1.0.2/24"), "{link}");
}
