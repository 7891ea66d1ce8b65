//! Copies, beside what Nix itself restores, and what is done about a disk that is full or a run that was killed.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::progress::Silent;
use crate::store::closure::{self, Closure};
use crate::store::testing::Nix;
use crate::store::{db, verify};

const STAGED: &str = "nix/store/.install-via-staging";

fn source() -> (Nix, Closure) {
    let nix = Nix::new();
    let system = nix.fill();
    let closure = closure::read(nix.root(), &system, &Silent).unwrap();
    (nix, closure)
}

fn named<'a>(closure: &'a Closure, name: &str) -> &'a StorePath {
    &closure.paths.iter().find(|info| info.path.name() == name).unwrap().path
}

/// Makes a file of the source writable to its content without a trace in its metadata.
fn tamper(file: &Path) {
    let file = fs::OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(b"!", 0).unwrap();
    file.set_times(
        fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1)),
    )
    .unwrap();
}

fn staged_nothing(to: &Nix) {
    assert!(!to.root().join(STAGED).exists(), "the staging directory is left");
}

#[test]
fn nix_finds_a_clone_as_sound_as_its_original() {
    let (from, closure) = source();
    let to = Nix::new();
    let copied = super::closure(&closure.paths, from.root(), to.root(), &Silent).unwrap();
    assert_eq!(copied, Copied { copied: closure.paths.len(), kept: 0, bytes: closure.size() });
    staged_nothing(&to);
    let meta = fs::metadata(to.root().join("nix/store")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.gid()), (STORE_MODE, BUILD_USERS));

    db::register(to.root(), &closure.paths, 5).unwrap();
    to.assert_sound();
    let system = closure.system.to_string();
    let sorted = |nix: &Nix, args: [&str; 2]| {
        let text = nix.store(args);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&to, ["-qR", &system]), sorted(&from, ["-qR", &system]));
    // --dump-db tells hash, size, deriver and references.
    let rows = |nix: &Nix| {
        let paths: Vec<String> = closure.paths.iter().map(|info| info.path.to_string()).collect();
        nix.store(["--dump-db"].into_iter().chain(paths.iter().map(String::as_str)))
    };
    assert_eq!(rows(&to), rows(&from));
    let again = closure::read(to.root(), &closure.system, &Silent).unwrap();
    let timeless = |closure: &Closure| -> Vec<PathInfo> {
        closure.paths.iter().map(|info| PathInfo { registration_time: 0, ..info.clone() }).collect()
    };
    assert_eq!(timeless(&again), timeless(&closure));
    assert_eq!(verify::root(to.root(), &Silent).unwrap().damaged, []);

    fs::create_dir_all(to.root().join("nix/var/nix/gcroots")).unwrap();
    std::os::unix::fs::symlink(&system, to.root().join("nix/var/nix/gcroots/system")).unwrap();
    to.store(["--gc"]);
    to.assert_sound();
    assert_eq!(sorted(&to, ["-qR", &system]), sorted(&from, ["-qR", &system]));
}

#[test]
fn zeros_become_holes() {
    let (from, closure) = source();
    let to = Nix::new();
    super::closure(&closure.paths, from.root(), to.root(), &Silent).unwrap();
    let tricky = named(&closure, "tricky").in_root(to.root());
    for (name, size, most) in [("zeros", 3 << 20, 128), ("only-zeros", 1 << 20, 0)] {
        let meta = fs::metadata(tricky.join(name)).unwrap();
        assert!(meta.len() == size && meta.blocks() <= most, "{name} takes {} blocks", meta.blocks());
    }
}

#[test]
fn files_shared_by_optimisation_stay_shared_within_and_across_paths() {
    let (from, closure) = source();
    from.store(["--optimise"]);
    let original = fs::metadata(named(&closure, "twin").in_root(from.root()).join("shared")).unwrap();
    assert_eq!(original.nlink(), 4, "three users and .links");
    let to = Nix::new();
    super::closure(&closure.paths, from.root(), to.root(), &Silent).unwrap();
    db::register(to.root(), &closure.paths, 5).unwrap();
    to.assert_sound();
    let inode = |path: &str, file: &str| {
        let meta = fs::metadata(named(&closure, path).in_root(to.root()).join(file)).unwrap();
        assert_eq!(meta.nlink(), 3, "{path}/{file}");
        meta.ino()
    };
    assert_eq!(inode("twin", "shared"), inode("twin", "again"));
    assert_eq!(inode("twin", "shared"), inode("other", "elsewhere"));
    assert_eq!(verify::root(to.root(), &Silent).unwrap().damaged, []);
}

