//! Databases, beside what Nix itself makes of them.

use super::*;
use crate::progress::Silent;
use crate::store::closure;
use crate::store::testing::{Nix, Writing};

fn path(letter: &str) -> StorePath {
    StorePath::from_base_name(&format!("{}-{letter}", letter.repeat(32))).unwrap()
}

fn info(letter: &str, references: &[&str]) -> PathInfo {
    PathInfo {
        path: path(letter),
        nar_hash: format!("sha256:{}", "ab".repeat(32)).parse().unwrap(),
        nar_size: Bytes(120),
        references: references.iter().map(|letter| path(letter)).collect(),
        deriver: Some(format!("/nix/store/{}-x.drv", "d".repeat(32))),
        registration_time: 7,
        ultimate: true,
        signatures: Some("key:c2ln other:c2ln".into()),
        content_address: Some("text:sha256:0c5m".into()),
        outputs: Vec::new(),
    }
}

fn schema(root: &Path) -> Vec<(String, String, Option<String>)> {
    let connection = Connection::open(directory(root).join("db.sqlite")).unwrap();
    let mut query = connection.prepare("select type, name, sql from sqlite_master order by rowid").unwrap();
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn a_new_database_is_to_the_letter_what_nix_makes() {
    let nix = Nix::new();
    nix.store(["--verify"]);
    let ours = tempfile::tempdir().unwrap();
    register(ours.path(), &[], 1).unwrap();
    assert_eq!(schema(ours.path()), schema(nix.root()));
    for name in ["schema", "big-lock", "db.sqlite", "."] {
        let mode = |root: &Path| fs::metadata(directory(root).join(name)).unwrap().permissions().mode();
        assert_eq!(mode(ours.path()), mode(nix.root()), "{name}");
    }
    let text = |root: &Path| fs::read(directory(root).join("schema")).unwrap();
    assert_eq!(text(ours.path()), text(nix.root()));
    let left: Vec<_> =
        fs::read_dir(directory(ours.path())).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn every_column_comes_back_and_a_path_may_refer_to_itself() {
    let root = tempfile::tempdir().unwrap();
    let mut derivation = info("b", &["a", "b"]);
    derivation.path = StorePath::from_base_name(&format!("{}-b.drv", "b".repeat(32))).unwrap();
    derivation.references = vec![path("a"), derivation.path.clone()];
    derivation.outputs = vec![("dev".into(), path("x")), ("out".into(), path("y"))];
    let batch = [info("a", &[]), derivation];
    register(root.path(), &batch, 42).unwrap();
    let database = Database::open(root.path()).unwrap().unwrap();
    for info in &batch {
        let read = database.info(&info.path).unwrap().unwrap();
        assert_eq!(read, PathInfo { registration_time: 42, ..info.clone() });
    }
    assert_eq!(database.info(&path("c")).unwrap(), None);
}

#[test]
fn registering_again_updates_and_keeps_the_time_as_nix_does() {
    let root = tempfile::tempdir().unwrap();
    register(root.path(), &[info("a", &[])], 1).unwrap();
    let changed = PathInfo { signatures: None, nar_size: Bytes(200), ..info("a", &[]) };
    for _ in 0..2 {
        register(root.path(), std::slice::from_ref(&changed), 2).unwrap();
    }
    let database = Database::open(root.path()).unwrap().unwrap();
    let read = database.info(&path("a")).unwrap().unwrap();
    assert_eq!(read, PathInfo { registration_time: 1, ..changed });
    assert_eq!(database.all().unwrap().len(), 1);
}

#[test]
fn a_batch_with_a_missing_reference_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let error = register(root.path(), &[info("a", &[]), info("b", &["c"])], 1).unwrap_err();
    let expected = DbError::MissingReference { path: path("b"), reference: path("c") };
    assert_eq!(error.downcast_ref(), Some(&expected));
    assert!(Database::open(root.path()).unwrap().is_none(), "Nix would make it anew");
    register(root.path(), &[info("a", &[])], 1).unwrap();
    assert_eq!(Database::open(root.path()).unwrap().unwrap().all().unwrap(), [path("a")]);
}

#[test]
fn a_missing_row_is_told_with_the_path_that_needs_it() {
    let root = tempfile::tempdir().unwrap();
    register(root.path(), &[info("a", &[]), info("b", &["a"])], 1).unwrap();
    let connection = Connection::open(directory(root.path()).join("db.sqlite")).unwrap();
    connection
        .execute_batch(&format!(
            "pragma foreign_keys = off; delete from ValidPaths where path = '{}'",
            path("a")
        ))
        .unwrap();
    drop(connection);
    let error = closure::read(root.path(), &path("b"), &Silent).unwrap_err();
    assert!(format!("{error:#}").contains(&path("b").to_string()), "{error:#}");
    assert!(matches!(error.downcast_ref(), Some(DbError::MissingRow { .. })), "{error:#}");
    let error = closure::read(root.path(), &path("a"), &Silent).unwrap_err();
    assert!(format!("{error:#}").contains(&path("a").to_string()), "{error:#}");
}

#[test]
fn what_waits_in_the_log_is_read_beside_its_writer_and_on_a_read_only_medium() {
    let root = tempfile::tempdir().unwrap();
    register(root.path(), &[info("a", &[])], 1).unwrap();
    let dir = directory(root.path());
    let writer = Connection::open(dir.join("db.sqlite")).unwrap();
    writer
        .execute_batch(&format!(
            "pragma wal_autocheckpoint = 0; insert into ValidPaths (path, hash, registrationTime) \
             values ('{}', 'sha256:{}', 3)",
            path("b"),
            "cd".repeat(32)
        ))
        .unwrap();
    assert!(size(&dir.join("db.sqlite-wal")) > 0);
    let both = |root: &Path| Database::open(root).unwrap().unwrap().all().unwrap();
    assert_eq!(both(root.path()), [path("a"), path("b")]);

    // A medium taken from a machine that lost power: the log is there, its shared memory is not.
    for log in [true, false] {
        let medium = tempfile::tempdir().unwrap();
        let copy = directory(medium.path());
        fs::create_dir_all(&copy).unwrap();
        fs::write(copy.join("schema"), SCHEMA).unwrap();
        fs::copy(dir.join("db.sqlite"), copy.join("db.sqlite")).unwrap();
        if log {
            fs::copy(dir.join("db.sqlite-wal"), copy.join("db.sqlite-wal")).unwrap();
        }
        let expected = if log { vec![path("a"), path("b")] } else { vec![path("a")] };
        crate::store::testing::on_read_only_medium(medium.path(), || {
            assert_eq!(both(medium.path()), expected, "log: {log}");
        });
        assert!(!copy.join("db.sqlite-shm").exists());
    }

    // A change that is not committed is not there, and does not keep a reader waiting.
    writer.execute_batch("begin immediate; delete from ValidPaths").unwrap();
    assert_eq!(both(root.path()).len(), 2);
}

#[test]
fn an_unknown_schema_is_refused_before_anything_is_read_or_written() {
    let root = tempfile::tempdir().unwrap();
    register(root.path(), &[], 1).unwrap();
    fs::write(directory(root.path()).join("schema"), "11").unwrap();
    assert!(Database::open(root.path()).err().unwrap().to_string().contains("schema 11"));
    let error = register(root.path(), &[], 1).unwrap_err();
    assert!(format!("{error:#}").contains("schema 11"), "{error:#}");
}

#[test]
fn state_that_is_a_symlink_is_not_followed() {
    let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(other.path(), root.path().join("nix")).unwrap();
    assert!(register(root.path(), &[], 1).is_err());
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
}

#[test]
fn what_is_removed_is_gone_and_what_is_referred_to_stays() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("nix/store")).unwrap();
    fs::create_dir_all(root.path().join("nix/var/nix/profiles")).unwrap();
    let batch = [info("a", &[]), info("b", &["a", "b"]), info("c", &["a"])];
    register(root.path(), &batch, 1).unwrap();
    let lock = Lock::take(root.path()).unwrap();
    assert!(remove(&lock, &[path("c"), path("a")]).is_err(), "b refers to a");
    let all = || Database::open_locked(&lock).unwrap().unwrap().all().unwrap();
    assert_eq!(all().len(), 3, "all or none");
    remove(&lock, &[path("a"), path("c"), path("b")]).unwrap();
    assert_eq!(all(), []);
    add(&lock, &batch, 2).unwrap();
    assert_eq!(Database::open_locked(&lock).unwrap().unwrap().infos().unwrap().len(), 3);
    let left = fs::read_dir(directory(root.path())).unwrap().count();
    assert_eq!(left, 3, "schema, database and lock");
}

