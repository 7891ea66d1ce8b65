//! Deriving: from a system's own fstab and boot loader to a layout that its clone boots from.
//!
//! Decides only. A clone boots with the unchanged closure, so each label, UUID, PARTLABEL and
//! PARTUUID that fstab names is given to the new file system or partition. What cannot be made
//! again is refused by name; what the system boots without is left out and told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use self::choice::{check_reproducible, keep, refuse};
use super::fstab::{self, Entry, Name};
use super::layout::{
    Architecture, Btrfs, Content, DiskLayout, Filesystem, Format, LUKS_HEADER, Layout, LayoutError, Luks,
    Partition, PartitionType, Size, Subvolume, Swap,
};
use super::names;
use crate::size::Bytes;

pub mod choice;

// systemd grows a file system whose entry has this bit, when it found it by its type; the root from version 255 on.
const GROW_FILE_SYSTEM: u8 = 59;
// Where systemd looks for the encrypted root of the disk that was booted.
pub(super) const GPT_AUTO_LUKS: &str = "/dev/gpt-auto-root-luks";
// The least vfat on sectors of 4096 bytes that is FAT32, which some firmware insists on, is 257 MiB.
const SMALLEST_ESP: Bytes = Bytes::mib(288);
const USUAL_ESP: Bytes = Bytes::gib(1);
const USUAL_BOOT: Bytes = Bytes::gib(1);
const USUAL_SWAP: Bytes = Bytes::gib(2);
const SMALLEST_SWAP: Bytes = Bytes::mib(64);

/// What the boot loader wants of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    SystemdBoot,
    GrubBios,
    GrubEfi,
    GrubHybrid,
    /// lanzaboote, limine, refind: anything started from an EFI system partition.
    OtherEfi,
    /// extlinux and the like: no partition of its own.
    NoPartition,
}

impl Loader {
    pub fn needs_esp(self) -> bool {
        !matches!(self, Loader::GrubBios | Loader::NoPartition)
    }

    pub fn needs_bios_boot(self) -> bool {
        matches!(self, Loader::GrubBios | Loader::GrubHybrid)
    }
}

/// A device that fstab names, as this machine has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// The device node behind the name, by which two names of one device are known as one.
    pub node: String,
    pub size: Bytes,
    /// What is on it, such as `ext4`, where it could be read.
    pub format: Option<String>,
    /// The name in `/dev/mapper` of what was opened from an encrypted device.
    pub opened: Option<String>,
}

/// What a layout is derived from.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The text of `$toplevel/etc/fstab`.
    pub fstab: &'a str,
    /// The text of `$toplevel/kernel-params`.
    pub kernel_params: &'a str,
    pub loader: Loader,
    /// The encrypted devices that the initrd opens, by the names it gives them, as the manifest says it.
    pub luks: &'a BTreeMap<String, PathBuf>,
    /// Where the ESP is mounted, if the manifest says it.
    pub esp_mountpoint: Option<&'a str>,
    /// Where else the loader's installer writes, and so needs what is mounted there.
    pub written: &'a [PathBuf],
    pub architecture: Architecture,
    /// The devices that [`named`] returns and are here, by their spelling there.
    pub present: &'a BTreeMap<String, Present>,
    /// The size of the disk to install onto, where it is known.
    pub disk_size: Option<Bytes>,
    /// Kernel and initrd of one generation, all specialisations.
    pub boot_files: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Derived {
    pub layout: Layout,
    /// What was left out, a sentence each.
    pub notes: Vec<String>,
}

