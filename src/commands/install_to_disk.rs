//! `install-to-disk DISK|IMAGE`: a bootable clone of the system.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;

use super::{confirm, keys, own_mounts, print_plan, require_root, system};
use crate::boot::loader::{self, Kind};
use crate::cli::InstallToDisk;
use crate::disk::fstab::{self, Name};
use crate::disk::layout::{self, Architecture, DiskLayout, Layout};
use crate::disk::table::Ids;
use crate::disk::{derive, format, names};
use crate::facts::{self, DiskFacts, DiskKind};
use crate::failure::{refused, usage};
use crate::manifest::{self, Manifest};
use crate::plan::{self, DiskWishes, Plan, Summary, Wishes};
use crate::probe;
use crate::progress::Event;
use crate::run::{self, Source};
use crate::size::Bytes;
use crate::store::path::StorePath;
use crate::store::{closure, copy};
use crate::sys::{command, inside, interrupt};
use crate::system::extra_files;

pub fn run(args: &InstallToDisk) -> Result<()> {
    require_root()?;
    let common = &args.common;
    let progress = common.progress.printer();
    let wishes = Wishes {
        system: system(common)?,
        from: common.from.clone(),
        extra_files: args.extra.extra_files.clone(),
    };
    args.extra.extra_files.as_deref().map_or(Ok(()), extra_files::check)?;
    let facts = look(args)?;
    let disk_wishes = disk_wishes(args, &wishes, &facts)?;
    let closure = closure::read(&wishes.from, &wishes.system, &*progress)?;
    let summary = Summary {
        paths: closure.paths.len(),
        bytes: closure.size(),
        space: copy::space_needed(&closure.paths, &wishes.from)?,
    };
    let plan = plan::install_to_disk(&wishes, &disk_wishes, &facts, summary)?;
    let mut keys = keys::read(&args.disk_encryption_key, &disk_wishes.layout)?;
    if let Some(form) = common.only_plan() {
        return print_plan(&plan, &closure, form);
    }
    if !args.yes.yes && facts.kind != DiskKind::NewImage {
        ask(&plan, &facts)?;
    }
    mountable(&disk_wishes.layout)?;
    keys::complete(&mut keys, &disk_wishes.layout)?;
    own_mounts()?;
    let shown = facts.path.display();
    interrupt::say(format!("{shown} does not boot now: run the same command again to start over"));
    let source = Source { root: wishes.from.clone(), closure };
    run::perform(&plan, &source, &keys, &*progress).with_context(|| {
        format!("installing onto {shown}, which does not boot now (run the same command again to start over)")
    })?;
    let text = format!("{shown} boots {}", wishes.system.name());
    progress.event(Event::Done { text });
    Ok(())
}

fn mountable(disk: &DiskLayout) -> Result<()> {
    if let Some(partition) = disk.partitions.iter().find(|partition| partition.luks().is_some())
        && !probe::can_encrypt()
    {
        return Err(refused(format!(
            "the kernel of this machine has no dm-crypt, which the encrypted partition {} needs; load its module, or install from elsewhere",
            partition.name
        )));
    }
    let mounts = disk.mounts();
    let Some(mount) = mounts.iter().find(|mount| !probe::can_mount(mount.format.name())) else {
        return Ok(());
    };
    let (kind, point) = (mount.format.name(), mount.mountpoint);
    Err(refused(format!(
        "the kernel of this machine cannot mount {kind}, which {point} needs; load its module, or install from elsewhere"
    )))
}

/// Looks at the disk, and at the size of an image that is to be made.
fn look(args: &InstallToDisk) -> Result<DiskFacts> {
    let mut facts = probe::disk(&args.disk)?;
    match (facts.kind, args.image_size) {
        (DiskKind::NewImage, Some(size)) => facts.size = size,
        (DiskKind::NewImage, None) => {
            let shown = args.disk.display();
            return Err(usage(format!(
                "{shown} does not exist; for a new image file say its --image-size, such as 8G"
            )));
        }
        (_, Some(_)) => {
            let shown = args.disk.display();
            return Err(usage(format!("{shown} is there already; --image-size is for a new image file")));
        }
        (_, None) => {}
    }
    Ok(facts)
}

