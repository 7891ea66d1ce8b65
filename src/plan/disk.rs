//! The plan of `install-to-disk`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{Plan, Purpose, Step, Summary, Wishes, fill_root};
use crate::boot::loader::Loader;
use crate::disk::layout::{Architecture, Content, DiskLayout, Format, LUKS_HEADER, Luks};
use crate::disk::picture;
use crate::disk::table::{self, Ids, Slot, Table};
use crate::facts::{DiskFacts, DiskKind};
use crate::failure::refused;
use crate::size::Bytes;

/// The steps that only a disk has.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "camelCase")]
pub enum DiskStep {
    /// Create a sparse image file.
    CreateImage {
        path: PathBuf,
        size: Bytes,
    },
    /// Erase boot code, tables and every signature of a file system, and tell the kernel of the new partitions.
    Partition {
        disk: PathBuf,
        image: bool,
        table: Table,
    },
    /// Encrypt a partition with a passphrase that the plan does not hold, and open it.
    Encrypt {
        partition: u32,
        name: String,
        luks: Luks,
        tools: BTreeMap<String, PathBuf>,
    },
    Format {
        partition: u32,
        name: String,
        content: Content,
        tools: BTreeMap<String, PathBuf>,
    },
    /// Mount the new file systems in a private namespace.
    Mount {
        layout: DiskLayout,
    },
    /// Write the partition table. Until then nobody finds the file systems: neither firmware nor a system
    /// that looks for its own root by a label which the new one has too.
    WriteTable {
        disk: PathBuf,
    },
    InstallLoader {
        loader: Loader,
        esp: Option<PathBuf>,
        efi_variables: bool,
    },
    /// Write everything out and unmount.
    Release {
        disk: PathBuf,
    },
}

impl fmt::Display for DiskStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiskStep::CreateImage { path, size } => write!(f, "Create {}, {size}, sparse", path.display()),
            DiskStep::Partition { disk, table, .. } => {
                let partitions = count(table.slots.len(), "partition");
                write!(f, "Wipe {} and lay out {partitions}", disk.display())
            }
            DiskStep::WriteTable { disk } => {
                write!(f, "Write everything out, then the partition table of {}", disk.display())
            }
            DiskStep::Encrypt { partition, name, luks, .. } => {
                write!(
                    f,
                    "Encrypt partition {partition}, {name}, with LUKS; the system opens it as {}",
                    luks.name
                )
            }
            DiskStep::Format { partition, name, content, .. } => {
                write!(f, "Format partition {partition}, {name}, as {}", content.format_name())?;
                content.label().map_or(Ok(()), |label| write!(f, " labelled {label}"))
            }
            DiskStep::Mount { layout } => {
                let points: Vec<&str> = layout.mounts().iter().map(|mount| mount.mountpoint).collect();
                write!(f, "Mount the new {} out of everyone's sight", points.join(", "))
            }
            DiskStep::InstallLoader { loader, efi_variables, .. } => {
                write!(f, "Install {}, by the system's own switch-to-configuration in a fence", loader.kind)?;
                f.write_str(if *efi_variables { "; EFI boot entries may change" } else { "" })
            }
            DiskStep::Release { disk } => write!(f, "Write everything out and let go of {}", disk.display()),
        }
    }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// What is asked of a disk, everything looked up.
#[derive(Clone, Debug)]
pub struct DiskWishes {
    pub layout: DiskLayout,
    pub architecture: Architecture,
    pub ids: Ids,
    pub loader: Loader,
    pub efi_variables: bool,
    /// Kernel and initrd, with all specialisations.
    pub boot_files: Bytes,
    /// The programs that the layout needs.
    pub tools: BTreeMap<String, PathBuf>,
    pub notes: Vec<String>,
}

impl DiskWishes {
    /// Returns where the ESP is mounted.
    fn esp(&self) -> Option<PathBuf> {
        let esp = self.layout.esp()?;
        let mounts = self.layout.mounts();
        let mount = mounts.iter().find(|mount| mount.partition == esp);
        mount.map(|mount| PathBuf::from(mount.mountpoint))
    }
}

/// Decides how a system gets onto a disk.
pub fn install_to_disk(
    wishes: &Wishes,
    disk: &DiskWishes,
    facts: &DiskFacts,
    closure: Summary,
) -> Result<Plan> {
    let shown = facts.path.display();
    usable(facts)?;
    let table = table::plan(&disk.layout, disk.architecture, facts.size, facts.sector_size, &disk.ids)
        .map_err(|error| refused(format!("{shown}: {error}")))?;
    fits(disk, &table, closure)?;
    readable_by_loader(disk)?;

    let mut steps = Vec::new();
    if facts.kind == DiskKind::NewImage {
        steps.push(DiskStep::CreateImage { path: facts.path.clone(), size: facts.size });
    }
    let image = facts.kind != DiskKind::BlockDevice;
    steps.push(DiskStep::Partition { disk: facts.path.clone(), image, table: table.clone() });
    for (slot, partition) in table.slots.iter().zip(&disk.layout.partitions) {
        let (number, name, tools) = (slot.number, slot.name.clone(), disk.tools.clone());
        steps.extend(partition.layers().cloned().map(|content| {
            let (name, tools) = (name.clone(), tools.clone());
            match content {
                Content::Luks(luks) => DiskStep::Encrypt { partition: number, name, luks, tools },
                content => DiskStep::Format { partition: number, name, content, tools },
            }
        }));
    }
    steps.push(DiskStep::Mount { layout: disk.layout.clone() });
    let mut steps: Vec<Step> = steps.into_iter().map(Step::Disk).collect();
    steps.extend(fill_root(wishes, closure));
    steps.push(Step::Disk(DiskStep::WriteTable { disk: facts.path.clone() }));
    steps.push(Step::Disk(DiskStep::InstallLoader {
        loader: disk.loader.clone(),
        esp: disk.esp(),
        efi_variables: disk.efi_variables,
    }));
    steps.push(Step::Disk(DiskStep::Release { disk: facts.path.clone() }));
    Ok(Plan {
        purpose: Purpose::Install,
        system: wishes.system.clone(),
        from: wishes.from.clone(),
        target: facts.path.clone(),
        closure,
        before: lines(&facts.picture(&describe(facts))),
        after: lines(&picture::of_table("", &table, &disk.layout)),
        notes: disk.notes.clone(),
        steps,
    })
}

