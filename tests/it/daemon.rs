//! New store paths through real Nix daemons, and what a garbage collection does to them meanwhile.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use nixos_install_via::progress::Silent;
use nixos_install_via::size::Bytes;
use nixos_install_via::store::copy::open_store;
use nixos_install_via::store::daemon::{Daemon, DaemonError, Signatures, Substitute, Trust};
use nixos_install_via::store::delta::{self, Archive};
use nixos_install_via::store::hash::NarHash;
use nixos_install_via::store::path::StorePath;
use nixos_install_via::store::{PathInfo, closure};

use crate::env::{System, TestEnv, in_root, small_system};
use crate::real_nix;
use crate::wait;

// Root without build users, and nothing from the network.
const CONFIG: &str = "build-users-group =\nsubstituters =\nsandbox = false\n";

/// The real daemon, about to run on a root.
fn daemon_of(root: &Path) -> Command {
    let mut command = Command::new("nix-daemon");
    command.env("NIX_CONFIG", CONFIG).env("NIX_REMOTE", real_nix::store(root));
    command.stderr(Stdio::null());
    command
}

fn connect(root: &Path) -> Daemon<'static> {
    Daemon::start(daemon_of(root).arg("--stdio"), |_| ()).unwrap_or_else(|error| panic!("{error:#}"))
}

fn paths_of(system: &System) -> Vec<PathInfo> {
    let toplevel = StorePath::parse(&system.toplevel).unwrap();
    closure::read(&system.root, &toplevel, &Silent).unwrap().paths
}

fn send(daemon: &mut Daemon, paths: &[PathInfo], from: &Path) -> Result<usize> {
    daemon.add_multiple_to_store(paths, Signatures::Waive, &mut |info, sink| write_nar(from, info, sink))
}

fn write_nar(root: &Path, info: &PathInfo, sink: &mut dyn Write) -> Result<()> {
    let archive = Archive::of(open_store(root)?, OsStr::new(info.path.base_name()))?;
    let mut packed = Vec::new();
    delta::encode(&archive, None, 3, &mut packed)?;
    delta::decode(&mut &packed[..], None, archive.size(), &tempfile::tempfile, sink)
}

#[track_caller]
fn assert_arrived(system: &System, root: &Path) {
    real_nix::assert_clean(root);
    assert_eq!(real_nix::closure(root, &system.toplevel), real_nix::closure(&system.root, &system.toplevel));
    let told = |root: &Path| {
        let (dump, mut json) = real_nix::registration(root, &system.toplevel);
        for info in json.as_array_mut().unwrap() {
            // What is built elsewhere is not as trusted as what is built here.
            info.as_object_mut().unwrap().remove("ultimate");
        }
        (dump, json)
    };
    assert_eq!(told(root), told(&system.root));
    assert_eq!(real_nix::objects(root), real_nix::closure(root, &system.toplevel));
    for object in real_nix::objects(root) {
        assert_canonical(&in_root(root, &object));
    }
}

#[track_caller]
fn assert_canonical(path: &Path) {
    let meta = path.symlink_metadata().unwrap();
    let mode = meta.mode() & 0o7777;
    assert!(meta.is_symlink() || mode == 0o555 || (mode == 0o444 && meta.is_file()), "{path:?}: {mode:o}");
    assert_eq!((meta.mtime(), meta.uid(), meta.gid()), (1, 0, 0), "{path:?}");
    if meta.is_dir() {
        path.read_dir().unwrap().for_each(|entry| assert_canonical(&entry.unwrap().path()));
    }
}

