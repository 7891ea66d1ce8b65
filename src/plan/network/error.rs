//! Why a machine would not be reached again, a sentence each.

use std::fmt;
use std::net::IpAddr;

/// Why a network cannot be carried over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    #[error(
        "none of the machine's links has {0}, by which it is reached; connect to an address that one of them has"
    )]
    NotHere(IpAddr),
    #[error(
        "the machine is reached by {0}, which is its own end only, through a program that does not run in the rescue; connect to the address of a network card"
    )]
    Inside(IpAddr),
    #[error(
        "the machine has no default route, and it is not known by which address it is reached; connect by SSH to the address of a network card"
    )]
    NoWay,
    #[error(
        "{way} through {link}, {obstacle}; connect to an address of a card, of a bond or VLAN on cards, or of a bridge with one of these"
    )]
    Closed { way: Way, link: String, obstacle: Obstacle },
    #[error(
        "the network of the machine is too large or too odd for the rescue ({0}); take some of it down and try again"
    )]
    Odd(String),
}

/// What leads through a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Connection,
    DefaultRoute,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Connection => "the machine is reached",
            Way::DefaultRoute => "the machine's default route goes",
        })
    }
}

/// What a link is that a rescue does not set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A link of another kind.
    Kind(String),
    /// A member of such a link.
    Member {
        master: String,
        kind: String,
    },
    Wireless,
    /// A bridge with none or several links that lead outside.
    Bridge(Vec<String>),
    EmptyBond,
    /// A bond with a member that is no card.
    BondOf(String),
    NoMac,
    /// The machine itself, where a way outside is wanted.
    Loopback,
    /// Links that are on each other in a circle, or too many on each other.
    Tower,
    /// A link that another network namespace has, or none.
    Missing,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Kind(kind) => write!(f, "{}, which the rescue does not set up", kind_name(kind)),
            Obstacle::Member { master, kind } => {
                write!(f, "a member of {master}, {}, which the rescue does not set up", kind_name(kind))
            }
            Obstacle::Wireless => f.write_str("a wireless card, whose network the rescue cannot join"),
            Obstacle::Bridge(members) if members.is_empty() => f.write_str("a bridge without a network card"),
            Obstacle::Bridge(members) => {
                write!(f, "a bridge of {}, of which the rescue could set up just one", members.join(", "))
            }
            Obstacle::EmptyBond => f.write_str("a bond without members"),
            Obstacle::BondOf(member) => write!(f, "a bond of {member}, which is no network card"),
            Obstacle::NoMac => {
                f.write_str("whose card has no Ethernet address, by which the rescue would find it")
            }
            Obstacle::Loopback => f.write_str("which leads nowhere"),
            Obstacle::Tower => f.write_str("which stands on too many other links"),
            Obstacle::Missing => f.write_str("which is not to be seen from here"),
        }
    }
}

fn kind_name(kind: &str) -> String {
    match kind {
        "wireguard" => "a WireGuard tunnel".to_owned(),
        "tun" => "a tunnel of some program".to_owned(),
        "ppp" => "a PPP connection".to_owned(),
        "team" => "a team of cards".to_owned(),
        "macvlan" | "ipvlan" => format!("a {kind} link"),
        "openvswitch" => "a switch of Open vSwitch".to_owned(),
        "gre" | "gretap" | "ip6gre" | "ipip" | "ip6tnl" | "sit" | "vti" | "vti6" | "vxlan" | "geneve" => {
            format!("a tunnel of the kind {kind}")
        }
        other => format!("a link of the kind {other}"),
    }
}