fn lines(text: &str) -> Vec<String> {
    text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Says which disk it is, as its label and the catalogue would.
fn describe(facts: &DiskFacts) -> String {
    let kind = match facts.kind {
        DiskKind::BlockDevice | DiskKind::NoDisk => None,
        DiskKind::ImageFile => Some("image file".to_owned()),
        DiskKind::NewImage => Some("new image file".to_owned()),
    };
    let removable = facts.removable.then(|| "removable".to_owned());
    let serial = facts.serial.as_ref().map(|serial| format!("serial {serial}"));
    let words =
        [kind, facts.model.clone(), serial, Some(facts.size.to_string()), facts.transport.clone(), removable];
    words.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn usable(facts: &DiskFacts) -> Result<()> {
    if facts.refusals.is_empty() {
        return Ok(());
    }
    let reasons: Vec<String> = facts.refusals.iter().map(ToString::to_string).collect();
    Err(refused(format!("{} is no place for a system: {}", facts.path.display(), reasons.join("; "))))
}

/// Checks that what is copied fits into the partitions it goes to.
fn fits(disk: &DiskWishes, table: &Table, closure: Summary) -> Result<()> {
    let size = |path: &str| disk.layout.partition_of(path).map(|index| (&table.slots[index], index));
    let room = |slot: &Slot, index: usize| {
        let partition = &disk.layout.partitions[index];
        let header = partition.luks().map_or(Bytes(0), |_| LUKS_HEADER);
        let opened = partition.content.as_ref().map(Content::opened);
        usable_size(slot.size - header, opened.and_then(Content::format))
    };
    if let Some((slot, index)) = size("/nix/store") {
        let have = room(slot, index);
        if have < closure.space {
            return Err(refused(format!(
                "the disk holds {} and its partition {} would have room for {have}, but the system needs {}; \
                 choose a larger disk",
                table.disk_size, slot.name, closure.space
            )));
        }
    }
    let boot = disk.loader.boot_mount_point.clone().or(disk.esp()).unwrap_or_else(|| "/boot".into());
    if let Some((slot, index)) = boot
        .to_str()
        .and_then(size)
        .filter(|(slot, _)| Some(slot.number) != size("/").map(|(root, _)| root.number))
    {
        let have = room(slot, index);
        // The loader itself, its configuration, and its first growth.
        let need = disk.boot_files + Bytes::mib(4);
        if have < need {
            return Err(refused(format!(
                "partition {} would have room for {have} and kernel, initrd and boot loader need {need}; \
                 give it more in a --layout",
                slot.name
            )));
        }
    }
    Ok(())
}

/// Checks that GRUB, which reads kernels itself, finds them where nothing is encrypted.
fn readable_by_loader(disk: &DiskWishes) -> Result<()> {
    let boot = disk.loader.boot_mount_point.as_deref().and_then(Path::to_str).unwrap_or("/boot");
    let on = disk.layout.partition_of(boot).map(|index| &disk.layout.partitions[index]);
    match on.filter(|partition| partition.luks().is_some()) {
        Some(partition) => Err(refused(format!(
            "{} would have to read {boot} from the encrypted partition {}, which this version does not set up; \
             give {boot} a partition of its own in a --layout",
            disk.loader.kind, partition.name
        ))),
        None => Ok(()),
    }
}

/// Returns what a new file system of this size leaves for files, a little less rather than more.
fn usable_size(size: Bytes, format: Option<Format>) -> Bytes {
    match format {
        // Inode tables take 1/64, the journal up to 1 GiB but at most some 1/32 of it.
        Some(Format::Ext2 | Format::Ext3 | Format::Ext4) => {
            size - Bytes(size.0 / 64) - Bytes(size.0 / 32).min(Bytes::gib(1)) - Bytes::mib(4)
        }
        Some(Format::Xfs) => size - Bytes(size.0 / 50) - Bytes::mib(64),
        // Metadata is kept twice.
        Some(Format::Btrfs) => size - Bytes(size.0 / 16) - Bytes::mib(32),
        Some(Format::Vfat) | None => size - Bytes(size.0 / 256) - Bytes::mib(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_leaves_less_than_its_partition() {
        for (format, have) in [
            (Format::Ext4, Bytes::mib(1024 - 16 - 32 - 4)),
            (Format::Xfs, Bytes(Bytes::gib(1).0 - Bytes::gib(1).0 / 50 - Bytes::mib(64).0)),
            (Format::Btrfs, Bytes::mib(1024 - 64 - 32)),
            (Format::Vfat, Bytes::mib(1024 - 4 - 1)),
        ] {
            assert_eq!(usable_size(Bytes::gib(1), Some(format)), have, "{format:?}");
            assert_eq!(usable_size(Bytes::mib(1), Some(format)), Bytes(0), "{format:?}");
        }
    }
}