#[test]
fn one_changed_byte_stops_the_copy_and_names_the_path() {
    let (from, closure) = source();
    let twin = named(&closure, "twin");
    tamper(&twin.in_root(from.root()).join("again"));
    let to = Nix::new();
    let error = super::closure(&closure.paths, from.root(), to.root(), &Silent).unwrap_err();
    match error.downcast_ref() {
        Some(CopyError::Corrupted { path, .. }) => assert_eq!(path, twin),
        _ => panic!("{error:#}"),
    }
    assert!(!twin.in_root(to.root()).exists());
    staged_nothing(&to);
    let damaged = verify::root(from.root(), &Silent).unwrap().damaged;
    assert_eq!(damaged.len(), 1);
    assert_eq!((damaged[0].path.clone(), &damaged[0].what), (twin.to_string(), &verify::What::Damaged));
}

#[test]
fn what_the_source_lacks_or_cannot_hold_is_named() {
    let (from, closure) = source();
    let plain = named(&closure, "plain");
    fs::remove_file(plain.in_root(from.root())).unwrap();
    let to = Nix::new();
    let error = super::closure(&closure.paths, from.root(), to.root(), &Silent).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&CopyError::Missing { path: plain.clone() }), "{error:#}");
    staged_nothing(&to);

    // Another target: what the first one got before it failed would be kept, and not read again.
    let ((from, closure), to) = (source(), Nix::new());
    let twin = named(&closure, "twin").in_root(from.root());
    let _socket = std::os::unix::net::UnixListener::bind(twin.join("zz")).unwrap();
    let error = super::closure(&closure.paths, from.root(), to.root(), &Silent).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("-twin/zz") && text.contains("socket"), "{text}");
    assert!(matches!(error.downcast_ref(), Some(NarError::OddFile(..))), "{text}");
}

#[test]
fn a_second_run_keeps_what_is_right_and_replaces_what_is_not() {
    let (from, closure) = source();
    let to = Nix::new();
    super::closure(&closure.paths, from.root(), to.root(), &Silent).unwrap();
    let at = |name: &str| named(&closure, name).in_root(to.root());
    // Cut off by a power failure: a file without its bytes, a path half there, a wrong time, a wrong
    // mode, something else in a path's place, and a staging directory nobody removed.
    fs::write(at("plain"), "").unwrap();
    fs::remove_file(at("tricky").join("case")).unwrap();
    tamper(&at("twin").join("shared"));
    fs::set_permissions(at("other").join("elsewhere"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::remove_file(at("link")).unwrap();
    fs::create_dir(at("link")).unwrap();
    fs::create_dir_all(to.root().join(STAGED).join("half/of/it")).unwrap();
    fs::write(to.root().join("nix/store/stranger"), "not ours").unwrap();
    let copied = super::closure(&closure.paths, from.root(), to.root(), &Silent).unwrap();
    assert_eq!((copied.copied, copied.kept), (5, closure.paths.len() - 5));
    staged_nothing(&to);
    assert!(to.root().join("nix/store/stranger").exists());
    db::register(to.root(), &closure.paths, 5).unwrap();
    assert_eq!(verify::root(to.root(), &Silent).unwrap().damaged, []);
    to.assert_sound();
    let copied = super::closure(&closure.paths, from.root(), to.root(), &Silent).unwrap();
    assert_eq!(copied, Copied { copied: 0, kept: closure.paths.len(), bytes: Bytes(0) });
}

#[test]
fn a_strict_umask_and_an_inherited_access_list_change_nothing() {
    const CHILD: &str = "NIXOS_INSTALL_VIA_TEST_UMASK";
    let Some(to) = std::env::var_os(CHILD) else {
        // The umask belongs to the whole process, so the copy runs in one of its own.
        let to = Nix::new();
        let store = to.root().join("nix/store");
        fs::create_dir_all(&store).unwrap();
        fs::set_permissions(&store, fs::Permissions::from_mode(0o2755)).unwrap();
        let name = "store::copy::tests::a_strict_umask_and_an_inherited_access_list_change_nothing";
        let status = Command::new("/bin/sh")
            .args([
                "-c",
                "umask 077; exec \"$0\" \"$@\" --exact",
                std::env::current_exe().unwrap().to_str().unwrap(),
            ])
            .arg(name)
            .env(CHILD, to.root())
            .status();
        assert!(status.unwrap().success());
        return;
    };
    let to = PathBuf::from(to);
    let (from, closure) = source();
    super::closure(&closure.paths, from.root(), &to, &Silent).unwrap();
    db::register(&to, &closure.paths, 5).unwrap();
    assert_eq!(verify::root(&to, &Silent).unwrap().damaged, []);
    for (name, mode) in
        [("nix/var/nix/db", 0o755), ("nix/var/nix/db/db.sqlite", 0o644), ("nix/var/nix/db/schema", 0o644)]
    {
        assert_eq!(fs::metadata(to.join(name)).unwrap().mode() & 0o7777, mode, "{name}");
    }
}

#[test]
fn a_full_disk_is_told_with_the_file_and_leaves_no_temporary_directory() {
    let (from, closure) = source();
    let to = Nix::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use nix::mount::{MsFlags, mount};
            const NONE: Option<&str> = None;
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("the tests run as root");
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
            mount(NONE, to.root(), Some("tmpfs"), MsFlags::empty(), Some("size=100k")).unwrap();
            let error = super::closure(&closure.paths, from.root(), to.root(), &Silent).unwrap_err();
            let text = format!("{error:#}");
            assert!(text.contains("No space left") && text.contains("copying /nix/store/"), "{text}");
            staged_nothing(&to);
            // What another test starts may hold our files for a moment, until it is another program.
            let read_only = || mount(NONE, to.root(), NONE, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, NONE);
            let mut done = read_only();
            for _ in 0..100 {
                if done != Err(Errno::EBUSY) {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(20));
                done = read_only();
            }
            done.unwrap();
            let error = super::closure(&closure.paths, from.root(), to.root(), &Silent).unwrap_err();
            assert!(format!("{error:#}").contains("Read-only file system"), "{error:#}");
        });
    });
}