/// Derives the layout of one disk that the system boots from unchanged.
pub fn derive(wanted: &Wanted<'_>) -> Result<Derived, LayoutError> {
    let entries = fstab::parse(wanted.fstab);
    let gpt_auto = kernel_root(wanted.kernel_params) == Some("gpt-auto");
    let mut notes = Vec::new();
    let kept = keep(&entries, &esp_mountpoint(wanted, &entries), wanted, &mut notes)?;
    let mut volumes = volumes(&kept, wanted, &mut notes)?;
    name_as_kernel_does(&mut volumes, wanted);
    complete(&mut volumes, wanted, gpt_auto, &entries)?;
    volumes.sort_by_key(|volume| volume.role);

    let store = volumes.iter().rposition(|volume| volume.role == Role::Root);
    let count = volumes.len();
    let mut partitions = Vec::new();
    if wanted.loader.needs_bios_boot() {
        partitions.push(bios_boot());
    }
    for (index, volume) in volumes.iter().enumerate() {
        let takes_rest = Some(index) == store && index + 1 == count;
        let size = if takes_rest { Size::Rest } else { Size::Fixed(volume.size(wanted)?) };
        partitions.push(volume.partition(size, gpt_auto)?);
    }
    // The ESP comes first: some firmware only looks there.
    partitions.sort_by_key(|partition| partition.kind != PartitionType::Esp);
    name_partitions(&mut partitions);
    let disk = DiskLayout { device: None, partitions };
    let layout = Layout { disks: BTreeMap::from([("main".to_owned(), disk)]) };
    layout.validate()?;
    names::check(&layout, wanted.fstab, wanted.luks)?;
    Ok(Derived { layout, notes })
}

/// Returns all devices that a system names in its fstab and to its kernel, as they are written there.
pub fn named(fstab: &str, kernel_params: &str) -> Vec<String> {
    let entries = fstab::parse(fstab).into_iter().map(|entry| entry.device);
    let params = names::of_kernel(kernel_params).map(|(_, device)| device.to_owned());
    entries.chain(params).collect()
}

/// Gives to what fstab names the names that the kernel's parameters have for it.
fn name_as_kernel_does(volumes: &mut [Volume], wanted: &Wanted<'_>) {
    for (_, device) in names::of_kernel(wanted.kernel_params) {
        let Some(here) = wanted.present.get(device) else { continue };
        let is_it = |volume: &&mut Volume| volume.present.as_ref().is_some_and(|have| have.is_same(here));
        let Some(volume) = volumes.iter_mut().find(is_it) else { continue };
        let name = Name::parse(device);
        let same_kind = |have: &Name| std::mem::discriminant(have) == std::mem::discriminant(&name);
        if !volume.names.iter().any(same_kind) {
            volume.names.push(name);
        }
    }
}

impl Present {
    fn is_same(&self, other: &Present) -> bool {
        !self.node.is_empty() && self.node == other.node
    }
}

/// What a partition is for, in the order in which they are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Esp,
    Boot,
    Swap,
    Other,
    Root,
}

/// A partition to be: everything fstab says about one device.
#[derive(Clone, Debug)]
struct Volume {
    role: Role,
    device: String,
    names: Vec<Name>,
    kind: String,
    entries: Vec<Entry>,
    present: Option<Present>,
    /// What it is opened as and from, where it is encrypted.
    luks: Option<(String, PathBuf)>,
}

fn kernel_root(params: &str) -> Option<&str> {
    params.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix("root="))
}

/// Finds the ESP's mount point: told, else the likeliest vfat of fstab, else NixOS's default.
fn esp_mountpoint(wanted: &Wanted<'_>, entries: &[Entry]) -> String {
    if let Some(told) = wanted.esp_mountpoint {
        return told.to_owned();
    }
    let vfat = |at: &str| {
        entries.iter().any(|entry| entry.mountpoint == at && matches!(entry.kind.as_str(), "vfat" | "auto"))
    };
    let usual =
        ["/efi", "/boot/efi", "/boot/EFI", "/boot/ESP", "/esp", "/boot"].into_iter().find(|at| vfat(at));
    let any = || entries.iter().find(|entry| entry.kind == "vfat").map(|entry| entry.mountpoint.as_str());
    usual.or_else(any).unwrap_or("/boot").to_owned()
}

