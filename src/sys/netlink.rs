//! The kernel's own way to speak of its network: links, addresses, routes and rules.
//!
//! In a rescue there is no `ip`. Here is the socket, which asks one thing at a time and waits for the answer;
//! [`message`] is the form of what is said, [`entry`] what is read, and `change` what is written.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::entry::{AddressEntry, Family, LinkEntry, RouteEntry, RuleEntry};
use self::message::{Attributes, Message, Request};

pub mod bond;
mod change;
pub mod entry;
pub mod mac;
pub mod message;

pub use change::NewLink;

const GETLINK: u16 = 18;
const GETADDR: u16 = 22;
const GETROUTE: u16 = 26;
const GETRULE: u16 = 34;

const LINK_HEADER: usize = 16;
const EXTENSIONS: u16 = 29;
// Counters of packets, which nobody here reads.
const SKIP_STATISTICS: u32 = 8;

// The kernel fills at most half of this with one answer.
const BUFFER: usize = 64 << 10;
// The kernel answers at once; a socket that hears nothing for so long has lost an answer.
const PATIENCE_MILLISECONDS: u16 = 10_000;
// What changes in each of so many looks does not come to rest.
const LOOKS: usize = 8;

/// A socket to the kernel's network, in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    socket: File,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket.
    pub fn open() -> io::Result<Netlink> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: socket takes three numbers and touches no memory of ours.
        let socket = Errno::result(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) })?;
        // SAFETY: the descriptor was made just now, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        Ok(Netlink { socket: File::from(socket), sequence: 0 })
    }

    /// Returns all links.
    pub fn links(&mut self) -> io::Result<Vec<LinkEntry>> {
        let request = Request::new(GETLINK, message::DUMP, &[0; LINK_HEADER]);
        self.dump(&request.with(EXTENSIONS, &SKIP_STATISTICS.to_ne_bytes()), entry::link)
    }

    /// Returns all addresses of both families.
    pub fn addresses(&mut self) -> io::Result<Vec<AddressEntry>> {
        self.both(GETADDR, 8, entry::address)
    }

    /// Returns the routes of the main table, of both families.
    pub fn routes(&mut self) -> io::Result<Vec<RouteEntry>> {
        self.both(GETROUTE, 12, entry::route)
    }

    /// Returns the rules by which routing tables are chosen, of both families.
    pub fn rules(&mut self) -> io::Result<Vec<RuleEntry>> {
        self.both(GETRULE, 12, entry::rule)
    }

    fn both<T>(&mut self, kind: u16, header: usize, parse: fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        let mut all = Vec::new();
        for family in [Family::V4, Family::V6] {
            let mut fixed = vec![0; header];
            fixed[0] = family.number();
            match self.dump(&Request::new(kind, message::DUMP, &fixed), parse) {
                Ok(found) => all.extend(found),
                // A kernel without IPv6, or without rules, says so.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Asks for a list, again if it changed while it was told.
    fn dump<T>(&mut self, request: &Request, parse: fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        for _ in 0..LOOKS {
            let mut found = Vec::new();
            let whole = self.ask(request.clone(), |body| found.extend(parse(body)))?;
            if whole {
                return Ok(found);
            }
        }
        Err(io::Error::other("the network changes too fast to be looked at"))
    }

    /// Asks for a change, and waits until it is made.
    fn change(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        fill: impl FnOnce(Request) -> Request,
    ) -> io::Result<()> {
        let request = fill(Request::new(kind, message::ACKNOWLEDGE | flags, fixed));
        self.ask(request, |_| ()).map(drop)
    }

    /// Sends a request and hands on each answer; tells whether nothing changed meanwhile.
    fn ask(&mut self, request: Request, mut each: impl FnMut(&[u8])) -> io::Result<bool> {
        self.sequence += 1;
        self.socket.write_all(&request.finish(self.sequence))?;
        let mut buffer = vec![0; BUFFER];
        let mut whole = true;
        loop {
            let mut waiting = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut waiting, PollTimeout::from(PATIENCE_MILLISECONDS)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                // A child has ended, or the like: process 1 has many.
                Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            let count = self.socket.read(&mut buffer)?;
            // Answers to an earlier request may still come if that one failed half way.
            let own = |message: &Message| message.sequence == self.sequence;
            for message in message::messages(&buffer[..count]).filter(own) {
                whole &= message.flags & message::INTERRUPTED == 0;
                match message.kind {
                    message::ERROR | message::DONE => match message::errno(message.body) {
                        0 => return Ok(whole),
                        errno => return Err(io::Error::from_raw_os_error(errno)),
                    },
                    _ => each(message.body),
                }
            }
        }
    }
}

/// Returns the bytes of an address, as the kernel writes them.
fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Splits off what comes before the attributes of a message.
fn split(body: &[u8], header: usize) -> Option<(&[u8], Attributes<'_>)> {
    let (fixed, rest) = body.split_at_checked(header)?;
    Some((fixed, Attributes(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_its_loopback_link() {
        let mut netlink = Netlink::open().unwrap();
        let links = netlink.links().unwrap();
        assert!(links.iter().any(|link| link.name == "lo" && link.is_loopback()), "{links:?}");
        netlink.addresses().unwrap();
        netlink.routes().unwrap();
        assert!(netlink.rules().unwrap().iter().any(|rule| rule.is_usual()));
    }

    #[test]
    fn what_is_refused_is_told_by_its_number() {
        let mut netlink = Netlink::open().unwrap();
        let error = netlink.set_mtu(u32::MAX >> 1, 1500).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EPERM)), "{error}");
        // And the socket goes on.
        netlink.links().unwrap();
    }
}
