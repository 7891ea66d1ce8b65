//! The Nix database: read beside a live daemon, written for a root that nobody uses yet.
//!
//! Schema 10, from `src/libstore/schema.sql` and `local-store.cc` of Nix. This file alone knows SQLite.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, TransactionBehavior, params};
use tempfile::TempDir;

use super::PathInfo;
use super::path::StorePath;
use crate::failure::refused;
use crate::size::Bytes;

/// What is wrong with a database, or would be.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum DbError {
    #[error(
        "the Nix database does not know a path that {path} refers to (row {row}); \
         repair it with nix-store --verify --check-contents --repair"
    )]
    MissingRow { path: String, row: String },
    #[error("{path} refers to {reference}, which is neither valid nor about to be")]
    MissingReference { path: StorePath, reference: StorePath },
}

/// A database open for reading.
pub struct Database {
    connection: Connection,
    // Holds a copy, where the original could not be read in place.
    _copy: Option<TempDir>,
}

const SCHEMA: &str = "10";

// As in Nix, whose newer versions drop IndexReferrer when they first open a database.
const TABLES: &str = "
create table if not exists ValidPaths (
    id               integer primary key autoincrement not null,
    path             text unique not null,
    hash             text not null,
    registrationTime integer not null,
    deriver          text,
    narSize          integer,
    ultimate         integer, -- null implies \"false\"
    sigs             text, -- space-separated
    ca               text -- if not null, an assertion that the path is content-addressed; see ValidPathInfo
);
create table if not exists Refs (
    referrer  integer not null,
    reference integer not null,
    primary key (referrer, reference),
    foreign key (referrer) references ValidPaths(id) on delete cascade,
    foreign key (reference) references ValidPaths(id) on delete restrict
);
create index if not exists IndexReferrer on Refs(referrer);
create index if not exists IndexReference on Refs(reference);
create trigger if not exists DeleteSelfRefs before delete on ValidPaths
  begin
    delete from Refs where referrer = old.id and reference = old.id;
  end;
create table if not exists DerivationOutputs (
    drv  integer not null,
    id   text not null, -- symbolic output id, usually \"out\"
    path text not null,
    primary key (drv, id),
    foreign key (drv) references ValidPaths(id) on delete cascade
);
create index if not exists IndexDerivationOutputs on DerivationOutputs(path);
";

// A daemon's transactions are short; longer than this and something hangs.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

// A query of Nix is over by then, a garbage collection or a build is not.
const PATIENCE: Duration = Duration::from_secs(3);
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

fn directory(root: &Path) -> PathBuf {
    root.join("nix/var/nix/db")
}

impl Database {
    /// Opens the database of a root. None if the root has none, or one that Nix would make anew.
    pub fn open(root: &Path) -> Result<Option<Database>> {
        let path = directory(root).join("db.sqlite");
        let shown = || format!("opening the Nix database {}", path.display());
        if !path.try_exists().with_context(shown)? || !check_schema(root)? {
            return Ok(None);
        }
        let (connection, copy) = open_read_only(&path).with_context(shown)?;
        // One snapshot for all questions, whatever a daemon commits meanwhile.
        connection.execute_batch("begin").with_context(shown)?;
        Ok(Some(Database { connection, _copy: copy }))
    }

    /// Opens the database of a locked root, and leaves no trace of it where no log waits.
    pub fn open_locked(lock: &Lock) -> Result<Option<Database>> {
        let path = directory(&lock.root).join("db.sqlite");
        if size(&path.with_extension("sqlite-wal")) > 0 || !path.exists() || !check_schema(&lock.root)? {
            return Database::open(&lock.root);
        }
        let connection = connect(&path, "mode=ro&immutable=1")
            .with_context(|| format!("opening the Nix database {}", path.display()))?;
        Ok(Some(Database { connection, _copy: None }))
    }

    /// Returns all that the database says, by path.
    pub fn infos(&self) -> Result<Vec<PathInfo>> {
        self.all()?.iter().filter_map(|path| self.info(path).transpose()).collect()
    }

    /// Returns what the database says about a path. None if it does not know it.
    pub fn info(&self, path: &StorePath) -> Result<Option<PathInfo>> {
        let mut statement = self
            .connection
            .prepare_cached(
                "select id, path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca \
                 from ValidPaths where path = ?",
            )
            .context("reading the Nix database")?;
        let found =
            statement.query_row([path.to_string()], fields).optional().context("reading the Nix database")?;
        found.map(|fields| self.complete(fields)).transpose()
    }

