//! Both ends of a conversation, over pipes: what a root lacks arrives there, and who lies is refused.

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::Result;
use nixos_install_via::progress::{Event, Progress, Silent};
use nixos_install_via::store::db::Database;
use nixos_install_via::store::path::StorePath;
use nixos_install_via::store::{closure, delta};
use nixos_install_via::wire::client::Client;
use nixos_install_via::wire::parcels::Parcels;
use nixos_install_via::wire::sending::Item;
use nixos_install_via::wire::server::{self, Place};

use crate::env::{System, TestEnv, in_root, later_system, small_system, text};
use crate::real_nix;

/// Counts what passes, and may cut it off.
struct Counted<T> {
    inner: T,
    passed: &'static AtomicU64,
    limit: u64,
}

impl<T: Write> Write for Counted<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.passed.fetch_add(bytes.len() as u64, Ordering::SeqCst) >= self.limit {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.inner.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn pipe() -> (PipeReader, PipeWriter) {
    io::pipe().unwrap()
}

/// A far end in a thread, and the near end; `sent` counts what the near end says, up to `limit`.
fn conversation(sent: &'static AtomicU64, limit: u64) -> Result<Client> {
    let ((far_input, near_output), (near_input, far_output)) = (pipe(), pipe());
    thread::spawn(move || server::serve(Place::Deployments, far_input, far_output));
    Client::greet(near_input, Counted { inner: near_output, passed: sent, limit }, None)
}

fn counter() -> &'static AtomicU64 {
    Box::leak(Box::default())
}

/// Copies a system to a root as a deployment does, and returns how many bytes that took.
fn copy(system: &System, root: &Path, limit: u64, deltas: bool, progress: &dyn Progress) -> Result<u64> {
    let sent = counter();
    let toplevel = StorePath::parse(&system.toplevel)?;
    let mut client = conversation(sent, limit)?;
    let facts = client.look(text(root), &toplevel)?;
    if facts.valid {
        return Ok(sent.load(Ordering::SeqCst));
    }
    let paths = closure::read(&system.root, &toplevel, &Silent)?.paths;
    let names = paths.iter().map(|info| info.path.clone()).collect();
    let lack = client.missing(names, false, progress)?;
    let database = Database::open(&system.root)?.unwrap();
    let wanted: Vec<_> = lack.paths.iter().map(|&index| paths[index].clone()).collect();
    let common: Vec<_> = lack
        .similar
        .iter()
        .filter_map(|theirs| {
            database.info(&theirs.path).unwrap().filter(|ours| ours.nar_hash == theirs.nar_hash)
        })
        .collect();
    let bases = if deltas { delta::bases(&wanted, &common) } else { Default::default() };
    let base = |path: &StorePath| {
        let base = bases.get(path)?;
        common.iter().find(|info| info.path == *base).cloned()
    };
    let items = wanted.into_iter().map(|info| Item { base: base(&info.path), info }).collect();
    let parcels = Parcels::new(&system.root, false)?;
    parcels.with_workers(|| client.send(items, &parcels, progress))?;
    Ok(sent.load(Ordering::SeqCst))
}

#[track_caller]
fn assert_arrived(system: &System, root: &Path) {
    real_nix::assert_clean(root);
    assert_eq!(real_nix::closure(root, &system.toplevel), real_nix::closure(&system.root, &system.toplevel));
}

/// Hears warnings.
#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Progress for Warnings {
    fn event(&self, event: Event) {
        if let Event::Warning { text } = event {
            self.0.lock().unwrap().push(text);
        }
    }
}

#[test]
fn what_is_missing_arrives_and_of_what_is_like_it_only_the_difference() {
    let env = TestEnv::new();
    let (first, root) = (small_system(env.path("source")), env.path("target"));
    fs::create_dir(&root).unwrap();
    let whole = copy(&first, &root, u64::MAX, true, &Silent).unwrap();
    assert_arrived(&first, &root);
    let nothing = copy(&first, &root, u64::MAX, true, &Silent).unwrap();
    assert!(nothing < 200, "{nothing} bytes to say that nothing is missing");

    let second = later_system(&first, 2, None, "x86_64-linux");
    let difference = copy(&second, &root, u64::MAX, true, &Silent).unwrap();
    assert_arrived(&second, &root);
    assert!(difference < whole, "{difference} bytes instead of {whole}");
}

