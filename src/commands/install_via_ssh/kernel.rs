//! The kernel of a system and its modules, as files of the root that holds them.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;

use crate::size::Bytes;
use crate::store::path::StorePath;
use crate::sys::{inside, unpack};
use crate::system::modules::{Texts, Tree};

// The largest list of modules has some megabytes.
const LIST_LIMIT: u64 = 64 << 20;

/// Where they are.
pub struct KernelFiles<'a> {
    root: &'a Path,
    kernel: PathBuf,
    /// The directory of one kernel's modules, as the root sees it.
    modules: PathBuf,
}

impl<'a> KernelFiles<'a> {
    pub fn of(root: &'a Path, system: &StorePath) -> Result<KernelFiles<'a>> {
        let toplevel = PathBuf::from(system.to_string());
        let trees = toplevel.join("kernel-modules/lib/modules");
        let listing = || format!("listing {}", trees.display());
        let dir = inside::open(root, &trees, OFlag::O_RDONLY | OFlag::O_DIRECTORY).with_context(listing)?;
        let dir = inside::path_of(&dir).with_context(listing)?;
        let entries: Vec<_> = fs::read_dir(&dir).and_then(Iterator::collect).with_context(listing)?;
        let names = entries.iter().map(fs::DirEntry::file_name);
        let [version] = &names.collect::<Vec<_>>()[..] else {
            bail!(
                "{} has modules of {} kernels, and should have those of one",
                trees.display(),
                entries.len()
            );
        };
        Ok(KernelFiles { root, kernel: toplevel.join("kernel"), modules: trees.join(version) })
    }

    /// Reads what depmod wrote.
    pub fn tree(&self) -> Result<Tree> {
        let read = |name: &str| -> Result<Vec<u8>> {
            let path = self.modules.join(name);
            match inside::read(self.root, &path, LIST_LIMIT) {
                // Older kernels have fewer of them.
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
                read => read.with_context(|| format!("reading {}", path.display())),
            }
        };
        let text = |name: &str| Ok::<_, anyhow::Error>(String::from_utf8_lossy(&read(name)?).into_owned());
        let (dep, alias) = (text("modules.dep")?, text("modules.alias")?);
        let (softdep, builtin) = (text("modules.softdep")?, text("modules.builtin")?);
        Ok(Tree::parse(Texts {
            dep: &dep,
            alias: &alias,
            softdep: &softdep,
            builtin: &builtin,
            builtin_modinfo: &read("modules.builtin.modinfo")?,
        }))
    }

    /// Returns a module's name and what it is, unpacked.
    pub fn module(&self, path: &str) -> Result<(String, Vec<u8>)> {
        let place = self.modules.join(path);
        let opening = || format!("opening {}", place.display());
        let file = inside::open(self.root, &place, OFlag::O_PATH).with_context(opening)?;
        let whole = inside::path_of(&file).with_context(opening)?;
        let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
        let name = name.split(".ko").next().unwrap_or_default().to_owned();
        Ok((name, unpack::read(&whole)?))
    }

    pub fn open(&self) -> Result<File> {
        let opening = || format!("opening {}", self.kernel.display());
        inside::open(self.root, &self.kernel, OFlag::O_RDONLY).map(File::from).with_context(opening)
    }

    pub fn size(&self) -> Result<Bytes> {
        let meta =
            self.open()?.metadata().with_context(|| format!("looking at {}", self.kernel.display()))?;
        Ok(Bytes(meta.len()))
    }
}