    /// Returns every valid path, by name.
    pub fn all(&self) -> Result<Vec<StorePath>> {
        let mut statement = self
            .connection
            .prepare("select path from ValidPaths order by path")
            .context("reading the Nix database")?;
        let rows =
            statement.query_map([], |row| row.get::<_, String>(0)).context("reading the Nix database")?;
        rows.map(|row| Ok(StorePath::parse(&row.context("reading the Nix database")?)?)).collect()
    }

    fn complete(&self, fields: Fields) -> Result<PathInfo> {
        let path = fields.path.clone();
        let context = || format!("reading what the Nix database says about {path}");
        let list = |query: &str| -> Result<Vec<(String, String)>> {
            let mut statement = self.connection.prepare_cached(query)?;
            let rows = statement.query_map([fields.id], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        };
        // A left join, for a reference whose row is gone is a fault to tell, not to pass over.
        let references = list(
            "select ifnull(path, ''), reference || '' from Refs left join ValidPaths on reference = id \
             where referrer = ? order by path",
        )
        .with_context(context)?;
        if let Some((_, row)) = references.iter().find(|(path, _)| path.is_empty()) {
            bail!(DbError::MissingRow { path: fields.path, row: row.clone() });
        }
        let outputs = match fields.path.ends_with(".drv") {
            true => list("select id, path from DerivationOutputs where drv = ? order by id")
                .with_context(context)?,
            false => Vec::new(),
        };
        let parse = || -> Result<PathInfo> {
            Ok(PathInfo {
                path: StorePath::parse(&fields.path)?,
                nar_hash: fields.hash.parse()?,
                nar_size: Bytes(fields.nar_size.unwrap_or(0)),
                references: references
                    .iter()
                    .map(|(path, _)| StorePath::parse(path))
                    .collect::<Result<_, _>>()?,
                deriver: fields.deriver.clone(),
                registration_time: fields.registration_time,
                ultimate: fields.ultimate,
                signatures: fields.signatures.clone(),
                content_address: fields.content_address.clone(),
                outputs: outputs
                    .iter()
                    .map(|(id, path)| Ok((id.clone(), StorePath::parse(path)?)))
                    .collect::<Result<_>>()?,
            })
        };
        parse().with_context(context)
    }
}

struct Fields {
    id: i64,
    path: String,
    hash: String,
    registration_time: i64,
    deriver: Option<String>,
    nar_size: Option<u64>,
    ultimate: bool,
    signatures: Option<String>,
    content_address: Option<String>,
}

fn fields(row: &Row<'_>) -> rusqlite::Result<Fields> {
    Ok(Fields {
        id: row.get(0)?,
        path: row.get(1)?,
        hash: row.get(2)?,
        registration_time: row.get(3)?,
        deriver: row.get(4)?,
        nar_size: row.get::<_, Option<i64>>(5)?.map(i64::cast_unsigned),
        ultimate: row.get::<_, Option<bool>>(6)?.unwrap_or(false),
        signatures: row.get(7)?,
        content_address: row.get(8)?,
    })
}

// Tells whether there is a schema; without one, a first registration was interrupted.
fn check_schema(root: &Path) -> Result<bool> {
    let path = directory(root).join("schema");
    match fs::read_to_string(&path) {
        Ok(schema) if schema.trim() == SCHEMA => Ok(true),
        Ok(schema) => bail!(
            "the Nix database of {} has schema {}, and this program knows schema {SCHEMA}; upgrade the older of the two",
            root.display(),
            schema.trim()
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

// Reading a WAL database takes a shared-memory file beside it. Where none can be made, on a
// read-only medium, nobody writes either, and the file can be read as it is; but transactions that
// wait in a write-ahead log are seen only in a copy.
fn open_read_only(path: &Path) -> Result<(Connection, Option<TempDir>)> {
    let error = match connect(path, "mode=ro") {
        Ok(connection) => return Ok((connection, None)),
        Err(error) => error,
    };
    let unwritable = [ErrorCode::CannotOpen, ErrorCode::ReadOnly, ErrorCode::PermissionDenied];
    if !error.sqlite_error_code().is_some_and(|code| unwritable.contains(&code)) || writable(path) {
        return Err(error.into());
    }
    if size(&path.with_extension("sqlite-wal")) == 0 {
        return Ok((connect(path, "mode=ro&immutable=1")?, None));
    }
    let copy = copy(path)?;
    Ok((connect(&copy.path().join("db.sqlite"), "mode=rw")?, Some(copy)))
}

fn writable(path: &Path) -> bool {
    path.parent().is_some_and(|dir| nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK).is_ok())
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.len())
}

fn copy(path: &Path) -> Result<TempDir> {
    let dir = tempfile::tempdir().context("making a directory for a copy of the Nix database")?;
    for extension in ["sqlite", "sqlite-wal"] {
        let from = path.with_extension(extension);
        fs::copy(&from, dir.path().join("db").with_extension(extension))
            .with_context(|| format!("copying {}", from.display()))?;
    }
    Ok(dir)
}

fn connect(path: &Path, options: &str) -> rusqlite::Result<Connection> {
    let mut uri = String::from("file:");
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => uri.push(byte.into()),
            _ => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(format!("{uri}?{options}"), flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Opening is lazy: the first question is what fails.
    connection.query_row("select count(*) from sqlite_master", [], |_| Ok(()))?;
    Ok(connection)
}

/// Registers paths, references first, in one transaction, in the database of a root that nobody uses.
///
/// A database that is not there is made. Rows that are there are brought up to date. All files of
/// `paths` have to be on the disk already: the commit is what makes them valid.
pub fn register(root: &Path, paths: &[PathInfo], now: i64) -> Result<()> {
    let context = || format!("writing the Nix database of {}", root.display());
    check_schema(root).with_context(context)?;
    let _lock = lock(root).with_context(context)?;
    write(root, paths, now)
}

/// Registers paths as [`register`] does, in a root that is locked already.
pub fn add(lock: &Lock, paths: &[PathInfo], now: i64) -> Result<()> {
    write(&lock.root, paths, now)
}

fn write(root: &Path, paths: &[PathInfo], now: i64) -> Result<()> {
    let context = || format!("writing the Nix database of {}", root.display());
    let mut connection = create(root).with_context(context)?;
    insert(&mut connection, paths, now).with_context(context)?;
    close(connection).with_context(context)?;
    publish_schema(root).with_context(context)
}

/// Makes paths invalid, in one transaction: all or, if another path refers to one of them, none.
pub fn remove(lock: &Lock, paths: &[StorePath]) -> Result<()> {
    let context = || format!("writing the Nix database of {}", lock.root.display());
    let mut connection = create(&lock.root).with_context(context)?;
    delete(&mut connection, paths).with_context(context)?;
    close(connection).with_context(context)
}

fn delete(connection: &mut Connection, paths: &[StorePath]) -> Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for query in [
        // First: a path that is referred to cannot go, and they refer to each other.
        "delete from Refs where referrer = (select id from ValidPaths where path = ?)",
        "delete from ValidPaths where path = ?",
    ] {
        let mut statement = transaction.prepare(query)?;
        for path in paths {
            statement.execute([path.to_string()]).with_context(|| format!("forgetting {path}"))?;
        }
    }
    Ok(transaction.commit()?)
}

fn close(connection: Connection) -> Result<()> {
    // An empty log, so that the file alone is the whole database.
    connection.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(()))?;
    Ok(connection.close().map_err(|(_, error)| error)?)
}

/// A root that no Nix uses for as long as this value lives.
///
/// Every user of a store holds `big-lock` shared as long as it has the store open, and the garbage
/// collector holds `gc.lock` besides. Whoever comes now waits, as for an upgrade of the schema.
pub struct Lock {
    root: PathBuf,
    _files: Vec<Flock<fs::File>>,
}

impl Lock {
    /// Locks a root that has a database, and writes nothing. Queries are short, so they are waited for.
    pub fn take(root: &Path) -> Result<Lock> {
        STATE.iter().try_for_each(|name| is_own(&root.join(name)))?;
        let mut files = Vec::new();
        for name in ["nix/var/nix/db/big-lock", "nix/var/nix/gc.lock"] {
            let path = root.join(name);
            let file =
                match OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&path) {
                    // The first collection makes it.
                    Err(error) if error.kind() == ErrorKind::NotFound && name.ends_with("gc.lock") => {
                        continue;
                    }
                    file => file.with_context(|| format!("opening {}", path.display()))?,
                };
            files.push(wait_for(file, root)?);
        }
        Ok(Lock { root: root.to_owned(), _files: files })
    }

