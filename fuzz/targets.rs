//! What is fuzzed: one function for each kind of input that somebody else has written.
//!
//! Each takes any bytes, says whether they are what they should be, and panics on what must never be.
//! cargo-fuzz runs them as long as one likes, and `tests/fuzz` for a bounded time with every change.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nixos_install_via::manifest;
use nixos_install_via::size::Bytes;
use nixos_install_via::store::daemon::{Daemon, Signatures, Substitute};
use nixos_install_via::store::delta::{self, Archive, Base, Rewriting};
use nixos_install_via::store::hash::NarHash;
use nixos_install_via::store::path::StorePath;
use nixos_install_via::store::{PathInfo, nar, tree};
use nixos_install_via::wire::frame::{self, Frame, Incoming, Reader};
use nixos_install_via::wire::message::{Answer, Ask};
use tempfile::TempDir;

/// What the other end of a conversation says: frames, and data behind each message.
pub fn frames(bytes: &[u8]) -> Result<()> {
    let mut reader = Reader(bytes);
    while let Some(frame) = reader.frame()? {
        match frame {
            Frame::Message(message) => assert!(message.len() <= frame::MESSAGE_LIMIT),
            Frame::Data(piece) => assert!(piece.len() <= frame::DATA_LIMIT),
            Frame::End => (),
        }
    }
    let mut reader = Reader(bytes);
    while reader.frame()?.is_some() {
        let mut incoming = Incoming::new(&mut reader);
        let mut buffer = [0; 1000];
        while let Ok(1..) = incoming.read(&mut buffer) {}
    }
    Ok(())
}

/// A message out of a frame; which end says it does not matter.
pub fn messages(bytes: &[u8]) -> Result<()> {
    let again = |written: &mut dyn FnMut(&mut frame::Writer<&mut Vec<u8>>) -> Result<()>| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        written(&mut frame::Writer(&mut bytes))?;
        match Reader(&bytes[..]).frame()? {
            Some(Frame::Message(message)) => Ok(message),
            other => bail!("a message was written as {other:?}"),
        }
    };
    match (frame::decode::<Ask>(bytes), frame::decode::<Answer>(bytes)) {
        (Err(error), Err(_)) => return Err(error),
        (ask, answer) => {
            if let Ok(ask) = ask {
                assert_eq!(frame::decode::<Ask>(&again(&mut |writer| writer.message(&ask))?)?, ask);
            }
            if let Ok(answer) = answer {
                assert_eq!(frame::decode::<Answer>(&again(&mut |writer| writer.message(&answer))?)?, answer);
            }
        }
    }
    Ok(())
}

/// An archive, restored below a directory and read again.
pub fn nar(bytes: &[u8]) -> Result<()> {
    let dir = tempfile::tempdir().context("making a directory")?;
    let open = || File::open(dir.path()).context("opening a directory");
    let name = OsStr::new("object");
    let restored = nar::restore(bytes, open()?.into(), name);
    let entries = fs::read_dir(dir.path()).context("reading a directory")?;
    assert!(entries.flatten().all(|entry| entry.file_name() == name), "it was written beside its place");
    if restored.is_ok() {
        let mut stream = nar::NarStream::new(open()?, name, nar::Nothing);
        let mut again = vec![0; bytes.len() + 1];
        let count = stream.pull(&mut again)?;
        assert!(again[..count] == *bytes, "what was restored is another archive");
    }
    // Directories in it may not be written, which keeps nobody but root from removing what they hold.
    tree::remove(open()?.as_fd(), c"object")?;
    restored
}

/// What a module has written about a system.
pub fn manifest(bytes: &[u8]) -> Result<()> {
    let text = str::from_utf8(bytes).context("it is not UTF-8")?;
    manifest::parse(text)?;
    Ok(())
}

/// A delta behind the size, as a little-endian u32, of what it makes; with a base and without.
pub fn delta(bytes: &[u8]) -> Result<()> {
    const SIZE_LIMIT: u32 = 1 << 24;
    let (size, delta) = bytes.split_first_chunk().context("it is too short")?;
    let size = u64::from(u32::from_le_bytes(*size) % SIZE_LIMIT);
    let made = |base: Option<&Base>| {
        let mut out = Bounded(size);
        let made = delta::decode(&mut &delta[..], base, size, &tempfile::tempfile, &mut out);
        assert!(made.is_err() || out.0 == 0, "it is shorter than it was said to be");
        made
    };
    let with = BASE.with(|(_, archive, rewriting)| made(Some(&Base { archive, rewriting })));
    made(None).or(with)
}