#[test]
fn two_copies_into_one_store_do_not_meet() {
    let (from, closure) = source();
    let to = Nix::new();
    let store = make_store(to.root()).unwrap();
    let other = Staging::new(store.as_fd(), to.root()).unwrap();
    let error = super::closure(&closure.paths, from.root(), to.root(), &Silent).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(CopyError::Busy { .. })), "{error:#}");
    other.finish().unwrap();
    super::closure(&closure.paths, from.root(), to.root(), &Silent).unwrap();
}

#[test]
fn a_store_that_is_a_symlink_is_not_followed() {
    let (from, closure) = source();
    let (to, other) = (Nix::new(), tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(other.path(), to.root().join("nix")).unwrap();
    assert!(super::closure(&closure.paths, from.root(), to.root(), &Silent).is_err());
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
}

#[test]
fn without_a_database_the_closure_is_found_by_scanning() {
    let (from, known) = source();
    fs::remove_dir_all(from.root().join("nix/var")).unwrap();
    let scanned = closure::read(from.root(), &known.system, &Silent).unwrap();
    let told = |closure: &Closure| -> Vec<_> {
        let info =
            |info: &PathInfo| (info.path.clone(), info.nar_hash, info.nar_size, info.references.clone());
        closure.paths.iter().map(info).collect()
    };
    assert_eq!(told(&scanned), told(&known));
    let to = Nix::new();
    super::closure(&scanned.paths, from.root(), to.root(), &Silent).unwrap();
    db::register(to.root(), &scanned.paths, 5).unwrap();
    to.assert_sound();
}

#[test]
fn the_room_needed_is_no_less_than_the_room_taken() {
    let (from, closure) = source();
    let to = Nix::new();
    super::closure(&closure.paths, from.root(), to.root(), &Silent).unwrap();
    let taken = Command::new("du").args(["-s", "-B1"]).arg(to.root()).output().unwrap().stdout;
    let taken: u64 = String::from_utf8(taken).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    let needed = space_needed(&closure.paths, from.root()).unwrap().0;
    assert!(needed >= taken && needed < taken + (8 << 20), "{needed} bytes needed, {taken} taken");
}