    /// Returns the root that is locked.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

// What is written. A link in its place could lead into another root's, or our own.
const STATE: [&str; 7] = [
    "nix",
    "nix/store",
    "nix/var",
    "nix/var/nix",
    "nix/var/nix/db",
    "nix/var/nix/profiles",
    "nix/var/nix/db/db.sqlite",
];

fn is_own(path: &Path) -> Result<()> {
    let meta = path.symlink_metadata().with_context(|| format!("looking at {}", path.display()))?;
    if meta.is_symlink() {
        return Err(refused(format!(
            "{} is a link, and may lead to the state of another root; move it away",
            path.display()
        )));
    }
    Ok(())
}

fn wait_for(mut file: fs::File, root: &Path) -> Result<Flock<fs::File>> {
    let begin = Instant::now();
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK)) if begin.elapsed() < PATIENCE => file,
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(refused(format!(
                    "Nix is using {}: a nix-daemon, a build or a garbage collection; wait for its end",
                    root.display()
                )));
            }
            Err((_, error)) => return Err(error).with_context(|| format!("locking {}", root.display())),
        };
        std::thread::sleep(BETWEEN_TRIES);
    }
}

fn lock(root: &Path) -> Result<Flock<fs::File>> {
    make_directories(root)?;
    let path = directory(root).join("big-lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err(_) => bail!("Nix is using this root; stop its nix-daemon, or choose another directory"),
    }
}

