//! The plan of `install-to-disk`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{Plan, Purpose, Step, Summary, Wishes, fill_root};
use crate::boot::loader::{Kind, Loader, Need};
use crate::disk::layout::{Architecture, Content, DiskLayout, Format, LUKS_HEADER, Luks};
use crate::disk::places::{self, Bind};
use crate::disk::seen::Seen;
use crate::disk::table::{self, Ids, Table};
use crate::disk::{fstab, picture};
use crate::facts::{DiskFacts, DiskKind};
use crate::failure::refused;
use crate::size::Bytes;

// The loader itself, its configuration, and its first growth.
const LOADER: Bytes = Bytes::mib(4);

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
        /// What was shown of it, where it is a disk of this machine.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seen: Option<Seen>,
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
        /// The system's own, as far as something is written through them.
        #[serde(default)]
        binds: Vec<Bind>,
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
            DiskStep::Mount { layout, .. } => {
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
    /// What the layout calls the disk.
    pub name: String,
    pub layout: DiskLayout,
    pub architecture: Architecture,
    pub ids: Ids,
    pub loader: Loader,
    /// What the loader's installer reads from outside the store, and nobody brings.
    pub lacking: Vec<Need>,
    /// The disk as it was when it was looked at.
    pub seen: Option<Seen>,
    /// What the system mounts.
    pub fstab: Vec<fstab::Entry>,
    /// The person's own files, where they go.
    pub brought: Vec<PathBuf>,
    /// The host keys that the machine is given.
    pub host_keys: Vec<PathBuf>,
    pub efi_variables: bool,
    /// Kernel and initrd, with all specialisations.
    pub boot_files: Bytes,
    /// The programs that the layout needs.
    pub tools: BTreeMap<String, PathBuf>,
    pub notes: Vec<String>,
}

impl DiskWishes {
    /// Returns where the loader has kernels and initrds.
    fn kernels(&self) -> String {
        let beside_store = matches!(
            self.loader.kind,
            Kind::GrubBios | Kind::GrubEfi | Kind::GrubBoth | Kind::GrubMenu | Kind::Extlinux
        );
        let esp = || self.esp().filter(|_| !beside_store);
        let place = self.loader.boot_mount_point.clone().or_else(esp);
        place.map_or_else(|| "/boot".to_owned(), |place| place.to_string_lossy().into_owned())
    }

    /// Returns all places that an installation writes to, but for the store and what belongs to it.
    fn written(&self) -> Vec<PathBuf> {
        let mut places = self.loader_places();
        places.extend(self.brought.iter().chain(&self.host_keys).cloned());
        places
    }

    /// Tells whether the host keys that the machine is given would be in memory only.
    pub fn loses_host_keys(&self) -> bool {
        self.host_keys.iter().any(|key| places::is_in_memory(&self.fstab, &self.layout, key))
    }

    /// Returns where the loader's installer writes.
    fn loader_places(&self) -> Vec<PathBuf> {
        let mut places = vec![PathBuf::from(self.kernels())];
        places.extend(self.esp());
        places.extend(self.loader.written.iter().cloned());
        places
    }

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
    if let Some(room) = facts.room.filter(|room| *room < closure.space) {
        return Err(refused(format!(
            "the file system that holds {shown} has room for {room}, but the system needs {}; put the image elsewhere",
            closure.space
        )));
    }
    readable_by_loader(disk)?;
    has_what_loader_reads(&disk.lacking)?;
    stays_on_disk(disk)?;

    let mut steps = Vec::new();
    if facts.kind == DiskKind::NewImage {
        steps.push(DiskStep::CreateImage { path: facts.path.clone(), size: facts.size });
    }
    let image = facts.kind != DiskKind::BlockDevice;
    steps.push(DiskStep::Partition {
        disk: facts.path.clone(),
        image,
        seen: disk.seen.clone(),
        table: table.clone(),
    });
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
    let binds = places::binds(&disk.fstab, disk.written().iter().map(PathBuf::as_path));
    steps.push(DiskStep::Mount { layout: disk.layout.clone(), binds });
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
    let room = |index: usize| {
        let partition = &disk.layout.partitions[index];
        let header = partition.luks().map_or(Bytes(0), |_| LUKS_HEADER);
        let opened = partition.content.as_ref().map(Content::opened);
        usable_size(table.slots[index].size - header, opened.and_then(Content::format))
    };
    let partition_of = |path: &str| disk.layout.partition_of(path);
    let store = partition_of("/nix/store");
    if let Some(index) = store {
        let have = room(index);
        if have < closure.space {
            return Err(refused(format!(
                "the disk holds {} and its partition {} would have room for {have}, but the system needs {}; \
                 choose a larger disk",
                table.disk_size, table.slots[index].name, closure.space
            )));
        }
    }
    let kernels = partition_of(&disk.kernels());
    for (index, need, what) in [
        // A loader that reads kernels beside the store finds them in it.
        (
            kernels.filter(|_| kernels != store),
            disk.boot_files + LOADER,
            "kernel, initrd and boot loader need",
        ),
        (disk.layout.esp(), LOADER, "the boot loader needs"),
    ] {
        let Some(index) = index else { continue };
        let have = room(index);
        if have < need {
            return Err(refused(format!(
                "partition {} would have room for {have} and {what} {need}; give it more in a --layout",
                table.slots[index].name
            )));
        }
    }
    Ok(())
}

