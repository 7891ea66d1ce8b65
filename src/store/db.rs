//! The Nix database: read beside a live daemon, written for a root that nobody uses yet.
//!
//! Schema 10, from `src/libstore/schema.sql` and `local-store.cc` of Nix. This file alone knows SQLite.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};
use tempfile::TempDir;

use super::PathInfo;
use super::path::StorePath;
use crate::size::Bytes;

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

fn directory(root: &Path) -> PathBuf {
    root.join("nix/var/nix/db")
}

impl Database {
    /// Opens the database of a root. None if the root has none.
    ///
    /// A database on a read-only medium is read in place, unless transactions wait in its write-ahead
    /// log: then a copy is, for SQLite would not see them.
    pub fn open(root: &Path) -> Result<Option<Database>> {
        let path = directory(root).join("db.sqlite");
        let shown = || format!("opening the Nix database {}", path.display());
        match fs::metadata(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(shown),
        }
        check_schema(root)?;
        let (file, copy, immutable) = match writable(&directory(root)) {
            true => (path.clone(), None, false),
            false if size(&path.with_extension("sqlite-wal")) > 0 => {
                let copy = copy(&path)?;
                (copy.path().join("db.sqlite"), Some(copy), false)
            }
            false => (path.clone(), None, true),
        };
        let connection = connect(&file, immutable).with_context(shown)?;
        Ok(Some(Database { connection, _copy: copy }))
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
        let context = || format!("reading what the Nix database says about {}", fields.path);
        let list = |query: &str| -> Result<Vec<(String, String)>> {
            let mut statement = self.connection.prepare_cached(query)?;
            let rows = statement.query_map([fields.id], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        };
        let references = list(
            "select path, '' from Refs join ValidPaths on reference = id where referrer = ? order by path",
        )
        .with_context(context)?;
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
                outputs,
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

fn check_schema(root: &Path) -> Result<()> {
    let path = directory(root).join("schema");
    let schema = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    if schema.trim() != SCHEMA {
        bail!(
            "the Nix database of {} has schema {}, and this program knows schema {SCHEMA}; upgrade the older of the two",
            root.display(),
            schema.trim()
        );
    }
    Ok(())
}

fn writable(dir: &Path) -> bool {
    nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK).is_ok()
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

// WAL needs its shared memory beside the database even to read; reading alone never changes a row.
fn connect(path: &Path, immutable: bool) -> rusqlite::Result<Connection> {
    let mut uri = String::from("file:");
    for byte in path.to_string_lossy().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => uri.push(byte.into()),
            _ => uri.push_str(&format!("%{byte:02x}")),
        }
    }
    if immutable {
        uri.push_str("?immutable=1");
    }
    let connection =
        Connection::open_with_flags(uri, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Registers paths, references first, in one transaction, in the database of a root that nobody uses.
///
/// A database that is not there is made. Rows that are there are brought up to date. All files of
/// `paths` have to be on the disk already: the commit is what makes them valid.
pub fn register(root: &Path, paths: &[PathInfo], now: i64) -> Result<()> {
    let context = || format!("writing the Nix database of {}", root.display());
    let _lock = lock(root).with_context(context)?;
    let mut connection = create(root).with_context(context)?;
    insert(&mut connection, paths, now).with_context(context)?;
    // An empty log, so that the file alone is the whole database.
    connection.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(())).with_context(context)?;
    connection.close().map_err(|(_, error)| error).with_context(context)?;
    publish_schema(root).with_context(context)
}

fn lock(root: &Path) -> Result<Flock<fs::File>> {
    let dir = directory(root);
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let path = dir.join("big-lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err(_) => bail!("Nix is using this root; stop its nix-daemon, or choose another directory"),
    }
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
    connection.execute_batch(TABLES).context("creating the tables")?;
    Ok(connection)
}

fn insert(connection: &mut Connection, paths: &[PathInfo], now: i64) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    {
        let mut path = transaction.prepare(
            "insert into ValidPaths (path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca) \
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) on conflict (path) do update set \
             hash = ?2, narSize = ?5, ultimate = ?6, sigs = ?7, ca = ?8",
        )?;
        let mut reference = transaction.prepare(
            "insert or replace into Refs (referrer, reference) \
             select (select id from ValidPaths where path = ?1), (select id from ValidPaths where path = ?2)",
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
                output.execute([&name, id, path])?;
            }
        }
        for info in paths {
            for target in &info.references {
                reference.execute([info.path.to_string(), target.to_string()])?;
            }
        }
    }
    transaction.commit()
}

// Last: Nix makes a new database over whatever is there as long as there is no schema.
fn publish_schema(root: &Path) -> Result<()> {
    crate::sys::file::publish(&directory(root).join("schema"), SCHEMA.as_bytes())
}
