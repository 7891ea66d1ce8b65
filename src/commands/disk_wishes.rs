//! All that the plan of a disk is decided by, looked up in the system that is to be put onto it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;

use crate::boot::loader::{self, Kind, Loader, Need};
use crate::disk::fstab::{self, Name};
use crate::disk::layout::{self, Architecture, DiskLayout, Layout};
use crate::disk::table::Ids;
use crate::disk::{derive, format, names};
use crate::facts::{self, DiskFacts};
use crate::failure::{refused, usage};
use crate::manifest::{self, Manifest};
use crate::plan::{DiskWishes, Wishes};
use crate::probe;
use crate::size::Bytes;
use crate::store::closure::Closure;
use crate::store::path::StorePath;
use crate::sys::{command, inside};
use crate::system::etc::{self, Etc};
use crate::system::extra_files;

/// Where the disk is, and so what may make it.
pub enum Place<'a> {
    /// In this machine.
    Here { efi_variables: bool },
    /// In another one, which has no programs but those of the system.
    Elsewhere { closure: &'a Closure },
}

/// A system, and the layout that was asked for.
pub struct Look<'a> {
    toplevel: Toplevel<'a>,
    layout: Option<&'a Path>,
    manifest: Manifest,
    pub loader: Loader,
    /// What the loader's installer reads from outside the store.
    needs: Vec<Need>,
    /// The person's own files, as the running system sees them.
    brought: Vec<PathBuf>,
    /// Where those are put.
    placed: Vec<PathBuf>,
    pub etc: Etc,
    /// The host keys that the machine is given.
    pub host_keys: Vec<PathBuf>,
}

