//! The hall: those who have not shown the key yet, of whom there are never many.
//!
//! Nobody can fill it: when one more comes, one of those from where most are goes. The one who has
//! the key needs a second or two, and is not among the oldest by then.

use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::{Mutex, MutexGuard};

// Each costs up to 1 MiB, and one is waited for.
const ROOM: usize = 16;

#[derive(Default)]
pub struct Hall(Mutex<State>);

#[derive(Default)]
struct State {
    /// From the oldest to the newest.
    waiting: Vec<Waiting>,
    next: u64,
}

struct Waiting {
    place: u64,
    from: Source,
    line: TcpStream,
}

/// The network that somebody comes from: an IPv4 address, or the half of an IPv6 address that one
/// customer gets.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Source(u64);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Source(match address.to_canonical() {
            IpAddr::V4(address) => address.to_bits().into(),
            IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
        })
    }
}

impl Hall {
    /// Takes somebody in, and hangs up on another one if there is no room. Returns their place.
    pub fn enter(&self, from: IpAddr, line: TcpStream) -> u64 {
        let mut state = self.state();
        let place = state.next;
        state.next += 1;
        state.waiting.push(Waiting { place, from: from.into(), line });
        if state.waiting.len() > ROOM {
            let sources: Vec<Source> = state.waiting.iter().map(|waiting| waiting.from).collect();
            hang_up(&state.waiting.remove(superfluous(&sources)));
        }
        place
    }

    /// Somebody has been let in, or is gone.
    pub fn leave(&self, place: u64) {
        self.state().waiting.retain(|waiting| waiting.place != place);
    }

    /// Hangs up on somebody who still waits.
    pub fn dismiss(&self, place: u64) {
        let mut state = self.state();
        state.waiting.iter().filter(|waiting| waiting.place == place).for_each(hang_up);
        state.waiting.retain(|waiting| waiting.place != place);
    }

    // Nothing in it is ever half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn hang_up(waiting: &Waiting) {
    // One that has hung up already is no worse.
    let _ = waiting.line.shutdown(Shutdown::Both);
}

/// Returns the index of the one to go: the oldest of those from where most are.
fn superfluous(sources: &[Source]) -> usize {
    let crowd = |index: &usize| sources.iter().filter(|other| **other == sources[*index]).count();
    // Of equals, the last one that is asked is taken.
    (0..sources.len()).rev().max_by_key(crowd).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_those_from_where_most_are_goes() {
        for (addresses, goes) in [
            (&["192.0.2.1"][..], 0),
            (&["192.0.2.1", "192.0.2.2", "192.0.2.3"], 0),
            (&["192.0.2.1", "192.0.2.2", "192.0.2.2"], 1),
            (&["192.0.2.2", "192.0.2.1", "192.0.2.1", "192.0.2.2"], 0),
            (&["192.0.2.9", "192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.1", "192.0.2.2"], 2),
            // One network, however many addresses it has.
            (&["2001:db8:0:1::1", "2001:db8::1", "2001:db8::2"], 1),
            // One address, on either kind of socket.
            (&["192.0.2.1", "192.0.2.2", "::ffff:192.0.2.2"], 1),
        ] {
            let sources: Vec<Source> =
                addresses.iter().map(|address| address.parse::<IpAddr>().unwrap().into()).collect();
            assert_eq!(superfluous(&sources), goes, "{addresses:?}");
        }
    }
}