/// Checks that a loader which reads kernels itself finds them where nothing is encrypted.
fn readable_by_loader(disk: &DiskWishes) -> Result<()> {
    let kernels = disk.kernels();
    let on = disk.layout.partition_of(&kernels).map(|index| &disk.layout.partitions[index]);
    match on.filter(|partition| partition.luks().is_some()) {
        Some(partition) => Err(refused(format!(
            "{} would have to read {kernels} from the encrypted partition {}, which this version does not set up; \
             give {kernels} a partition of its own in a --layout",
            disk.loader.kind, partition.name
        ))),
        None => Ok(()),
    }
}

/// Checks that the installer of the loader, which runs last of all, will not fail for want of a file.
fn has_what_loader_reads(lacking: &[Need]) -> Result<()> {
    let Some(first) = lacking.first() else { return Ok(()) };
    let paths: Vec<String> = lacking.iter().map(|need| need.path.display().to_string()).collect();
    let relative = first.path.strip_prefix("/").unwrap_or(&first.path);
    Err(refused(format!(
        "{} reads {}, which the new system would not have; bring it by --extra-files DIR, with DIR/{} in it",
        first.by,
        paths.join(" and "),
        relative.display()
    )))
}

/// Checks that nothing is written where the running system has memory, which is empty at its first boot.
fn stays_on_disk(disk: &DiskWishes) -> Result<()> {
    let is_lost = |path: &&PathBuf| places::is_in_memory(&disk.fstab, &disk.layout, path);
    let kept = disk.layout.mounts();
    let kept: Vec<&str> =
        kept.iter().filter(|it| it.format != Format::Vfat).map(|it| it.mountpoint).collect();
    // Where one that is not known writes is its own affair.
    let known = disk.loader.kind != Kind::External;
    if let Some(place) = disk.loader_places().iter().find(|place| known && is_lost(place)) {
        return Err(refused(format!(
            "{} writes to {}, which the system keeps in memory; mount a partition or bind a directory of {} there, in its configuration",
            disk.loader.kind,
            place.display(),
            kept.join(" or ")
        )));
    }
    match disk.brought.iter().find(is_lost) {
        None => Ok(()),
        Some(file) => Err(refused(format!(
            "the extra file {} would lie in memory, where the first boot does not find it; put it below {}",
            file.display(),
            kept.join(" or ")
        ))),
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

    const CLOSURE: Summary = Summary { paths: 1, bytes: Bytes::gib(2), space: Bytes::gib(2) };

    /// A disk of 8 GiB with these partitions, and a system of 2 GiB with 60 MiB of kernel and initrd.
    fn disk(kind: Kind, boot: Option<&str>, partitions: &[(&str, &str)]) -> (DiskWishes, Table) {
        let partition = |(name, rest): &(&str, &str)| format!(r#"{{"name":"{name}",{rest}}}"#);
        let partitions: Vec<String> = partitions.iter().map(partition).collect();
        let text = format!(r#"{{"disks":{{"main":{{"partitions":[{}]}}}}}}"#, partitions.join(","));
        let layout = crate::disk::layout::parse(&text).unwrap();
        let (name, layout) = layout.disk().unwrap();
        let ids = Ids::random(layout.partitions.len());
        let table = table::plan(layout, Architecture::X86_64, Bytes::gib(8), 512, &ids).unwrap();
        let loader = Loader {
            kind,
            esp_mount_point: None,
            boot_mount_point: boot.map(PathBuf::from),
            written: vec![],
            baked_devices: vec![],
            can_touch_efi_variables: None,
        };
        let wishes = DiskWishes {
            name: name.to_owned(),
            layout: layout.clone(),
            architecture: Architecture::X86_64,
            ids,
            loader,
            lacking: vec![],
            seen: None,
            fstab: vec![],
            brought: vec![],
            host_keys: vec![],
            efi_variables: false,
            boot_files: Bytes::mib(60),
            tools: BTreeMap::new(),
            notes: vec![],
        };
        (wishes, table)
    }

    const ROOT: &str =
        r#""type":"root","size":"100%","content":{"type":"filesystem","format":"ext4","mountpoint":"/"}"#;
    const LUKS: &str = r#""type":"root","size":"100%","content":{"type":"luks","name":"root","content":{"type":"filesystem","format":"ext4","mountpoint":"/"}}"#;

    fn at(kind: &str, size: &str, format: &str, mountpoint: &str) -> String {
        format!(
            r#""type":"{kind}","size":"{size}","content":{{"type":"filesystem","format":"{format}","mountpoint":"{mountpoint}"}}"#
        )
    }

    #[test]
    fn closure_kernels_and_loader_fit_where_they_go() {
        let esp = |size| at("esp", size, "vfat", "/boot");
        let efi = |size| at("esp", size, "vfat", "/efi");
        let boot = |size| at("linux", size, "ext4", "/boot");
        for (kind, boot_at, partitions, says) in [
            (Kind::SystemdBoot, None, vec![("ESP", esp("80M")), ("root", ROOT.into())], ""),
            (
                Kind::SystemdBoot,
                None,
                vec![("ESP", esp("64M")), ("root", ROOT.into())],
                "partition ESP would have room for 62.8 MiB and kernel, initrd and boot loader need 64 MiB",
            ),
            (Kind::Lanzaboote, None, vec![("ESP", efi("64M")), ("root", ROOT.into())], "partition ESP"),
            (Kind::External, None, vec![("ESP", efi("64M")), ("root", ROOT.into())], "partition ESP"),
            // GRUB reads kernels where the store is, and the ESP has it alone.
            (Kind::GrubEfi, None, vec![("ESP", efi("16M")), ("root", ROOT.into())], ""),
            (
                Kind::GrubEfi,
                Some("/boot"),
                vec![("ESP", efi("4M")), ("root", ROOT.into())],
                "partition ESP would have room for 3 MiB and the boot loader needs 4 MiB",
            ),
            (
                Kind::GrubBios,
                Some("/boot"),
                vec![("boot", boot("64M")), ("root", ROOT.into())],
                "partition boot would have room for",
            ),
            (
                Kind::SystemdBoot,
                Some("/boot"),
                vec![("ESP", efi("16M")), ("boot", boot("64M")), ("root", ROOT.into())],
                "partition boot would have room for",
            ),
            (
                Kind::SystemdBoot,
                Some("/boot"),
                vec![("ESP", efi("16M")), ("boot", boot("90M")), ("root", ROOT.into())],
                "",
            ),
            (
                Kind::SystemdBoot,
                None,
                vec![
                    ("ESP", esp("80M")),
                    ("home", at("linux", "6200M", "ext4", "/home")),
                    ("root", ROOT.into()),
                ],
                "the disk holds 8 GiB and its partition root",
            ),
        ] {
            let partitions: Vec<(&str, &str)> =
                partitions.iter().map(|(name, rest)| (*name, rest.as_str())).collect();
            let (wishes, table) = disk(kind, boot_at, &partitions);
            let told =
                fits(&wishes, &table, CLOSURE).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(told.starts_with(says) && told.is_empty() == says.is_empty(), "{partitions:?}: {told}");
        }
    }

    #[test]
    fn a_loader_is_not_asked_to_read_what_is_encrypted() {
        for (kind, esp, readable) in [
            (Kind::SystemdBoot, "/boot", true),
            (Kind::SystemdBoot, "/efi", true),
            (Kind::Lanzaboote, "/boot/efi", true),
            (Kind::GrubEfi, "/boot", true),
            (Kind::GrubEfi, "/boot/efi", false),
        ] {
            let esp = at("esp", "512M", "vfat", esp);
            let (wishes, _) = disk(kind, None, &[("ESP", &esp), ("root", LUKS)]);
            assert_eq!(readable_by_loader(&wishes).is_ok(), readable, "{kind:?} {esp}");
        }
    }

    #[test]
    fn a_loader_gets_what_it_reads_and_writes_to_a_disk() {
        let persist = || at("linux", "100%", "ext4", "/nix");
        let in_memory = "none / tmpfs - 0 0\nLABEL=n /nix ext4 - 0 0\n";
        let bound = "none / tmpfs - 0 0\nLABEL=n /nix ext4 - 0 0\n/nix/persist/boot /boot none bind 0 0\n";
        for (kind, fstab, brought, says) in [
            (Kind::GrubMenu, bound, None, ""),
            (
                Kind::GrubMenu,
                in_memory,
                None,
                "GRUB's menu writes to /boot, which the system keeps in memory",
            ),
            (Kind::External, in_memory, None, ""),
            (Kind::External, in_memory, Some("/nix/persist/x"), ""),
            (Kind::External, in_memory, Some("/etc/x"), "the extra file /etc/x would lie in memory"),
        ] {
            let (mut wishes, _) = disk(kind, None, &[("root", &persist())]);
            wishes.fstab = fstab::parse(fstab);
            wishes.brought = brought.into_iter().map(PathBuf::from).collect();
            let said = stays_on_disk(&wishes).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(said.is_empty() == says.is_empty() && said.starts_with(says), "{kind} {fstab}: {said}");
            assert!(says.is_empty() || said.contains("/nix"), "{said}");
        }
        let need =
            |path: &str| Need { path: path.into(), by: "the system's append-initrd-secrets".to_owned() };
        has_what_loader_reads(&[]).unwrap();
        let error = has_what_loader_reads(&[need("/etc/secrets/a"), need("/etc/secrets/b")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the system's append-initrd-secrets reads /etc/secrets/a and /etc/secrets/b, which the new system would not have; \
             bring it by --extra-files DIR, with DIR/etc/secrets/a in it"
        );
    }
}
