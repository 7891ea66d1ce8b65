//! Performs the steps that only a disk has.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Keys, Made as AllMade, Supply};
use crate::boot::loader::{self, Install, Loader, TargetDisk, TargetPartition, link_name};
use crate::disk::contents;
use crate::disk::device::{self, Disk, kernel_name};
use crate::disk::format;
use crate::disk::image::{Image, Loop};
use crate::disk::layout::Content;
use crate::disk::luks::{self, Opened};
use crate::disk::mount::{self, Mounts};
use crate::disk::seen::Seen;
use crate::disk::table::{self, Slot, Table};
use crate::plan::DiskStep;
use crate::progress::Progress;
use crate::size::Bytes;
use crate::store::path::StorePath;
use crate::sys::ioctl;
use crate::sys::namespace::{DeviceNode, Output};
use crate::system::{enter, identity};

/// What the steps so far have made of the disk. The fields are dropped in this order: mounts first.
#[derive(Default)]
pub struct Made {
    mounts: Option<Mounts>,
    /// The encrypted partitions, by their numbers.
    opened: BTreeMap<u32, Opened>,
    partitions: Vec<PathBuf>,
    whole: Option<Whole>,
    image: Option<Image>,
    table: Option<Table>,
}

/// The device of the whole disk.
enum Whole {
    Disk(File, PathBuf),
    Image(Loop),
}

impl Whole {
    fn path(&self) -> &Path {
        match self {
            Whole::Disk(_, path) => path,
            Whole::Image(device) => device.path(),
        }
    }

    fn file(&mut self) -> &mut File {
        match self {
            Whole::Disk(file, _) => file,
            Whole::Image(device) => device.file(),
        }
    }
}

// The mounts on it are in a namespace of their own, so that two installations do not meet.
const WORK: &str = "/run/nixos-install-via";

pub fn take(
    step: &DiskStep,
    supply: &dyn Supply,
    keys: &Keys,
    made: &mut AllMade,
    progress: &dyn Progress,
) -> Result<()> {
    let disk = &mut made.disk;
    match step {
        DiskStep::CreateImage { path, size } => disk.image = Some(Image::create(path, *size)?),
        DiskStep::Partition { disk: path, image, seen, table } => {
            partition(disk, path, *image, seen.as_ref(), table)?;
        }
        DiskStep::Encrypt { partition, luks, tools, .. } => {
            let key =
                keys.get(&luks.name).with_context(|| format!("finding the passphrase of {}", luks.name))?;
            let tool = tools.get(luks::TOOL).with_context(|| format!("finding the tool {}", luks::TOOL))?;
            let device = disk.device(*partition);
            luks::format(tool, luks, device, key)?;
            // The machine that installs may have something open under the system's own name.
            let name = format!("nixos-install-via-{}-{partition}", std::process::id());
            let opened = Opened::open(tool, device, &name, key)?;
            disk.opened.insert(*partition, opened);
        }
        DiskStep::Format { partition, content, tools, .. } => {
            let (device, table) = (disk.device(*partition), disk.table());
            let slot = &table.slots[*partition as usize - 1];
            format::make(tools, content, device, slot.size, table.sector_size)?;
            if let Content::Btrfs(_) = content {
                mount::make_subvolumes(content, device, &work_dir("scratch")?)?;
            }
        }
        DiskStep::Mount { layout, binds } => {
            let mounts = mount::layout(layout, &disk.devices(), binds, &work_dir("root")?)?;
            made.root = Some(mounts.root().to_owned());
            disk.mounts = Some(mounts);
        }
        DiskStep::WriteTable { disk: shown } => {
            disk.mounts.as_ref().map_or(Ok(()), Mounts::sync)?;
            let (whole, table) = (disk.whole.as_mut(), disk.table.as_ref());
            let (whole, table) = whole.zip(table).expect("a plan partitions the disk first");
            table::write(whole.file(), table)
                .with_context(|| format!("writing the partition table of {}", shown.display()))?;
        }
        DiskStep::InstallLoader { loader, esp, efi_variables } => {
            install_loader(made, supply.system(), loader, esp.as_deref(), *efi_variables, progress)?;
        }
        DiskStep::Release { .. } => release(made)?,
    }
    Ok(())
}

impl Made {
    /// Returns the device whose contents are a partition's: what is opened, where it is encrypted.
    fn device(&self, number: u32) -> &Path {
        self.opened.get(&number).map_or(&self.partitions[number as usize - 1], Opened::path)
    }

    fn devices(&self) -> Vec<PathBuf> {
        (1..=self.partitions.len() as u32).map(|number| self.device(number).to_owned()).collect()
    }