/// Groups the entries by device.
fn volumes(kept: &[Entry], wanted: &Wanted<'_>, notes: &mut Vec<String>) -> Result<Vec<Volume>, LayoutError> {
    let mut volumes: Vec<Volume> = Vec::new();
    for entry in kept {
        let here = wanted.present.get(&entry.device);
        let same = |volume: &&mut Volume| {
            let nodes = volume.present.as_ref().zip(here);
            volume.device == entry.device
                || volume.names.contains(&entry.name())
                || nodes.is_some_and(|(a, b)| a.is_same(b))
        };
        if let Some(volume) = volumes.iter_mut().find(same) {
            if !volume.names.contains(&entry.name()) {
                volume.names.push(entry.name());
            }
            let subvolume = subvolume(entry)?;
            let again = volume.entries.iter().any(|have| self::subvolume(have) == Ok(subvolume.clone()));
            if again || (volume.kind != "btrfs" && !entry.is_swap()) {
                notes.push(format!(
                    "{} is mounted a second time, on {}: left to the system",
                    entry.device, entry.mountpoint
                ));
                continue;
            }
            volume.entries.push(entry.clone());
            continue;
        }
        let mut kind = entry.kind.clone();
        if kind == "auto" {
            let found = here.and_then(|present| present.format.clone());
            kind = found
                .ok_or_else(|| refuse(entry, "has the type auto, and the device is not here to look at"))?;
            if Format::from_name(&kind).is_none() {
                return Err(refuse(
                    entry,
                    &format!("is a {kind} file system, which this version does not make"),
                ));
            }
        }
        volumes.push(Volume {
            role: Role::Other,
            device: entry.device.clone(),
            names: vec![entry.random_key().unwrap_or_else(|| entry.name())],
            kind,
            entries: vec![entry.clone()],
            present: here.cloned(),
            luks: encryption(entry, here, wanted.luks)?,
        });
    }
    Ok(volumes)
}

/// Returns what an entry's device is opened as and from, where it is encrypted.
fn encryption(
    entry: &Entry,
    here: Option<&Present>,
    luks: &BTreeMap<String, PathBuf>,
) -> Result<Option<(String, PathBuf)>, LayoutError> {
    let opened_here = here.and_then(|present| present.opened.as_deref());
    if entry.random_key().is_some() {
        return Ok(None);
    }
    let Some(name) = entry.mapper().or(opened_here) else { return Ok(None) };
    let Some(device) = luks.get(name) else {
        let why = format!("is encrypted, and no manifest of the system says what its initrd opens as {name}");
        return Err(refuse(entry, &why));
    };
    // It is found by a name, as file systems are, and as with those not every name can be given again.
    let from = Entry { device: device.to_string_lossy().into_owned(), ..entry.clone() };
    check_reproducible(&from, luks)?;
    Ok(Some((name.to_owned(), device.clone())))
}

/// Returns the subvolume an entry mounts, without slashes; none is the top level.
fn subvolume(entry: &Entry) -> Result<Option<String>, LayoutError> {
    match (entry.value("subvol").map(|path| path.trim_matches('/')), entry.value("subvolid")) {
        (Some(""), _) | (None, None | Some("5" | "0")) => Ok(None),
        (Some(path), _) => Ok(Some(path.to_owned())),
        (None, Some(_)) => {
            Err(refuse(entry, "is a subvolume chosen by its number, which the clone gives anew"))
        }
    }
}

