//! The wire of a virtual machine's network card, to a card in a network namespace.
//!
//! At the machine's end frames can have the tag of a VLAN: it is put on and taken off here, because the kernel at
//! the other end may not know how.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::{mem, thread};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;

use crate::space::Space;

// Destination and source stand before the tag, or before the protocol where there is none.
const ADDRESSES: usize = 12;
const TAGGED: [u8; 2] = [0x81, 0x00];
// Of a tag, the rest says how urgent a frame is.
const ID: u16 = 0xfff;
const LONGEST_FRAME: usize = 64 << 10;
const GLANCE: u8 = 100; // milliseconds

nix::ioctl_readwrite_bad!(
    /// Makes what was opened a network card.
    set_card,
    libc::TUNSETIFF,
    libc::ifreq
);

/// A wire, until the value goes.
pub struct Wire {
    dir: TempDir,
    state: Arc<State>,
}

struct State {
    /// The end in the namespace: frames are read and written.
    card: File,
    /// The end at the machine, while QEMU runs: frames with their lengths before them.
    machine: Mutex<Option<UnixStream>>,
    /// The VLAN of all that is on the wire, or 0.
    vlan: AtomicU16,
    closed: AtomicBool,
}

impl Wire {
    /// Lays a wire from a new card of a namespace, which is up, to where a machine can be.
    pub fn to(space: &Space, card: &str) -> Wire {
        // The name of a socket has to be short, and for QEMU without a comma, whatever TMPDIR is.
        let dir =
            tempfile::Builder::new().prefix("wire-").tempdir_in("/tmp").expect("there is room for a socket");
        let listener = UnixListener::bind(socket(dir.path())).expect("the directory is ours");
        let state = Arc::new(State {
            card: space.inside(|| open_card(card)),
            machine: Mutex::default(),
            vlan: AtomicU16::default(),
            closed: AtomicBool::default(),
        });
        space.ip(&format!("link set {card} up"));
        thread::spawn({
            let state = state.clone();
            move || state.carry_out(&listener)
        });
        thread::spawn({
            let state = state.clone();
            move || state.carry_in()
        });
        Wire { dir, state }
    }

    /// What QEMU calls a `netdev`.
    pub fn netdev(&self) -> String {
        format!("stream,server=off,addr.type=unix,addr.path={}", socket(self.dir.path()).display())
    }

    /// From now on frames without the tag of this VLAN do not get through, or with none those with one.
    pub fn tag(&self, vlan: Option<u16>) {
        self.state.vlan.store(vlan.unwrap_or(0), Ordering::Relaxed);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for a machine.
        UnixStream::connect(socket(self.dir.path())).ok();
    }
}

impl State {
    fn vlan(&self) -> Option<u16> {
        Some(self.vlan.load(Ordering::Relaxed)).filter(|&vlan| vlan != 0)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn carry_out(&self, listener: &UnixListener) {
        for machine in listener.incoming() {
            if self.is_closed() {
                break;
            }
            let Ok(mut from) = machine else { continue };
            *self.machine.lock().unwrap() = from.try_clone().ok();
            while let Ok(frame) = read_frame(&mut from) {
                if let Some(frame) = untagged(&frame, self.vlan()) {
                    // The kernel takes a frame as a whole, or not at all.
                    let _ = (&self.card).write(&frame);
                }
            }
        }
    }

    fn carry_in(&self) {
        let mut buffer = vec![0; LONGEST_FRAME];
        while !self.is_closed() {
            let mut wait = [PollFd::new(self.card.as_fd(), PollFlags::POLLIN)];
            let waiting = poll(&mut wait, PollTimeout::from(GLANCE));
            if !matches!(waiting, Ok(1..)) {
                continue;
            }
            let count = match (&self.card).read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // The namespace has gone.
                Err(_) => break,
            };
            let frame = tagged(&buffer[..count], self.vlan());
            let length = (frame.len() as u32).to_be_bytes();
            if let Some(machine) = &mut *self.machine.lock().unwrap() {
                // As on a wire to a machine that is off.
                let _ = machine.write_all(&[&length, &frame[..]].concat());
            }
        }
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("socket")
}

fn read_frame(from: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    from.read_exact(&mut frame)?;
    Ok(frame)
}

/// Makes a card in the network namespace of this thread, and returns the other end of its wire.
fn open_card(name: &str) -> File {
    let wire = File::options().read(true).write(true).open("/dev/net/tun").expect("there is /dev/net/tun");
    // SAFETY: it is plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    assert!(name.len() < request.ifr_name.len(), "{name} is too long for the kernel");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: `wire` is open for the whole call, which reads the request and writes a name into it that fits.
    unsafe { set_card(wire.as_raw_fd(), &mut request) }.expect("root may make cards");
    wire
}

/// Puts on the tag of a VLAN, if there is to be one.
fn tagged(frame: &[u8], vlan: Option<u16>) -> Vec<u8> {
    match (vlan, frame.split_at_checked(ADDRESSES)) {
        (Some(id), Some((addresses, rest))) => [addresses, &TAGGED, &id.to_be_bytes(), rest].concat(),
        _ => frame.to_owned(),
    }
}

/// Takes off the tag of the VLAN; returns nothing of what belongs elsewhere.
fn untagged(frame: &[u8], vlan: Option<u16>) -> Option<Vec<u8>> {
    let (addresses, rest) = frame.split_at_checked(ADDRESSES)?;
    let tag = rest.strip_prefix(&TAGGED).and_then(|rest| rest.split_first_chunk());
    match (tag, vlan) {
        (None, None) => Some(frame.to_owned()),
        (Some((tag, rest)), Some(id)) if u16::from_be_bytes(*tag) & ID == id => {
            Some([addresses, rest].concat())
        }
        _ => None,
    }
}

#[test]
fn what_has_another_tag_than_the_wire_does_not_get_through() {
    let plain = b"ddddddssssss\x08\x00payload";
    let five = b"ddddddssssss\x81\x00\x00\x05\x08\x00payload";
    let urgent = b"ddddddssssss\x81\x00\xe0\x05\x08\x00payload";
    assert_eq!(tagged(plain, Some(5)), five);
    assert_eq!(tagged(plain, None), plain);
    for (frame, vlan, through) in [
        (&plain[..], None, true),
        (plain, Some(5), false),
        (five, Some(5), true),
        (urgent, Some(5), true),
        (five, Some(6), false),
        (five, None, false),
        (b"short", None, false),
        (b"ddddddssssss\x81\x00\x00", Some(5), false),
    ] {
        assert_eq!(untagged(frame, vlan), through.then(|| plain.to_vec()), "{frame:?} in {vlan:?}");
    }
}