// 0755 whatever the umask, and no symlink: an absolute one would lead into our own database.
fn make_directories(root: &Path) -> Result<()> {
    let mut dir = root.to_owned();
    for name in ["nix", "var", "nix", "db"] {
        dir.push(name);
        match fs::create_dir(&dir) {
            Ok(()) => fs::set_permissions(&dir, PermissionsExt::from_mode(0o755))
                .with_context(|| format!("setting the mode of {}", dir.display()))?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let meta = dir.symlink_metadata().with_context(|| format!("looking at {}", dir.display()))?;
                if !meta.is_dir() {
                    bail!(
                        "{} is not a directory; move it away, for a root holds its own state",
                        dir.display()
                    );
                }
            }
            Err(error) => return Err(error).with_context(|| format!("creating {}", dir.display())),
        }
    }
    Ok(())
}

fn create(root: &Path) -> Result<Connection> {
    let path = directory(root).join("db.sqlite");
    let connection = Connection::open(&path).with_context(|| format!("opening {}", path.display()))?;
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644))
        .with_context(|| format!("setting the mode of {}", path.display()))?;
    connection.pragma_update(None, "journal_mode", "wal").context("switching to a write-ahead log")?;
    connection.pragma_update(None, "foreign_keys", true).context("switching foreign keys on")?;
    // The commit is on the disk when it returns, whatever else is not.
    connection.pragma_update(None, "synchronous", "full").context("switching syncing on")?;
    Ok(connection)
}

fn insert(connection: &mut Connection, paths: &[PathInfo], now: i64) -> Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES).context("creating the tables")?;
    {
        let mut path = transaction.prepare(
            "insert into ValidPaths (path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca) \
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) on conflict (path) do update set \
             hash = ?2, narSize = ?5, ultimate = ?6, sigs = ?7, ca = ?8",
        )?;
        let mut reference = transaction.prepare(
            "insert or replace into Refs (referrer, reference) select referrer.id, reference.id \
             from ValidPaths referrer, ValidPaths reference where referrer.path = ? and reference.path = ?",
        )?;
        let mut output = transaction.prepare(
            "insert or replace into DerivationOutputs (drv, id, path) \
             select id, ?2, ?3 from ValidPaths where path = ?1",
        )?;
        for info in paths {
            let size = Some(info.nar_size.0.cast_signed()).filter(|&size| size > 0);
            let ultimate = info.ultimate.then_some(1);
            let name = info.path.to_string();
            path.execute(params![
                name,
                info.nar_hash.to_string(),
                now,
                info.deriver,
                size,
                ultimate,
                info.signatures,
                info.content_address
            ])?;
            for (id, path) in &info.outputs {
                output.execute([&name, id, &path.to_string()])?;
            }
        }
        for info in paths {
            for target in &info.references {
                if reference.execute([info.path.to_string(), target.to_string()])? == 0 {
                    bail!(DbError::MissingReference { path: info.path.clone(), reference: target.clone() });
                }
            }
        }
    }
    Ok(transaction.commit()?)
}

// Last: Nix makes a new database over whatever is there as long as there is no schema.
fn publish_schema(root: &Path) -> Result<()> {
    crate::sys::file::publish(&directory(root).join("schema"), SCHEMA.as_bytes())
}

#[cfg(test)]
mod tests;