/// Gives each volume its role and adds the ones that fstab need not name.
fn complete(
    volumes: &mut Vec<Volume>,
    wanted: &Wanted<'_>,
    gpt_auto: bool,
    entries: &[Entry],
) -> Result<(), LayoutError> {
    let bare = |role, device: &str, mountpoint: &str, kind: &str, options: &[&str]| {
        let entry = Entry {
            device: device.to_owned(),
            mountpoint: mountpoint.to_owned(),
            kind: kind.to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        let names = Vec::new();
        Volume {
            role,
            device: device.to_owned(),
            names,
            kind: kind.to_owned(),
            entries: vec![entry],
            present: None,
            luks: None,
        }
    };
    let root_anywhere = entries.iter().any(|entry| entry.mountpoint == "/");
    if !root_anywhere && gpt_auto {
        let mut root = bare(Role::Root, "gpt-auto", "/", "ext4", &[]);
        let luks = wanted.luks.iter().find(|(_, device)| *device == Path::new(GPT_AUTO_LUKS));
        root.luks = luks.map(|(name, device)| (name.clone(), device.clone()));
        volumes.push(root);
    } else if !root_anywhere {
        return Err(LayoutError::NoRootInFstab);
    }
    let root = ["/", "/nix/store", "/nix"].into_iter().find(|at| volumes.iter().any(|v| v.mounts(at)));
    let esp = esp_mountpoint(wanted, entries);
    for volume in volumes.iter_mut() {
        volume.role = match () {
            _ if root.is_some_and(|root| volume.mounts(root)) => Role::Root,
            _ if volume.kind == "swap" => Role::Swap,
            _ if wanted.loader.needs_esp() && volume.kind == "vfat" && volume.mounts(&esp) => Role::Esp,
            // Of GRUB's mirrored boots each may have one.
            _ if wanted.loader.needs_esp()
                && volume.kind == "vfat"
                && wanted.written.iter().filter_map(|at| at.to_str()).any(|at| volume.mounts(at)) =>
            {
                Role::Esp
            }
            _ if volume.mounts("/boot") => Role::Boot,
            _ => Role::Other,
        };
    }
    if wanted.loader.needs_esp() && !volumes.iter().any(|volume| volume.role == Role::Esp) {
        volumes.push(bare(Role::Esp, "ESP", &esp, "vfat", &["umask=0077"]));
    }
    Ok(())
}

impl Volume {
    fn mounts(&self, at: &str) -> bool {
        self.entries.iter().any(|entry| entry.mountpoint == at)
    }

    fn size(&self, wanted: &Wanted<'_>) -> Result<Bytes, LayoutError> {
        let header = self.luks.as_ref().map_or(Bytes(0), |_| LUKS_HEADER);
        let here = self.present.as_ref().map(|present| (present.size + header).round_up(Bytes::mib(1)));
        Ok(match self.role {
            Role::Esp => esp_size(wanted.disk_size, wanted.boot_files),
            Role::Swap => {
                let most = wanted.disk_size.map_or(Bytes(u64::MAX), |size| Bytes(size.0 / 8));
                here.unwrap_or(USUAL_SWAP).min(most.round_down(Bytes::mib(1))).max(SMALLEST_SWAP)
            }
            Role::Boot => here.unwrap_or(USUAL_BOOT),
            Role::Root | Role::Other => here.ok_or_else(|| {
                refuse(
                    &self.entries[0],
                    "is a second file system, and how large it should be is not known here",
                )
            })?,
        })
    }

    fn partition(&self, size: Size, gpt_auto: bool) -> Result<Partition, LayoutError> {
        let at = &self.entries[0];
        let mut partition = Partition {
            name: String::new(),
            kind: self.partition_type(),
            size,
            uuid: None,
            attributes: Vec::new(),
            content: None,
        };
        if gpt_auto && self.mounts("/") {
            partition.attributes.push(GROW_FILE_SYSTEM);
        }
        let (label, uuid) = apply(at, &self.names, &mut partition)?;
        if at.random_key().is_some() {
            return Ok(partition);
        }
        let content = self.content(label, uuid)?;
        partition.content = Some(match &self.luks {
            None => content,
            Some((name, device)) => {
                let names = [Name::parse(&device.to_string_lossy())];
                let (label, uuid) = apply(at, &names, &mut partition)?;
                let (name, settings, content) = (name.clone(), serde_json::Map::new(), Box::new(content));
                Content::Luks(Luks { name, label, uuid, settings, content })
            }
        });
        Ok(partition)
    }

    fn partition_type(&self) -> PartitionType {
        match self.role {
            Role::Esp => PartitionType::Esp,
            Role::Swap => PartitionType::Swap,
            Role::Root if self.mounts("/") => PartitionType::Root,
            Role::Boot if self.kind == "vfat" => PartitionType::Xbootldr,
            _ if self.entries.len() > 1 => PartitionType::Linux,
            _ if self.mounts("/home") => PartitionType::Home,
            _ if self.mounts("/srv") => PartitionType::Srv,
            _ => PartitionType::Linux,
        }
    }

    fn content(&self, label: Option<String>, uuid: Option<String>) -> Result<Content, LayoutError> {
        if self.kind == "swap" {
            return Ok(Content::Swap(Swap { label, uuid }));
        }
        let first = &self.entries[0];
        let format = Format::from_name(&self.kind).expect("keep() and volumes() let no other format through");
        let mut btrfs = Btrfs { label, uuid, ..Btrfs::default() };
        if format != Format::Btrfs {
            let mountpoint = Some(first.mountpoint.clone());
            let (label, uuid, options) = (btrfs.label, btrfs.uuid, options(first));
            return Ok(Content::Filesystem(Filesystem { format, label, uuid, mountpoint, options }));
        }
        for entry in &self.entries {
            let mountpoint = Some(entry.mountpoint.clone());
            match subvolume(entry)? {
                Some(path) => btrfs.subvolumes.push(Subvolume { path, mountpoint, options: options(entry) }),
                None => (btrfs.mountpoint, btrfs.options) = (mountpoint, options(entry)),
            }
        }
        Ok(Content::Btrfs(btrfs))
    }
}

/// Gives a partition the names that are its own, and returns label and UUID, which are its content's.
fn apply(
    entry: &Entry,
    names: &[Name],
    partition: &mut Partition,
) -> Result<(Option<String>, Option<String>), LayoutError> {
    let (mut label, mut uuid) = (None, None);
    for name in names {
        match name.clone() {
            Name::Label(name) => label = Some(name),
            Name::Uuid(name) => uuid = Some(name),
            Name::PartLabel(name) => partition.name = name,
            Name::PartUuid(name) => {
                let known = name.parse::<Uuid>().ok().filter(|_| name.len() == 36);
                let old = "has a PARTUUID of an MBR partition table, which a GPT cannot carry";
                partition.uuid = Some(known.ok_or_else(|| refuse(entry, old))?);
            }
            Name::Other(_) => {}
        }
    }
    Ok((label, uuid))
}

/// Returns the options that say something about the file system, not about when it is mounted.
fn options(entry: &Entry) -> Vec<String> {
    let about_time = |option: &&String| {
        let option = option.as_str();
        let words = ["defaults", "auto", "noauto", "nofail", "ro", "_netdev"];
        option.starts_with("x-") || option.starts_with("subvol") || words.contains(&option)
    };
    entry.options.iter().filter(|option| !about_time(option)).cloned().collect()
}

/// Returns how large an ESP should be: room for generations, without eating a small disk.
fn esp_size(disk: Option<Bytes>, boot_files: Bytes) -> Bytes {
    let usual = match disk {
        Some(disk) if disk < Bytes::gib(4) => SMALLEST_ESP,
        Some(disk) if disk < Bytes::gib(16) => Bytes::mib(512),
        _ => USUAL_ESP,
    };
    // Two generations fit at the least: an update writes the new one before it removes the old.
    usual.max((boot_files * 2 + Bytes::mib(32)).round_up(Bytes::mib(32)))
}

fn bios_boot() -> Partition {
    let (kind, size) = (PartitionType::BiosBoot, Size::Fixed(Bytes::mib(1)));
    Partition { name: String::new(), kind, size, uuid: None, attributes: Vec::new(), content: None }
}

/// Names the partitions that fstab does not name, by what they are for.
fn name_partitions(partitions: &mut [Partition]) {
    let mut taken: Vec<String> = partitions.iter().map(|partition| partition.name.clone()).collect();
    for partition in partitions.iter_mut().filter(|partition| partition.name.is_empty()) {
        let base = match partition.kind {
            PartitionType::Esp => "ESP".to_owned(),
            PartitionType::Root => "root".to_owned(),
            PartitionType::BiosBoot | PartitionType::Swap => partition.kind.to_string(),
            _ => first_mount(partition).unwrap_or("data").trim_matches('/').replace('/', "-"),
        };
        let base: String = base.chars().filter(|c| c.is_ascii_graphic()).take(30).collect();
        let names = std::iter::once(base.clone()).chain((2..).map(|n| format!("{base}-{n}")));
        let name = names.into_iter().find(|name| !name.is_empty() && !taken.contains(name));
        partition.name = name.expect("one of endless numbers is free");
        taken.push(partition.name.clone());
    }
}

fn first_mount(partition: &Partition) -> Option<&str> {
    match partition.content.as_ref()?.opened() {
        Content::Filesystem(fs) => fs.mountpoint.as_deref(),
        Content::Btrfs(btrfs) => {
            btrfs.mountpoint.as_deref().or(btrfs.subvolumes.first()?.mountpoint.as_deref())
        }
        Content::Swap(_) | Content::Luks(_) => None,
    }
}

#[cfg(test)]
mod tests;