impl<'a> Look<'a> {
    /// Looks at what is wished for. A `layout` is a file that says another one than the system's own.
    pub fn new(wishes: &'a Wishes, layout: Option<&'a Path>) -> Result<Look<'a>> {
        let Wishes { system, from: root, extra_files } = wishes;
        let manifest = manifest::read(root, system)?.unwrap_or_default();
        let loader = manifest.correct(loader::recognise(root, system)?);
        if matches!(loader.kind, Kind::None | Kind::NoSwitch) {
            return Err(refused(loader::NoLoader.to_string()));
        }
        let etc = etc::of(root, system);
        let brought = extra_files.as_deref().map(extra_files::places).transpose()?.unwrap_or_default();
        let mut placed = brought.clone();
        for place in &mut placed {
            let below = place.strip_prefix("/").expect("places are absolute");
            let Some(seen) = etc.place(below) else {
                return Err(refused(format!(
                    "the system has an /etc that cannot be written to, so the extra file {} would be hidden; put it elsewhere",
                    place.display()
                )));
            };
            *place = Path::new("/").join(seen);
        }
        let (needs, host_keys) = (loader::needs(root, system)?, Vec::new());
        let toplevel = Toplevel { root, system };
        Ok(Look { toplevel, layout, manifest, loader, needs, brought, placed, etc, host_keys })
    }

    /// Returns the parameters of the system's own kernel.
    pub fn kernel_params(&self) -> Result<String> {
        self.toplevel.text("kernel-params")
    }

    /// Decides on the layout of a disk, and finds what makes it.
    pub fn wishes(&self, facts: &DiskFacts, place: &Place) -> Result<DiskWishes> {
        let (toplevel, manifest) = (&self.toplevel, &self.manifest);
        let architecture = toplevel.architecture()?;
        let boot_files = toplevel.boot_files()?;
        let fstab = toplevel.text("etc/fstab")?;
        let kernel_params = toplevel.text("kernel-params")?;
        let mut notes = Vec::new();
        let layout = match (self.layout, &manifest.layout) {
            (Some(file), _) => read_layout(file)?,
            (None, Some(layout)) => layout
                .clone()
                .map_err(|error| refused(format!("{error}; or name another layout with --layout")))?,
            (None, None) => {
                let wanted = derive::Wanted {
                    fstab: &fstab,
                    kernel_params: &kernel_params,
                    loader: wants(self.loader.kind),
                    esp_mountpoint: self.loader.esp_mount_point.as_deref().and_then(Path::to_str),
                    written: &self.loader.written,
                    architecture,
                    luks: &manifest.luks_devices,
                    present: &probe::named_here(derive::named(&fstab, &kernel_params)),
                    disk_size: Some(facts.size),
                    boot_files,
                };
                let reason = manifest.layout_reason.as_deref();
                let derived = derive::derive(&wanted).map_err(|error| {
                    let why = reason.map(|reason| format!("; of its own layout the system says: {reason}"));
                    refused(format!("{error}{}", why.unwrap_or_default()))
                })?;
                // Derived is less than what was wished for.
                notes.extend(reason.map(|reason| {
                    format!(
                        "the layout comes from the system's fstab and not from its own disks, for {reason}"
                    )
                }));
                notes.extend(derived.notes);
                derived.layout
            }
        };
        names::check(&layout, &fstab, &manifest.luks_devices).map_err(|error| refused(error.to_string()))?;
        let (name, disk) = layout.disk().map_err(|error| refused(error.to_string()))?;
        notes.extend(names::unmet(disk, &kernel_params, &toplevel.text("etc/crypttab")?));
        let (tools, efi_variables) = match place {
            Place::Here { efi_variables } => {
                notes.extend(twins(disk, facts, &fstab, manifest));
                (self.tools_here(disk)?, *efi_variables)
            }
            Place::Elsewhere { closure } => (self.tools_of_system(disk, closure)?, false),
        };
        Ok(DiskWishes {
            name: name.to_owned(),
            layout: disk.clone(),
            architecture,
            ids: Ids::random(disk.partitions.len()),
            loader: self.loader.clone(),
            lacking: self.lacking(),
            seen: None,
            fstab: fstab::parse(&fstab),
            brought: self.placed.clone(),
            host_keys: self.host_keys.clone(),
            efi_variables,
            boot_files,
            tools,
            notes,
        })
    }

    /// Returns what the loader's installer reads and nobody brings: neither it, nor anything below it.
    fn lacking(&self) -> Vec<Need> {
        let comes = |need: &&Need| {
            let mut brought = self.brought.iter().chain(&self.host_keys);
            !brought.any(|path| path.starts_with(&need.path))
        };
        self.needs.iter().filter(comes).cloned().collect()
    }

    /// Finds the programs that the layout needs: the manifest's, else the system's own, else those in PATH.
    fn tools_here(&self, disk: &DiskLayout) -> Result<BTreeMap<String, PathBuf>> {
        let sw = PathBuf::from(format!("{}/sw", self.toplevel.system));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places = vec![sw.join("bin"), sw.join("sbin")];
        places.extend(std::env::split_paths(&path).filter(|dir| dir.is_absolute()));
        places.extend(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from));
        let find = |name: &str| {
            let named = self.manifest.tools.get(name).filter(|path| path.exists()).cloned();
            let found = named.or_else(|| command::find(name, places.iter().cloned()));
            found.map(|path| (name.to_owned(), path)).ok_or_else(|| {
                refused(format!(
                    "{name} is missing, which the layout needs; put it into the system or into PATH"
                ))
            })
        };
        format::tools(disk).into_iter().map(find).collect()
    }

    /// Finds the programs that the layout needs in the system's closure, by their places in the store.
    fn tools_of_system(&self, disk: &DiskLayout, closure: &Closure) -> Result<BTreeMap<String, PathBuf>> {
        let root = self.toplevel.root;
        let in_closure = |path: &PathBuf| {
            let object = StorePath::containing(path);
            object.is_some_and(|object| closure.paths.iter().any(|info| info.path == object))
        };
        let find = |name: &str| {
            let named = self.manifest.tools.get(name).cloned();
            let own = ["bin", "sbin"].map(|dir| self.toplevel.path("sw").join(dir).join(name));
            let found = named.into_iter().chain(own).find_map(|path| {
                let file = inside::open(root, &path, OFlag::O_PATH).ok()?;
                let whole = inside::path_of(&file).ok()?;
                let place = whole.strip_prefix(fs::canonicalize(root).ok()?).ok()?;
                Some(Path::new("/").join(place)).filter(in_closure)
            });
            found.map(|path| (name.to_owned(), path)).ok_or_else(|| {
                refused(format!(
                    "the system carries no {name}, which makes its disk; enable installVia in it, or put {name} into environment.systemPackages"
                ))
            })
        };
        format::tools(disk).into_iter().map(find).collect()
    }
}