#[test]
fn what_was_cut_off_goes_on_where_it_stopped() {
    let env = TestEnv::new();
    let (system, root) = (small_system(env.path("source")), env.path("target"));
    fs::create_dir(&root).unwrap();
    let reference = env.path("reference");
    fs::create_dir(&reference).unwrap();
    let whole = copy(&system, &reference, u64::MAX, true, &Silent).unwrap();
    for part in 1..8 {
        let error = copy(&system, &root, whole * part / 8, true, &Silent).expect_err("it was cut off");
        assert!(format!("{error:#}").contains("cut off"), "{error:#}");
        if root.join("nix/var/nix/db/db.sqlite").exists() {
            real_nix::assert_clean(&root);
        }
    }
    copy(&system, &root, u64::MAX, true, &Silent).unwrap();
    assert_arrived(&system, &root);
}

#[test]
fn a_base_that_is_damaged_costs_bytes_and_nothing_else() {
    let env = TestEnv::new();
    let (first, root) = (small_system(env.path("source")), env.path("target"));
    fs::create_dir(&root).unwrap();
    copy(&first, &root, u64::MAX, true, &Silent).unwrap();
    let second = later_system(&first, 2, None, "x86_64-linux");
    let path = StorePath::parse(&second.toplevel).unwrap();
    let warnings = Warnings::default();
    // The older toplevel is what the newer one is made from.
    let init = in_root(&root, &first.toplevel).join("init");
    fs::set_permissions(&init, fs::Permissions::from_mode(0o644)).unwrap();
    let text = fs::read_to_string(&init).unwrap();
    fs::write(&init, text.replace('e', "f")).unwrap();
    copy(&second, &root, u64::MAX, true, &warnings).unwrap();
    let warnings = warnings.0.into_inner().unwrap();
    assert!(warnings.iter().any(|text| text.contains(&path.to_string())), "{warnings:?}");
    assert_eq!(real_nix::closure(&root, &second.toplevel), real_nix::closure(&second.root, &second.toplevel));
    fs::write(&init, text).unwrap();
    fs::set_permissions(&init, fs::Permissions::from_mode(0o555)).unwrap();
    nix::sys::stat::utimes(&init, &nix::sys::time::TimeVal::new(1, 0), &nix::sys::time::TimeVal::new(1, 0))
        .unwrap();
    assert_arrived(&second, &root);
}

#[test]
fn a_damaged_source_is_told_and_nothing_becomes_valid_that_is_not() {
    let env = TestEnv::new();
    let (system, root) = (small_system(env.path("source")), env.path("target"));
    fs::create_dir(&root).unwrap();
    let init = in_root(&system.root, &system.toplevel).join("init");
    fs::set_permissions(&init, fs::Permissions::from_mode(0o644)).unwrap();
    let text = fs::read_to_string(&init).unwrap();
    fs::write(&init, text.replace('e', "f")).unwrap();
    let error = copy(&system, &root, u64::MAX, true, &Silent).expect_err("it is damaged");
    assert!(format!("{error:#}").contains(&format!("{} is damaged", system.toplevel)), "{error:#}");
    assert!(!Database::open(&root).unwrap().is_some_and(|database| {
        database.info(&StorePath::parse(&system.toplevel).unwrap()).unwrap().is_some()
    }));
}

/// What a far end says to a near end that only listens, or the other way round.
fn lies() -> Vec<Vec<u8>> {
    let mut lies = vec![
        Vec::new(),
        b"Welcome to example.org!\n".to_vec(),
        vec![0xff; 64],
        vec![0; 64],
        b"\x01\0\0\0\x07".to_vec(),
        b"\xff\xff\xff\x7f\x00".to_vec(),
    ];
    // Every first byte of a message, with an absurd length behind it.
    lies.extend((0..32).map(|kind| vec![7, 0, 0, 0, 0, kind, 0xff, 0xff, 0xff, 0xff, 0x0f]));
    lies
}

#[test]
fn who_lies_is_refused_at_either_end() {
    for lie in lies() {
        let mut said = Vec::new();
        // An end that has said nothing has done no wrong.
        assert_eq!(
            server::serve(Place::Deployments, &lie[..], &mut said).is_err(),
            !lie.is_empty(),
            "{lie:?}"
        );
        assert!(said.len() < 1000);
        assert!(Client::greet(io::Cursor::new(lie.clone()), io::sink(), None).is_err(), "{lie:?}");
    }
    let mut endless = io::repeat(b'x').take(1 << 30);
    assert!(server::serve(Place::Deployments, &mut endless, io::sink()).is_err());
    assert!(endless.limit() > (1 << 30) - (1 << 20), "it was listened to for too long");
}