#[test]
fn a_locked_root_keeps_nix_waiting_and_is_not_locked_twice() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("nix/store")).unwrap();
    fs::create_dir_all(root.path().join("nix/var/nix/profiles")).unwrap();
    register(root.path(), &[], 1).unwrap();
    let lock = Lock::take(root.path()).unwrap();
    let big_lock = fs::File::open(directory(root.path()).join("big-lock")).unwrap();
    assert!(Flock::lock(big_lock, FlockArg::LockSharedNonblock).is_err());
    assert!(register(root.path(), &[], 1).is_err());
    let error = Lock::take(root.path()).err().unwrap().to_string();
    assert!(error.starts_with("Nix is using"), "{error}");
    drop(lock);
    fs::write(root.path().join("nix/var/nix/gc.lock"), "").unwrap();
    let _collector = Writing::shared(&root.path().join("nix/var/nix/gc.lock"));
    assert!(Lock::take(root.path()).is_err());
}

#[test]
fn a_root_that_nix_is_using_is_not_written() {
    let root = tempfile::tempdir().unwrap();
    register(root.path(), &[], 1).unwrap();
    let _user = Writing::shared(&directory(root.path()).join("big-lock"));
    let error = register(root.path(), &[], 1).unwrap_err();
    assert!(format!("{error:#}").contains("Nix is using this root"), "{error:#}");
}