fn read_layout(file: &Path) -> Result<Layout> {
    let text =
        fs::read_to_string(file).map_err(|error| usage(format!("reading {}: {error}", file.display())))?;
    layout::parse(&text).map_err(|error| usage(format!("{}: {error}", file.display())))
}

fn wants(kind: Kind) -> derive::Loader {
    match kind {
        Kind::SystemdBoot => derive::Loader::SystemdBoot,
        Kind::GrubBios => derive::Loader::GrubBios,
        Kind::GrubEfi => derive::Loader::GrubEfi,
        Kind::GrubBoth => derive::Loader::GrubHybrid,
        Kind::Lanzaboote | Kind::Limine | Kind::External => derive::Loader::OtherEfi,
        Kind::GrubMenu | Kind::Extlinux | Kind::None | Kind::NoSwitch => derive::Loader::NoPartition,
    }
}

/// Says which names will be there twice, for the machine may then boot one disk and mount the other.
fn twins(disk: &DiskLayout, facts: &DiskFacts, fstab: &str, manifest: &Manifest) -> Option<String> {
    let opened = manifest.luks_devices.values().map(|device| Name::parse(&device.to_string_lossy()));
    let used: Vec<Name> = fstab::parse(fstab).iter().map(fstab::Entry::name).chain(opened).collect();
    let twins = facts::duplicated(disk, &used, &probe::named_devices(), &facts.node.to_string_lossy());
    (!twins.is_empty()).then(|| {
        format!(
            "{}; do not boot with both disks attached, or one may be mounted in place of the other",
            twins.join(", ")
        )
    })
}

/// The system as its root sees it.
struct Toplevel<'a> {
    root: &'a Path,
    system: &'a StorePath,
}

// Real ones are a few KiB.
const TEXT_LIMIT: u64 = 1 << 20;

impl Toplevel<'_> {
    fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.system.to_string()).join(name)
    }

    /// Returns the text of a file; empty if there is none.
    fn text(&self, name: &str) -> Result<String> {
        match inside::read(self.root, &self.path(name), TEXT_LIMIT) {
            Ok(text) => {
                String::from_utf8(text).with_context(|| format!("reading {}", self.path(name).display()))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(error).with_context(|| format!("reading {}", self.path(name).display())),
        }
    }

    fn architecture(&self) -> Result<Architecture> {
        let system = self.text("system")?;
        Architecture::of_system(system.trim()).ok_or_else(|| {
            refused(format!("{} is for {:?}, which is not known here", self.system, system.trim()))
        })
    }

    /// Returns what kernels and initrds take, those of all specialisations included.
    fn boot_files(&self) -> Result<Bytes> {
        let toplevels = loader::toplevels(self.root, self.system)?;
        let files = toplevels.iter().flat_map(|top| [top.join("kernel"), top.join("initrd")]);
        Ok(files.map(|file| self.size(&file)).sum())
    }

    fn size(&self, path: &Path) -> Bytes {
        let file = inside::open(self.root, path, OFlag::O_RDONLY).map(File::from);
        Bytes(file.and_then(|file| file.metadata()).map_or(0, |meta| meta.len()))
    }
}
