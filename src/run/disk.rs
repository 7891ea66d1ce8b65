//! Performs the steps that only a disk has.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Made as AllMade, Source};
use crate::boot::loader::{self, Target};
use crate::disk::device::{Disk, PartitionDevice, kernel_name};
use crate::disk::format;
use crate::disk::image::{Image, Loop};
use crate::disk::layout::Content;
use crate::disk::mount::{self, Mounts};
use crate::disk::table::Table;
use crate::plan::DiskStep;
use crate::progress::Progress;
use crate::system::identity;

/// What the steps so far have made of the disk. The fields are dropped in this order: mounts first.
#[derive(Default)]
pub struct Made {
    mounts: Option<Mounts>,
    partitions: Vec<PartitionDevice>,
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
}

// The mounts on it are in a namespace of their own, so that two installations do not meet.
const WORK: &str = "/run/nixos-install-via";

pub fn take(step: &DiskStep, source: &Source, made: &mut AllMade, progress: &dyn Progress) -> Result<()> {
    let disk = &mut made.disk;
    match step {
        DiskStep::CreateImage { path, size } => disk.image = Some(Image::create(path, *size)?),
        DiskStep::Partition { disk: path, image, table } => partition(disk, path, *image, table)?,
        DiskStep::Format { partition, content, tools, .. } => {
            let (device, table) = (disk.device(*partition), disk.table());
            let slot = &table.slots[*partition as usize - 1];
            format::make(tools, content, device, slot.size, table.sector_size)?;
            if let Content::Btrfs(_) = content {
                mount::make_subvolumes(content, device, &work_dir("scratch")?)?;
            }
        }
        DiskStep::Mount { layout } => {
            let devices: Vec<PathBuf> = disk.partitions.iter().map(|device| device.path.clone()).collect();
            let mounts = mount::layout(layout, &devices, &work_dir("root")?)?;
            made.root = Some(mounts.root().to_owned());
            disk.mounts = Some(mounts);
        }
        DiskStep::InstallLoader { loader, efi_variables } => {
            let (root, disk) = (made.root().to_owned(), &made.disk);
            let before = identity::note(&root)?;
            let target = Target {
                root: &root,
                system: &source.closure.system,
                disk: disk.whole.as_ref().expect("a plan partitions the disk first").path(),
                partitions: &disk.nodes()?,
                loader,
                efi_variables: *efi_variables,
            };
            loader::install(&target, progress)?;
            identity::scrub(&root, &before)?;
        }
        DiskStep::Release { .. } => release(made)?,
    }
    Ok(())
}

impl Made {
    fn device(&self, number: u32) -> &Path {
        &self.partitions[number as usize - 1].path
    }

    fn table(&self) -> &Table {
        self.table.as_ref().expect("a plan partitions the disk before it formats anything")
    }
}

fn partition(made: &mut Made, path: &Path, image: bool, table: &Table) -> Result<()> {
    let (whole, partitions) = if image {
        if made.image.is_none() {
            made.image = Some(Image::open(path)?);
        }
        let (whole, partitions) = made.image.as_mut().expect("opened above").partition(table)?;
        (Whole::Image(whole), partitions)
    } else {
        let disk = Disk::open(path)?;
        let node = disk.path().to_owned();
        let (file, partitions) = disk.partition(table)?;
        (Whole::Disk(file, node), partitions)
    };
    (made.whole, made.partitions, made.table) = (Some(whole), partitions, Some(table.clone()));
    Ok(())
}

/// Lets go from the inside out; each failure is one of the installation, for bytes may be missing.
fn release(made: &mut AllMade) -> Result<()> {
    made.root = None;
    let disk = &mut made.disk;
    disk.mounts.take().map_or(Ok(()), Mounts::finish)?;
    disk.partitions.drain(..).try_for_each(PartitionDevice::finish)?;
    match disk.whole.take() {
        Some(Whole::Disk(file, path)) => {
            file.sync_all().with_context(|| format!("writing out {}", path.display()))?;
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
