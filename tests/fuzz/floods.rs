//! An end that says far too much: what the other holds of it stays small.

use std::io::{self, Cursor, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use nixos_install_via::progress::{Event, Progress};
use nixos_install_via::wire::VERSION;
use nixos_install_via::wire::client::Client;
use nixos_install_via::wire::frame::{DATA_LIMIT, MESSAGE_LIMIT, Writer, decode};
use nixos_install_via::wire::message::{Answer, Ask};
use nixos_install_via::wire::server::{self, Place};

use super::memory::alone;
use super::targets::info;
use super::{KIB, MIB, wait};

/// Tells when all of a text has been read.
struct Watched(Cursor<Vec<u8>>, Arc<AtomicBool>);

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.store(self.0.position() == self.0.get_ref().len() as u64, Ordering::SeqCst);
        Ok(count)
    }
}

/// Hears nothing more until all has been said.
struct Slow(Arc<AtomicBool>, Mutex<usize>);

impl Progress for Slow {
    fn event(&self, event: Event) {
        if let Event::Output { line, .. } = event {
            assert!(line.len() < 10 * KIB);
            *self.1.lock().unwrap() += 1;
        }
        wait::until("all is listened to", || self.0.load(Ordering::SeqCst).then_some(()));
    }
}

#[test]
fn what_waits_to_be_heard_is_bounded() {
    let alone = alone();
    let mut said = Vec::new();
    let mut writer = Writer(&mut said);
    writer.message(&Answer::Hello { version: VERSION, program: vec![] }).unwrap();
    let line = "x".repeat(MESSAGE_LIMIT - KIB);
    for _ in 0..20 {
        writer.message(&Answer::Output { program: "sh".into(), line: line.clone() }).unwrap();
    }
    drop(line);
    assert!(said.len() < 100 * KIB, "it costs {} bytes", said.len());
    let read = Arc::new(AtomicBool::new(false));
    let slow = Slow(read.clone(), Mutex::new(0));
    let (error, peak) = alone.measured(|| {
        let mut client = Client::greet(Watched(Cursor::new(said), read), io::sink(), None).unwrap();
        client.confirm("00", &slow).unwrap_err()
    });
    assert!(error.to_string().contains("cut off"), "{error:#}");
    assert_eq!(*slow.1.lock().unwrap(), 20);
    // One of them packed, unpacked and read.
    assert!(peak < 3 * MESSAGE_LIMIT, "{} MiB", peak / MIB);
}

#[test]
fn lists_of_nothing_do_not_grow() {
    let alone = alone();
    let long = &[0xff, 0xff, 0xff, 0x07][..];
    let nothing = vec![0; MESSAGE_LIMIT - 200];
    let known = info("old");
    // All of what is known of a path but the outputs, which come last.
    let mut encoded = Vec::new();
    Writer(&mut encoded).message(&Ask::Receive { paths: vec![known] }).unwrap();
    let known = &encoded[5..encoded.len() - 1];
    for message in [
        [&[2][..], long, &nothing].concat(),
        [known, long, &nothing].concat(),
        [&[3][..], long, &nothing].concat(),
    ] {
        let (refused, peak) =
            alone.measured(|| decode::<Ask>(&message).is_err() && decode::<Answer>(&message).is_err());
        assert!(refused);
        assert!(peak < 4 * MIB, "{} MiB", peak / MIB);
    }
}

/// Frames of data without an end, or nearly.
struct Endless {
    head: Cursor<Vec<u8>>,
    frame: Vec<u8>,
    at: usize,
    left: usize,
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.head.read(buffer)? {
            0 if self.left == 0 => Ok(0),
            0 => {
                let count = (&self.frame[self.at..]).read(buffer)?;
                self.at += count;
                if self.at == self.frame.len() {
                    (self.at, self.left) = (0, self.left - 1);
                }
                Ok(count)
            }
            count => Ok(count),
        }
    }
}

#[test]
fn data_without_an_end_are_not_kept() {
    let alone = alone();
    let root = tempfile::tempdir().unwrap();
    let mut head = Vec::new();
    let mut writer = Writer(&mut head);
    writer.message(&Ask::Hello { version: VERSION }).unwrap();
    let system = info("old").path;
    writer.message(&Ask::Look { root: root.path().to_str().unwrap().into(), system }).unwrap();
    let mut only = info("old");
    only.references.clear();
    writer.message(&Ask::Receive { paths: vec![only] }).unwrap();
    writer.message(&Ask::Nar { index: 0, base: None }).unwrap();
    let mut frame = Vec::new();
    Writer(&mut frame).data(&[7; DATA_LIMIT]).unwrap();
    let endless = Endless { head: Cursor::new(head), frame, at: 0, left: 1000 };
    let (served, peak) = alone.measured(|| server::serve(Place::Deployments, endless, io::sink()));
    assert!(served.is_err());
    assert!(peak < 16 * MIB, "{} MiB", peak / MIB);
}