/// Takes so many bytes and no more.
struct Bounded(u64);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len() as u64).expect("it is longer than it was said to be");
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

thread_local! {
    /// The store object that deltas are made from, and how it is rewritten. Gone with its thread.
    pub static BASE: (TempDir, Archive, Rewriting) = {
        let dir = tempfile::tempdir().expect("there is room for a few KiB");
        let archive = object(dir.path(), "old").expect("there is room for a few KiB");
        (dir, archive, Rewriting::between(&info("old"), &info("new")))
    };
}

/// Makes the object before or after a rebuild in a directory.
pub fn object(dir: &Path, age: &str) -> Result<Archive> {
    let tree = dir.join(age);
    let own = info(age);
    fs::create_dir_all(tree.join("bin")).context("making a tree")?;
    let script = format!("#!{}/bin/sh\nexec {}/bin/run\n", own.references[0], own.path);
    fs::write(tree.join("bin/script"), script.repeat(20)).context("making a tree")?;
    let numbers: Vec<u8> = (0..1000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    fs::write(tree.join("numbers"), numbers).context("making a tree")?;
    fs::write(tree.join("age"), age.repeat(700)).context("making a tree")?;
    symlink(own.references[0].to_string(), tree.join("link")).context("making a tree")?;
    let root = File::open(dir).context("opening a tree")?;
    Archive::of(root.into(), OsStr::new(age))
}

/// Returns what is known of a store path before or after a rebuild.
pub fn info(age: &str) -> PathInfo {
    let path = |letter: &str, name: &str| {
        StorePath::from_base_name(&format!("{}-{name}", letter.repeat(32))).expect("it is a store path")
    };
    let (own, shell) = if age == "old" { ("a", "c") } else { ("b", "d") };
    PathInfo {
        path: path(own, "tool-1.0"),
        nar_hash: NarHash([7; 32]),
        nar_size: Bytes(8),
        references: vec![path(shell, "shell-5.2")],
        deriver: None,
        registration_time: 0,
        ultimate: false,
        signatures: None,
        content_address: None,
        outputs: Vec::new(),
    }
}

/// What a Nix daemon says: pieces, each a little-endian u16 of how long it is and the bytes. The next
/// one comes whenever the client waits, for what comes before it was asked for is refused.
pub fn daemon(bytes: &[u8]) -> Result<()> {
    let (ours, theirs) = UnixStream::pair().context("making a connection")?;
    let client = fs::read_link("/proc/thread-self").context("finding this thread")?;
    let client = Path::new("/proc").join(client).join("stat");
    thread::scope(|scope| {
        scope.spawn(|| answer(theirs, bytes, &client));
        converse(ours)
    })
}

fn answer(mut client: UnixStream, mut bytes: &[u8], stat: &Path) {
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let (piece, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
        while !fs::read_to_string(stat).expect("the thread is there").contains(") S ") {
            thread::sleep(Duration::from_micros(10));
        }
        if client.write_all(piece).is_err() {
            return;
        }
        bytes = rest;
    }
}

fn converse(connection: UnixStream) -> Result<()> {
    let output = connection.try_clone().context("making a connection")?;
    let heard = |line: &str| assert!(!line.contains(char::is_control), "{line:?} reaches the terminal");
    let mut daemon = Daemon::over(connection.into(), output.into(), heard)?;
    let info = info("new");
    let valid = daemon.is_valid_path(&info.path)?;
    let known = daemon.query_path_info(&info.path)?;
    ensure!(valid == known.is_some(), "it knows what is not valid");
    let paths = [&info.path, &info.references[0]];
    daemon.query_valid_paths(paths, Substitute::No)?;
    let nar = &mut |_: &PathInfo, sink: &mut dyn Write| Ok(sink.write_all(&[0; 8])?);
    daemon.add_multiple_to_store(&[info], Signatures::Waive, nar)?;
    Ok(())
}
