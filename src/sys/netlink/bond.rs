//! The options of a bond, as `linux/if_link.h` numbers them.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::message::{Attributes, Request, number};

const MODE: u16 = 1;
const MIIMON: u16 = 3;
const UPDELAY: u16 = 4;
const DOWNDELAY: u16 = 5;
const ARP_INTERVAL: u16 = 7;
const ARP_TARGETS: u16 = 8;
const PRIMARY: u16 = 11;
const FAIL_OVER_MAC: u16 = 13;
const XMIT_HASH_POLICY: u16 = 14;
const MIN_LINKS: u16 = 18;
const LACP_RATE: u16 = 21;
const AD_SELECT: u16 = 22;
// Of a member's own options.
const PERMANENT_ADDRESS: u16 = 4;

const ACTIVE_BACKUP: u8 = 1;
const LACP: u8 = 4;
const ADAPTIVE: [u8; 2] = [5, 6];

/// What both ends of a bond agree on, and how its members are watched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BondOptions {
    /// The kernel's number: 0 for balance-rr, 1 for active-backup, 4 for 802.3ad.
    pub mode: u8,
    /// How often carriers are looked at, in milliseconds; 0 for never.
    pub miimon: u32,
    /// In milliseconds.
    pub up_delay: u32,
    /// In milliseconds.
    pub down_delay: u32,
    /// How often ARP requests go to the targets, in milliseconds; 0 for never.
    pub arp_interval: u32,
    pub arp_targets: Vec<Ipv4Addr>,
    pub fail_over_mac: u8,
    pub xmit_hash_policy: u8,
    pub min_links: u32,
    /// 1 for fast; in mode 802.3ad only.
    pub lacp_rate: u8,
    /// Which group of members is used; in mode 802.3ad only.
    pub ad_select: u8,
}

/// Reads a bond's options, and the number of the link that is its primary one.
pub fn parse(data: Attributes) -> (BondOptions, Option<u32>) {
    let milliseconds = |kind| data.u32(kind).unwrap_or(0);
    let choice = |kind| data.u8(kind).unwrap_or(0);
    let target = |(_, value)| number(value, 0, <[u8; 4]>::from).map(Ipv4Addr::from);
    let options = BondOptions {
        mode: choice(MODE),
        miimon: milliseconds(MIIMON),
        up_delay: milliseconds(UPDELAY),
        down_delay: milliseconds(DOWNDELAY),
        arp_interval: milliseconds(ARP_INTERVAL),
        arp_targets: data.nested(ARP_TARGETS).all().filter_map(target).collect(),
        fail_over_mac: choice(FAIL_OVER_MAC),
        xmit_hash_policy: choice(XMIT_HASH_POLICY),
        min_links: milliseconds(MIN_LINKS),
        lacp_rate: choice(LACP_RATE),
        ad_select: choice(AD_SELECT),
    };
    (options, data.u32(PRIMARY).filter(|&index| index != 0))
}

/// Reads the address that a member had before it joined, which older kernels tell here only.
pub fn permanent_address(member: Attributes<'_>) -> Option<&[u8]> {
    member.get(PERMANENT_ADDRESS)
}

impl BondOptions {
    /// Writes the options that this mode knows; the kernel refuses a bond with one that it does not know.
    pub(super) fn write(&self, primary: Option<u32>, mut data: Request) -> Request {
        data = data.with(MODE, &[self.mode]);
        if self.arp_interval > 0 {
            data = data.with(ARP_INTERVAL, &self.arp_interval.to_ne_bytes());
            data = data.with_nested(ARP_TARGETS, |list| {
                let targets = (0..).zip(&self.arp_targets);
                targets.fold(list, |list, (number, target)| list.with(number, &target.octets()))
            });
        } else if self.miimon > 0 {
            data = data.with(MIIMON, &self.miimon.to_ne_bytes());
            data = data.with(UPDELAY, &self.up_delay.to_ne_bytes());
            data = data.with(DOWNDELAY, &self.down_delay.to_ne_bytes());
        }
        data = data.with(XMIT_HASH_POLICY, &[self.xmit_hash_policy]);
        data = data.with(MIN_LINKS, &self.min_links.to_ne_bytes());
        if self.mode == ACTIVE_BACKUP {
            data = data.with(FAIL_OVER_MAC, &[self.fail_over_mac]);
        }
        if self.mode == LACP {
            data = data.with(LACP_RATE, &[self.lacp_rate]).with(AD_SELECT, &[self.ad_select]);
        }
        let has_primary = self.mode == ACTIVE_BACKUP || ADAPTIVE.contains(&self.mode);
        match primary {
            Some(index) if has_primary => data.with(PRIMARY, &index.to_ne_bytes()),
            _ => data,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_are_written_are_read_again_but_for_those_that_the_mode_does_not_know() {
        let wanted = BondOptions {
            mode: LACP,
            miimon: 100,
            up_delay: 200,
            down_delay: 300,
            xmit_hash_policy: 1,
            min_links: 1,
            lacp_rate: 1,
            ad_select: 2,
            ..BondOptions::default()
        };
        let written =
            |options: &BondOptions| parse(Attributes(&options.write(Some(7), Request::inner()).into_bytes()));
        assert_eq!(written(&wanted), (wanted.clone(), None));
        let backup = BondOptions { mode: ACTIVE_BACKUP, fail_over_mac: 1, ..wanted };
        let (read, primary) = written(&backup);
        assert_eq!((read.lacp_rate, read.ad_select, read.fail_over_mac, primary), (0, 0, 1, Some(7)));
        let arp_targets = vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
        let by_arp = BondOptions { arp_interval: 500, arp_targets, ..backup };
        let (read, _) = written(&by_arp);
        assert_eq!((read.arp_interval, &read.arp_targets), (500, &by_arp.arp_targets));
        // The kernel watches by one of the two only.
        assert_eq!(read.miimon, 0);
    }
}
