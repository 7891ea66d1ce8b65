//! A system that is about to be deployed: read once, for all machines that get it.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::facts::SystemFacts;
use crate::failure::refused;
use crate::manifest::{self, Manifest};
use crate::plan::Summary;
use crate::progress::Silent;
use crate::ssh::FarBinary;
use crate::store::closure::{self, Closure};
use crate::store::hash::Hashing;
use crate::store::path::StorePath;
use crate::system::enter;
use crate::system::inhibitors::{self, Inhibitors};

const PROGRAM: &str = "nixos-install-via";

pub struct Prepared {
    pub closure: Closure,
    pub facts: SystemFacts,
    pub far: FarBinary,
    pub inhibitors: Inhibitors,
    /// The OpenSSH client that the system carries.
    pub client: Option<PathBuf>,
}

impl Prepared {
    /// Reads `system` in the root `from`.
    pub fn read(from: &Path, system: &StorePath) -> Result<Prepared> {
        let closure = closure::read(from, system, &Silent)?;
        let facts = SystemFacts {
            system: system.clone(),
            hostname: enter::hostname(from, system),
            platform: enter::platform(from, system),
        };
        let manifest = manifest::read(from, system)?;
        let client = manifest.and_then(|Manifest { ssh, .. }| ssh).filter(|client| client.exists());
        let far = far_binary(from, &closure, &facts)?;
        let inhibitors = inhibitors::read(from, system);
        Ok(Prepared { closure, facts, far, inhibitors, client })
    }

    pub fn summary(&self) -> Summary {
        Summary { paths: self.closure.paths.len(), bytes: self.closure.size(), space: self.closure.size() }
    }
}

/// Returns the system's own program, made for the machines that it runs on; or else the one that runs
/// here, if it can run there.
fn far_binary(from: &Path, closure: &Closure, facts: &SystemFacts) -> Result<FarBinary> {
    let here = std::env::consts::ARCH;
    let machine = facts.platform.as_deref().and_then(|platform| platform.split('-').next()).unwrap_or(here);
    let carried = closure.paths.iter().map(|info| &info.path).find_map(|path| {
        let place = Path::new("bin").join(PROGRAM);
        let file = path.in_root(from).join(&place);
        let is_it = path.name().starts_with(PROGRAM) && file.is_file();
        is_it.then(|| (file, Path::new(&path.to_string()).join(place)))
    });
    let (file, store_path) = match carried {
        Some((file, store_path)) => (file, Some(store_path)),
        None if machine == here => (std::env::current_exe().context("finding this program")?, None),
        None => {
            return Err(refused(format!(
                "{} is for {machine}, and has no {PROGRAM} that runs there; enable installVia in it",
                facts.system.name()
            )));
        }
    };
    let reading = || format!("reading {}", file.display());
    let mut hashing = Hashing::new(std::io::sink());
    std::io::copy(&mut File::open(&file).with_context(reading)?, &mut hashing).with_context(reading)?;
    let (hash, size) = hashing.finish();
    Ok(FarBinary { file, size, sha256: hash.0, store_path, machine: machine.to_owned() })
}