#[test]
fn a_system_arrives_through_a_daemon_as_nix_would_have_it() {
    let env = TestEnv::new();
    let (system, root) = (small_system(env.path("source")), env.path("target"));
    let mut paths = paths_of(&system);
    // As a cache has them.
    let deriver = format!("/nix/store/{}-busybox.drv", "d".repeat(32));
    paths[0].deriver = Some(deriver.clone());
    paths[0].signatures = Some("cache-1:c2lnbmF0dXJl cache-2:c2lnbmF0dXJl".into());
    let mut daemon = connect(&root);
    assert_ne!(daemon.greeting().trust, Trust::NotTrusted, "{:?}", daemon.greeting());
    let all = || paths.iter().map(|info| &info.path);
    assert!(daemon.query_valid_paths(all(), Substitute::No).unwrap().is_empty());
    assert_eq!(daemon.query_path_info(&paths[0].path).unwrap(), None);

    assert_eq!(send(&mut daemon, &paths, &system.root).unwrap(), paths.len());
    assert_eq!(daemon.query_valid_paths(all(), Substitute::No).unwrap(), all().cloned().collect());
    for info in &paths {
        assert!(daemon.is_valid_path(&info.path).unwrap());
        let told = daemon.query_path_info(&info.path).unwrap().expect("it is valid");
        let registration_time = told.registration_time;
        assert_eq!(told, PathInfo { ultimate: false, registration_time, ..info.clone() });
    }

    assert_eq!(send(&mut daemon, &paths, &system.root).unwrap(), 0, "all are there");
    drop(daemon);
    let (dump, json) = real_nix::registration(&root, &paths[0].path.to_string());
    assert!(dump.contains(&deriver), "{dump}");
    assert_eq!(json[0]["signatures"].as_array().unwrap().len(), 2, "{json}");
}

#[test]
fn what_arrived_is_to_nix_what_was_sent_also_in_two_parts() {
    let env = TestEnv::new();
    let (system, root) = (small_system(env.path("source")), env.path("target"));
    let paths = paths_of(&system);
    let mut daemon = connect(&root);
    assert_eq!(send(&mut daemon, &paths[..2], &system.root).unwrap(), 2);
    assert_eq!(send(&mut daemon, &paths, &system.root).unwrap(), paths.len() - 2);
    drop(daemon);
    assert_arrived(&system, &root);
}

#[test]
fn what_somebody_else_adds_meanwhile_costs_a_second_look_at_most() {
    let env = TestEnv::new();
    let (system, root) = (small_system(env.path("source")), env.path("target"));
    let paths = paths_of(&system);
    let theirs = paths.iter().rposition(|info| info.references.is_empty()).unwrap();
    let (mut daemon, mut somebody) = (connect(&root), connect(&root));
    let mut nar = |info: &PathInfo, sink: &mut dyn Write| {
        send(&mut somebody, &paths[theirs..=theirs], &system.root)?;
        write_nar(&system.root, info, sink)
    };
    // Some daemons leave the NAR of a valid path unread, and stumble over it.
    if let Err(error) = daemon.add_multiple_to_store(&paths, Signatures::Waive, &mut nar) {
        assert!(matches!(error.downcast_ref(), Some(DaemonError::Said(_))), "{error:#}");
        let missing = daemon.add_multiple_to_store(&paths, Signatures::Waive, &mut nar).unwrap();
        assert_eq!(missing, paths.len() - theirs - 1, "all up to theirs are there");
    }
    assert!(theirs > 0);
    drop((daemon, somebody));
    assert_arrived(&system, &root);
}

/// A daemon that listens on a socket, gone with the value.
struct Listening {
    child: Child,
    socket: PathBuf,
}

impl Listening {
    fn new(root: &Path, socket: PathBuf) -> Listening {
        let child = daemon_of(root).env("NIX_DAEMON_SOCKET_PATH", &socket).spawn();
        let mut listening = Listening { child: child.expect("nix-daemon is installed"), socket };
        wait::until("nix-daemon listens", || {
            assert!(listening.child.try_wait().unwrap().is_none(), "nix-daemon has ended");
            listening.socket.exists().then_some(())
        });
        listening
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_daemon_with_a_socket_does_the_same() {
    let env = TestEnv::new();
    let (system, root) = (small_system(env.path("source")), env.path("target"));
    // The build directory may be too deep for a socket's name.
    let dir = tempfile::tempdir().unwrap();
    let listening = Listening::new(&root, dir.path().join("socket"));
    let mut daemon = Daemon::connect(&listening.socket, |_| ()).unwrap_or_else(|error| panic!("{error:#}"));
    send(&mut daemon, &paths_of(&system), &system.root).unwrap();
    drop(daemon);
    assert_arrived(&system, &root);
    drop(listening);
    let error = Daemon::connect(&dir.path().join("none"), |_| ()).err().expect("nobody listens");
    assert!(format!("{error:#}").starts_with("connecting to the Nix daemon at "), "{error:#}");
}

#[test]
fn a_lasting_root_outlives_the_connection() {
    let env = TestEnv::new();
    let (system, root) = (small_system(env.path("source")), env.path("target"));
    let link = env.path("link");
    std::os::unix::fs::symlink(&system.toplevel, &link).unwrap();
    let mut daemon = connect(&root);
    send(&mut daemon, &paths_of(&system), &system.root).unwrap();
    daemon.add_indirect_root(&link).unwrap();
    drop(daemon);
    real_nix::collect_garbage(&root);
    assert_arrived(&system, &root);
    std::fs::remove_file(link).unwrap();
    real_nix::collect_garbage(&root);
    assert!(real_nix::objects(&root).is_empty());
}

#[test]
fn what_is_not_as_it_is_said_to_be_does_not_become_valid() {
    let env = TestEnv::new();
    let (system, root) = (small_system(env.path("source")), env.path("target"));
    let paths = paths_of(&system);
    let sender = |sent: &[PathInfo], daemon: &mut Daemon| {
        // Sends what is there, as somebody would who does not look.
        daemon.add_multiple_to_store(sent, Signatures::Waive, &mut |info, sink| {
            let truth = paths.iter().find(|path| path.path == info.path).unwrap();
            write_nar(&system.root, truth, sink)
        })
    };
    let mut daemon = connect(&root);
    let damaged = [paths[0].clone(), PathInfo { nar_hash: NarHash([7; 32]), ..paths[1].clone() }];
    let error = sender(&damaged, &mut daemon).unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(DaemonError::Said(words)) if words.contains("hash mismatch")),
        "{error:#}"
    );
    assert!(daemon.is_valid_path(&paths[0].path).unwrap(), "it came before the error");
    assert!(!daemon.is_valid_path(&paths[1].path).unwrap());

