//! The steps that write a root as one archive.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::{Made, Source};
use crate::plan::{Archive, ArchiveStep};
use crate::progress::{Event, Progress};
use crate::store::db;
use crate::store::path::StorePath;
use crate::store::tarball::Tarball;
use crate::sys::growing::Growing;
use crate::sys::pack::{self, Packer};
use crate::sys::scratch::Scratch;
use crate::sys::{file, inside};
use crate::system::claim::Claim;
use crate::system::{identity, init, profile};

// Fewer and larger writes for what is not packed.
const BUFFER: usize = 1 << 20;
const OS_RELEASE: &str = "etc/os-release";
const OS_RELEASE_LIMIT: u64 = 64 << 10;

/// What the steps have made so far.
#[derive(Default)]
pub struct Begun {
    scratch: Option<Scratch>,
    part: Option<Growing>,
}

pub fn take(step: &ArchiveStep, source: &Source, made: &mut Made, progress: &dyn Progress) -> Result<()> {
    match step {
        ArchiveStep::Skeleton { system, .. } => {
            let scratch = Scratch::new()?;
            made.root = Some(scratch.path().to_owned());
            made.archive.scratch = Some(scratch);
            skeleton(system, source, made.root())
        }
        ArchiveStep::Write { archive: Archive::Stdout, .. } => {
            let out = io::stdout().as_fd().try_clone_to_owned().context("opening stdout")?;
            write(File::from(out), true, source, made, progress).map(drop)
        }
        ArchiveStep::Write { archive: Archive::File { path, packed }, .. } => {
            let mut part = Growing::new(path)?;
            let out = part.file().try_clone().with_context(|| format!("opening {}", path.display()))?;
            write(out, *packed, source, made, progress)?;
            made.archive.part = Some(part);
            Ok(())
        }
        ArchiveStep::Publish { .. } => {
            let part = made.archive.part.take().expect("a plan writes an archive before it names it");
            let taken = exists(part.path());
            part.publish(&taken)
        }
    }
}

/// Makes all of a root but the contents of its store.
fn skeleton(system: &StorePath, source: &Source, root: &Path) -> Result<()> {
    let claim = Claim::start(root, system)?;
    identity::prepare(root)?;
    db::register(root, &source.closure.paths, time(source))?;
    profile::set(root, system)?;
    // What container managers start, and by what they tell what they start.
    let part = init::container_part(&source.root, system);
    fs::create_dir(root.join("sbin")).context("making sbin")?;
    init::lead(root, system, part)?;
    if let Ok(text) =
        inside::read(&source.root, &PathBuf::from(format!("{system}/{OS_RELEASE}")), OS_RELEASE_LIMIT)
    {
        file::publish(&root.join(OS_RELEASE), &text)?;
    }
    claim.finish()?;
    set_times(root, time(source))
}

// The same closure makes the same archive, whenever that is.
fn time(source: &Source) -> i64 {
    let own = source.closure.paths.iter().find(|info| info.path == source.closure.system);
    own.map_or(1, |info| info.registration_time.max(1))
}

fn set_times(dir: &Path, time: i64) -> Result<()> {
    let setting = || format!("setting times in {}", dir.display());
    let time_stamp = UNIX_EPOCH + Duration::from_secs(time.unsigned_abs());
    for entry in fs::read_dir(dir).with_context(setting)? {
        let entry = entry.with_context(setting)?;
        let kind = entry.file_type().with_context(setting)?;
        if kind.is_dir() {
            set_times(&entry.path(), time)?;
        } else if kind.is_file() {
            let file = File::options().write(true).open(entry.path()).with_context(setting)?;
            file.set_modified(time_stamp).with_context(setting)?;
        }
    }
    Ok(())
}

fn write(out: File, packed: bool, source: &Source, made: &Made, progress: &dyn Progress) -> Result<()> {
    let out = BufWriter::with_capacity(BUFFER, out);
    let mut tarball = Tarball::new(match packed {
        true => Out::Packed(Box::new(pack::archive(out)?)),
        false => Out::Plain(out),
    });
    progress.event(Event::Start { total: source.closure.size() });
    let paths = &source.closure.paths;
    tarball.root(made.root(), time(source).unsigned_abs(), paths, &source.root, progress)?;
    tarball.finish()?.finish().context("writing the archive")?;
    progress.event(Event::Finish);
    Ok(())
}

/// The forms of an archive. One that is dropped before its end is no whole archive, and every reader tells.
enum Out {
    Plain(BufWriter<File>),
    Packed(Box<Packer<BufWriter<File>>>),
}

impl Out {
    fn finish(self) -> io::Result<()> {
        match self {
            Out::Plain(mut out) => out.flush(),
            Out::Packed(packer) => packer.finish()?.flush(),
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Out::Plain(out) => out.write(bytes),
            Out::Packed(packer) => packer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Out::Plain(out) => out.flush(),
            Out::Packed(packer) => packer.flush(),
        }
    }
}

/// Says that an archive is not replaced.
pub fn exists(path: &Path) -> String {
    format!(
        "{} exists, and an archive replaces nothing; remove it first, or choose another name",
        path.display()
    )
}