    /// Returns what a boot loader's installer finds of the encrypted partitions that are open.
    fn opened_for_loader(&self) -> Result<Vec<DeviceNode>> {
        let node = |opened: &Opened| {
            let (rdev, path) = (number(opened.path())?, opened.path());
            let mut names = vec![kernel_name(rdev)?, opened.name().to_owned()];
            names.extend(names_of_content(path)?);
            Ok(DeviceNode { names, rdev })
        };
        self.opened.values().map(node).collect()
    }

    fn partitions_for_loader(&self) -> Result<Vec<TargetPartition>> {
        let partition = |(slot, device): (&Slot, &PathBuf)| {
            let rdev = number(device)?;
            let mut links =
                vec![link_name("partuuid", &slot.uuid.to_string()), link_name("partlabel", &slot.name)];
            links.extend(names_of_content(device)?);
            Ok(TargetPartition { number: slot.number, name: kernel_name(rdev)?, rdev, links })
        };
        self.table().slots.iter().zip(&self.partitions).map(partition).collect()
    }

    fn table(&self) -> &Table {
        self.table.as_ref().expect("a plan partitions the disk before it formats anything")
    }
}

fn partition(made: &mut Made, path: &Path, image: bool, seen: Option<&Seen>, table: &Table) -> Result<()> {
    let (whole, partitions) = if image {
        if made.image.is_none() {
            let mut image = Image::open(path)?;
            seen.map_or(Ok(()), |seen| seen.check(image.file(), &path.display().to_string()))?;
            made.image = Some(image);
        }
        let (whole, partitions) = made.image.as_mut().expect("opened above").partition(table)?;
        (Whole::Image(whole), partitions)
    } else {
        let disk = Disk::open(path)?;
        seen.map_or(Ok(()), |seen| disk.check(seen))?;
        let node = disk.path().to_owned();
        let (file, partitions) = disk.partition(table)?;
        (Whole::Disk(file, node), partitions)
    };
    (made.whole, made.partitions, made.table) = (Some(whole), partitions, Some(table.clone()));
    Ok(())
}

fn install_loader(
    made: &AllMade,
    system: &StorePath,
    loader: &Loader,
    esp: Option<&Path>,
    efi_variables: bool,
    progress: &dyn Progress,
) -> Result<()> {
    let root = made.root();
    let before = identity::note(root)?;
    let whole = made.disk.whole.as_ref().expect("a plan partitions the disk first").path();
    let target = TargetDisk {
        name: kernel_name(number(whole)?)?,
        rdev: number(whole)?,
        partitions: made.disk.partitions_for_loader()?,
    };
    let mut devices = loader::device_nodes(&[target], &loader.baked_devices);
    devices.extend(made.disk.opened_for_loader()?);
    let install = Install {
        root,
        system,
        loader,
        esp,
        devices,
        disks: &[whole.to_owned()],
        efi_variables,
        activation: enter::activation(root, system, Output::ShowFailure),
    };
    loader::install(&install, progress)?;
    identity::scrub(root, &before)?;
    Ok(())
}

/// Returns the number of a block device.
fn number(device: &Path) -> Result<u64> {
    let meta = fs::metadata(device).with_context(|| format!("looking at {}", device.display()))?;
    Ok(meta.rdev())
}

/// Returns what udev would call a device by what is really on it.
fn names_of_content(device: &Path) -> Result<Vec<String>> {
    let looking = || format!("looking at {}", device.display());
    let file = File::open(device).with_context(looking)?;
    let size = ioctl::device_size(&file).with_context(looking)?;
    let found = contents::on_device(&file, Bytes(0), size)?.unwrap_or_default();
    let label = found.label.map(|label| link_name("label", &label));
    let uuid = found.uuid.map(|uuid| link_name("uuid", &uuid));
    Ok(label.into_iter().chain(uuid).collect())
}

/// Lets go from the inside out; each failure is one of the installation, for bytes may be missing.
fn release(made: &mut AllMade) -> Result<()> {
    made.root = None;
    let disk = &mut made.disk;
    disk.mounts.take().map_or(Ok(()), Mounts::finish)?;
    while let Some((_, opened)) = disk.opened.pop_last() {
        opened.finish()?;
    }
    disk.partitions.clear();
    match disk.whole.take() {
        Some(Whole::Disk(file, path)) => {
            file.sync_all().with_context(|| format!("writing out {}", path.display()))?;
            device::reread(&file)
                .with_context(|| format!("rereading the partition table of {}", path.display()))?;
        }
        Some(Whole::Image(device)) => device.finish()?,
        None => {}
    }
    disk.image.take().map_or(Ok(()), Image::finish)
}

fn work_dir(name: &str) -> Result<PathBuf> {
    let dir = Path::new(WORK).join(name);
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    Ok(dir)
}