    let toplevel = paths.last().unwrap();
    let error = sender(std::slice::from_ref(toplevel), &mut daemon).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(DaemonError::Said(_))), "{error:#}");
    assert!(!daemon.is_valid_path(&toplevel.path).unwrap());

    let small = [PathInfo { nar_size: Bytes(8), ..paths[1].clone() }];
    let error = sender(&small, &mut daemon).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(DaemonError::Size { .. })), "{error:#}");

    // The connection has outlived it all.
    assert_eq!(send(&mut daemon, &paths, &system.root).unwrap(), paths.len() - 1);
    drop(daemon);
    assert_arrived(&system, &root);
}

#[test]
fn a_source_that_ends_early_leaves_nothing_valid_and_no_daemon_waiting() {
    let env = TestEnv::new();
    let (system, root) = (small_system(env.path("source")), env.path("target"));
    let paths = paths_of(&system);
    let mut daemon = connect(&root);
    let mut stop = |_: &PathInfo, sink: &mut dyn Write| {
        sink.write_all(&[0; 64])?;
        anyhow::bail!("the other end is gone")
    };
    let error = daemon.add_multiple_to_store(&paths, Signatures::Waive, &mut stop).unwrap_err();
    assert!(format!("{error:#}").ends_with("the other end is gone"), "{error:#}");
    assert!(daemon.query_valid_paths(paths.iter().map(|i| &i.path), Substitute::No).unwrap().is_empty());
    send(&mut daemon, &paths, &system.root).unwrap();
}

#[test]
fn paths_on_their_way_survive_every_garbage_collection_and_go_after_it() {
    let env = TestEnv::new();
    let (system, root) = (small_system(env.path("source")), env.path("target"));
    let paths = paths_of(&system);
    let objects = || real_nix::objects(&root).len();
    // One is there before, with nobody to keep it but our question about it.
    let mut earlier = connect(&root);
    send(&mut earlier, &paths[..1], &system.root).unwrap();
    let (stop, collections) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                real_nix::collect_garbage(&root);
                collections.fetch_add(1, Ordering::Relaxed);
            }
        });
        let wait = |more: usize| {
            let goal = collections.load(Ordering::Relaxed) + more;
            while collections.load(Ordering::Relaxed) < goal {
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        for _ in 0..3 {
            let mut daemon = connect(&root);
            daemon.add_temp_roots(paths.iter().map(|info| &info.path)).unwrap();
            drop(std::mem::replace(&mut earlier, connect(&root)));
            wait(2);
            // One after the other, with collections in between, while nothing refers to the newest.
            for info in &paths {
                send(&mut daemon, std::slice::from_ref(info), &system.root).unwrap();
                wait(1);
            }
            wait(2);
            assert_eq!(objects(), paths.len(), "kept by the connection alone");
            drop(daemon);
            wait(2);
            assert_eq!(objects(), 0, "nothing keeps them any more");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(collections.load(Ordering::Relaxed) > 20);
}