fn ask(plan: &Plan, facts: &DiskFacts) -> Result<()> {
    let path = facts.path.to_string_lossy().into_owned();
    let name = facts.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut answers = vec![path.as_str(), name.as_str()];
    answers.extend(facts.serial.as_deref());
    let serial = if facts.serial.is_some() { " or its serial" } else { "" };
    confirm(plan, &format!("All that is on it will be lost. Type {name}{serial} to go on:"), &answers)
}

/// Looks up all that the plan of a disk is decided by.
fn disk_wishes(args: &InstallToDisk, wishes: &Wishes, facts: &DiskFacts) -> Result<DiskWishes> {
    let toplevel = Toplevel { root: &wishes.from, system: &wishes.system };
    let manifest = manifest::read(&wishes.from, &wishes.system)?.unwrap_or_default();
    let loader = manifest.correct(loader::recognise(&wishes.from, &wishes.system)?);
    if matches!(loader.kind, Kind::None | Kind::NoSwitch) {
        return Err(refused(loader::NoLoader.to_string()));
    }
    let architecture = toplevel.architecture()?;
    let boot_files = toplevel.boot_files()?;
    let fstab = toplevel.text("etc/fstab")?;
    let mut notes = Vec::new();
    let layout = match (&args.layout, &manifest.layout) {
        (Some(file), _) => read_layout(file)?,
        (None, Some(layout)) => layout
            .clone()
            .map_err(|error| refused(format!("{error}; or name another layout with --layout")))?,
        (None, None) => {
            let wanted = derive::Wanted {
                fstab: &fstab,
                kernel_params: &toplevel.text("kernel-params")?,
                loader: wants(loader.kind),
                esp_mountpoint: loader.esp_mount_point.as_deref().and_then(Path::to_str),
                architecture,
                luks: &manifest.luks_devices,
                present: &probe::fstab_devices(&fstab),
                disk_size: Some(facts.size),
                boot_files,
            };
            let derived = derive::derive(&wanted).map_err(|error| refused(error.to_string()))?;
            notes.extend(derived.notes);
            derived.layout
        }
    };
    names::check(&layout, &fstab, &manifest.luks_devices).map_err(|error| refused(error.to_string()))?;
    let (_, disk) = layout.disk().map_err(|error| refused(error.to_string()))?;
    notes.extend(twins(disk, facts, &fstab, &manifest));
    Ok(DiskWishes {
        layout: disk.clone(),
        architecture,
        ids: Ids::random(disk.partitions.len()),
        loader,
        efi_variables: args.efi_variables,
        boot_files,
        tools: tools(disk, &manifest, &toplevel)?,
        notes,
    })
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

/// Finds the programs that the layout needs: the manifest's, else the system's own, else those in PATH.
fn tools(disk: &DiskLayout, manifest: &Manifest, toplevel: &Toplevel) -> Result<BTreeMap<String, PathBuf>> {
    let sw = PathBuf::from(format!("{}/sw", toplevel.system));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = vec![sw.join("bin"), sw.join("sbin")];
    places.extend(std::env::split_paths(&path).filter(|dir| dir.is_absolute()));
    places.extend(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from));
    let find = |name: &str| {
        let named = manifest.tools.get(name).filter(|path| path.exists()).cloned();
        let found = named.or_else(|| command::find(name, places.iter().cloned()));
        found.map(|path| (name.to_owned(), path)).ok_or_else(|| {
            refused(format!("{name} is missing, which the layout needs; put it into the system or into PATH"))
        })
    };
    format::tools(disk).into_iter().map(find).collect()
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
        let mut toplevels = vec![String::new()];
        let specialisations =
            inside::open(self.root, &self.path("specialisation"), OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        if let Ok(dir) = specialisations {
            let dir = inside::path_of(&dir).context("finding the specialisations")?;
            for entry in fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))? {
                let name = entry.with_context(|| format!("listing {}", dir.display()))?.file_name();
                toplevels.push(format!("specialisation/{}/", name.to_string_lossy()));
            }
        }
        let files = toplevels.iter().flat_map(|top| [format!("{top}kernel"), format!("{top}initrd")]);
        Ok(files.map(|file| self.size(&file)).sum())
    }

    fn size(&self, name: &str) -> Bytes {
        let file = inside::open(self.root, &self.path(name), OFlag::O_RDONLY).map(File::from);
        Bytes(file.and_then(|file| file.metadata()).map_or(0, |meta| meta.len()))
    }
}
