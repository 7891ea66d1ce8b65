//! Looks: `/proc`, `/sys` and disks, turned into [`crate::facts`]. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::libc;

use crate::disk::contents::{self, Contents, TableKind};
use crate::disk::derive::Present;
use crate::disk::device::kernel_name;
use crate::disk::fstab::Name;
use crate::disk::holders::{self, Device, Holder, Snapshot, Use};
use crate::disk::image::SECTOR_SIZE;
use crate::disk::seen::Seen;
use crate::facts::{DiskFacts, DiskKind, NamedDevice, Refusal};
use crate::size::Bytes;
use crate::sys::ioctl;

mod dir;
mod hardware;
mod host;
mod network;
mod target;
mod users;

pub use dir::{dir, free_space, is_live_root};
pub use hardware::hardware;
pub use host::host;
pub use network::network;
pub use target::target;

// Kernel memory, drives and tapes that are no place for a system.
const NO_DISKS: [&str; 4] = ["ram", "zram", "sr", "fd"];

/// Looks at a disk, an image, or the place where an image is wanted.
///
/// What forbids an installation is in the facts' refusals; an error is a failure to look.
pub fn disk(path: &Path) -> Result<DiskFacts> {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return new_image(path),
        Err(error) => return Err(error).with_context(|| format!("looking at {}", path.display())),
    };
    let node = fs::canonicalize(path).with_context(|| format!("resolving {}", path.display()))?;
    let kind = meta.file_type();
    if kind.is_file() {
        return image(path, node);
    }
    if kind.is_block_device() {
        return block_device(path, node, meta.rdev());
    }
    let what = match () {
        _ if kind.is_dir() => "a directory",
        _ if kind.is_char_device() => "a character device",
        _ => "a pipe or a socket",
    };
    let mut facts = empty(path, node, DiskKind::NoDisk);
    facts.refusals.push(Refusal::NotADisk(what.to_owned()));
    Ok(facts)
}

/// Notes by what a disk or an image that is there is known again.
pub fn seen(facts: &DiskFacts) -> Result<Option<Seen>> {
    if facts.kind == DiskKind::NewImage || !facts.refusals.is_empty() {
        return Ok(None);
    }
    let looking = || format!("looking at {}", facts.path.display());
    let file = File::open(&facts.path).with_context(looking)?;
    Seen::of(&file).with_context(looking).map(Some)
}

fn empty(path: &Path, node: PathBuf, kind: DiskKind) -> DiskFacts {
    DiskFacts {
        path: path.to_owned(),
        node,
        kind,
        model: None,
        serial: None,
        size: Bytes(0),
        sector_size: SECTOR_SIZE,
        removable: false,
        transport: None,
        room: None,
        contents: Contents { table: TableKind::None, partitions: Vec::new(), content: None },
        mounts: Vec::new(),
        refusals: Vec::new(),
    }
}

fn new_image(path: &Path) -> Result<DiskFacts> {
    let mut facts = empty(path, path.to_owned(), DiskKind::NewImage);
    if path.starts_with("/dev") {
        // A mistyped device must not become a file in memory.
        facts.kind = DiskKind::NoDisk;
        facts.refusals.push(Refusal::NotADisk("not there".to_owned()));
    }
    let whole = std::path::absolute(path).with_context(|| format!("resolving {}", path.display()))?;
    facts.room = Some(free_space(&whole)?);
    Ok(facts)
}

fn image(path: &Path, node: PathBuf) -> Result<DiskFacts> {
    let mut facts = empty(path, node.clone(), DiskKind::ImageFile);
    let mut file = File::open(&node).with_context(|| format!("opening {}", path.display()))?;
    let meta = file.metadata().with_context(|| format!("measuring {}", path.display()))?;
    facts.size = Bytes(meta.len());
    facts.room = Some(free_space(&node)? + Bytes(meta.blocks() * 512));
    facts.contents = contents::look(&mut file, facts.size, SECTOR_SIZE)
        .with_context(|| format!("looking at the contents of {}", path.display()))?;
    if nix::unistd::access(&node, nix::unistd::AccessFlags::W_OK).is_err() {
        facts.refusals.push(Refusal::ReadOnly);
    }
    let device = node.to_string_lossy().into_owned();
    let mut held = holders::of_file(&snapshot()?, &device, (meta.dev(), meta.ino()));
    if held.is_empty() {
        held.extend(user(&device, || users::of(users::is_file(&meta))));
    }
    if held.is_empty() && users::is_locked(&file) {
        held.push(Holder { device, layers: Vec::new(), using: Use::Locked });
    }
    facts.refusals.extend(held.into_iter().map(Refusal::Held));
    Ok(facts)
}

fn block_device(path: &Path, node: PathBuf, number: u64) -> Result<DiskFacts> {
    let mut facts = empty(path, node, DiskKind::BlockDevice);
    let name = kernel_name(number)?;
    let sys = PathBuf::from(format!("/sys/class/block/{name}"));
    let read = |file: &str| read_line(&sys.join(file));
    facts.model = read("device/model");
    facts.serial = read("device/serial").or_else(|| read("serial")).or_else(|| read("device/wwid"));
    facts.removable = read("removable").as_deref() == Some("1");
    facts.transport = transport(&fs::canonicalize(&sys).unwrap_or_default().to_string_lossy());
    if sys.join("partition").exists() {
        let disk = fs::canonicalize(&sys)
            .ok()
            .and_then(|path| path.parent()?.file_name().map(|name| name.to_owned()));
        let disk = disk.unwrap_or_default();
        facts.refusals.push(Refusal::Partition { disk: format!("/dev/{}", disk.to_string_lossy()) });
    }
    if let Some(kind) = NO_DISKS.iter().find(|kind| is_kind(&name, kind)) {
        let what = if *kind == "sr" { "an optical drive" } else { "a memory or floppy device" };
        facts.refusals.push(Refusal::NotADisk(what.to_owned()));
    }
    let mut snapshot = snapshot()?;
    let mut file = match File::open(&facts.node) {
        Err(error) if error.raw_os_error() == Some(libc::ENOMEDIUM) => {
            facts.refusals.push(Refusal::NoMedium);
            return Ok(facts);
        }
        // A disk in use is refused by its holders, also where even root may not read it.
        Err(_) if !holders::of_device(&snapshot, &name).is_empty() => {
            add_holders(&mut facts, holders::of_device(&snapshot, &name));
            return Ok(facts);
        }
        file => file.with_context(|| format!("opening {}", path.display()))?,
    };
    let measuring = || format!("measuring {}", path.display());
    facts.size = ioctl::device_size(&file).with_context(measuring)?;
    facts.sector_size = ioctl::sector_size(&file).with_context(measuring)?;
    if ioctl::is_read_only(&file).with_context(measuring)? {
        facts.refusals.push(Refusal::ReadOnly);
    }
    if facts.size == Bytes(0) {
        facts.refusals.push(Refusal::NoMedium);
        return Ok(facts);
    }
    facts.contents = contents::look(&mut file, facts.size, facts.sector_size)
        .with_context(|| format!("looking at the contents of {}", path.display()))?;
    drop(file);
    mark_zfs(&mut snapshot, &name, &facts.contents);
    let mut held = holders::of_device(&snapshot, &name);
    if held.is_empty() && !can_claim(&facts.node)? {
        held.push(Holder { device: format!("/dev/{name}"), layers: Vec::new(), using: Use::Unknown });
    }
    if held.is_empty() {
        let numbers = numbers(&snapshot, &name);
        let is_it = |meta: &fs::Metadata| {
            meta.file_type().is_block_device() && numbers.contains(&device_number(meta.rdev()))
        };
        held.extend(user(&format!("/dev/{name}"), || users::of(is_it)));
    }
    add_holders(&mut facts, held);
    Ok(facts)
}

/// Returns the programs that have something open as who holds it, if there are any.
fn user(device: &str, programs: impl FnOnce() -> Vec<String>) -> Option<Holder> {
    let programs = Some(programs()).filter(|programs| !programs.is_empty())?;
    Some(Holder { device: device.to_owned(), layers: Vec::new(), using: Use::Open(programs) })
}

/// Returns the numbers of a disk and its partitions, as `/sys` writes them.
fn numbers(snapshot: &Snapshot, disk: &str) -> BTreeSet<String> {
    let is_on = |(name, device): &(&String, &Device)| *name == disk || device.parent.as_deref() == Some(disk);
    snapshot.devices.iter().filter(is_on).map(|(_, device)| device.number.clone()).collect()
}

fn device_number(number: u64) -> String {
    format!("{}:{}", libc::major(number), libc::minor(number))
}

fn add_holders(facts: &mut DiskFacts, held: Vec<Holder>) {
    for holder in held {
        let partition = holder.device.strip_prefix("/dev/").and_then(partition_number);
        if let (Some(number), Use::Mounted(at)) = (partition, &holder.using) {
            facts.mounts.push((number, at.clone()));
        }
        facts.refusals.push(Refusal::Held(holder));
    }
}

fn is_kind(name: &str, kind: &str) -> bool {
    name.strip_prefix(kind).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn partition_number(name: &str) -> Option<u32> {
    read_line(&PathBuf::from(format!("/sys/class/block/{name}/partition")))?.parse().ok()
}

fn transport(sys: &str) -> Option<String> {
    let kinds = [
        ("/usb", "usb"),
        ("/nvme", "nvme"),
        ("/mmc", "mmc"),
        ("/virtio", "virtio"),
        ("/ata", "sata"),
        ("/loop", "loop"),
        ("/xen", "xen"),
        ("/scsi", "scsi"),
        ("/host", "scsi"),
    ];
    kinds.into_iter().find(|(part, _)| sys.contains(part)).map(|(_, name)| name.to_owned())
}

fn can_claim(node: &Path) -> Result<bool> {
    match OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(node) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("opening {} exclusively", node.display())),
    }
}

fn read_line(path: &Path) -> Option<String> {
    let text = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn mark_zfs(snapshot: &mut Snapshot, disk: &str, contents: &Contents) {
    let is_zfs =
        |found: &Option<contents::Found>| found.as_ref().is_some_and(|found| found.kind == "ZFS member");
    for (name, device) in &mut snapshot.devices {
        let on_partition = || {
            let number = partition_number(name);
            contents.partitions.iter().any(|part| Some(part.number) == number && is_zfs(&part.content))
        };
        device.zfs_member = (name == disk && is_zfs(&contents.content))
            || (device.parent.as_deref() == Some(disk) && on_partition());
    }
}

/// Takes down what the kernel says about block devices and their users.
pub fn snapshot() -> Result<Snapshot> {
    let mut devices = BTreeMap::new();
    for entry in names_in("/sys/class/block") {
        let sys = PathBuf::from(format!("/sys/class/block/{entry}"));
        let parent =
            || Some(fs::canonicalize(&sys).ok()?.parent()?.file_name()?.to_string_lossy().into_owned());
        let device = Device {
            number: read_line(&sys.join("dev")).unwrap_or_default(),
            parent: if sys.join("partition").exists() { parent() } else { None },
            holders: names_in(sys.join("holders")),
            mapper: read_line(&sys.join("dm/name")),
            backing_file: read_line(&sys.join("loop/backing_file")),
            backing: backing(&entry),
            zfs_member: false,
        };
        devices.insert(entry, device);
    }
    let btrfs = names_in("/sys/fs/btrfs").into_iter();
    let btrfs =
        btrfs.map(|id| names_in(format!("/sys/fs/btrfs/{id}/devices"))).filter(|names| !names.is_empty());
    let pools = names_in("/proc/spl/kstat/zfs").into_iter();
    Ok(Snapshot {
        mountinfo: mountinfo()?,
        swaps: fs::read_to_string("/proc/swaps").unwrap_or_default(),
        devices,
        btrfs: btrfs.collect(),
        zfs_pools: pools.filter(|name| Path::new("/proc/spl/kstat/zfs").join(name).is_dir()).collect(),
    })
}

/// Returns the device and the inode of the file that a loop device stands on.
fn backing(name: &str) -> Option<(u64, u64)> {
    if !is_kind(name, "loop") || !Path::new(&format!("/sys/class/block/{name}/loop")).exists() {
        return None;
    }
    ioctl::loop_file(&File::open(format!("/dev/{name}")).ok()?).ok()
}

fn names_in(dir: impl AsRef<Path>) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Reads the mounts of every mount namespace we may look into, our own first.
fn mountinfo() -> Result<Vec<String>> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let mut seen: BTreeSet<PathBuf> = namespace("thread-self").into_iter().collect();
    let own = fs::read("/proc/thread-self/mountinfo").context("reading /proc/thread-self/mountinfo")?;
    let mut texts = vec![String::from_utf8_lossy(&own).into_owned()];
    for pid in names_in("/proc").iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit())) {
        let fresh = namespace(pid).is_some_and(|namespace| seen.insert(namespace));
        if let (true, Ok(text)) = (fresh, fs::read(format!("/proc/{pid}/mountinfo"))) {
            texts.push(String::from_utf8_lossy(&text).into_owned());
        }
    }
    Ok(texts)
}

/// Looks up the devices that an fstab names, by its own spelling; those not here are absent.
pub fn named_here(devices: Vec<String>) -> BTreeMap<String, Present> {
    let present = |device: String| present(&Name::parse(&device)).map(|found| (device, found));
    devices.into_iter().filter_map(present).collect()
}

fn present(name: &Name) -> Option<Present> {
    let link = match name {
        Name::Label(value) => format!("/dev/disk/by-label/{}", udev_name(value)),
        Name::Uuid(value) => format!("/dev/disk/by-uuid/{value}"),
        Name::PartLabel(value) => format!("/dev/disk/by-partlabel/{}", udev_name(value)),
        Name::PartUuid(value) => format!("/dev/disk/by-partuuid/{}", value.to_ascii_lowercase()),
        Name::Other(path) => path.strip_prefix("/dev/").map(|_| path.clone())?,
    };
    let node = fs::canonicalize(link).ok()?;
    let file = File::open(&node).ok()?;
    let size = ioctl::device_size(&file).ok()?;
    let found = contents::on_device(&file, Bytes(0), size).ok()?;
    let opened = opened(&node);
    let node = node.to_string_lossy().into_owned();
    Some(Present { node, size, format: found.map(|found| found.kind), opened })
}

/// Returns the name of an open encrypted device, as cryptsetup marks it.
fn opened(node: &Path) -> Option<String> {
    let dm = Path::new("/sys/class/block").join(node.file_name()?).join("dm");
    read_line(&dm.join("uuid")).filter(|uuid| uuid.starts_with("CRYPT-"))?;
    read_line(&dm.join("name"))
}

/// Tells whether this machine's kernel can open encrypted devices, or has a module that lets it.
pub fn can_encrypt() -> bool {
    Path::new("/dev/mapper/control").exists() || has_module("dm-crypt") || has_module("dm_crypt")
}

/// Writes a name as udev writes it below `/dev/disk`.
fn udev_name(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c) || !c.is_ascii();
    name.chars().map(|c| if plain(c) { c.to_string() } else { format!("\\x{:02x}", u32::from(c)) }).collect()
}

/// Tells whether this machine's kernel can mount a kind of file system, or has a module that lets it.
pub fn can_mount(kind: &str) -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.rsplit('\t').next() == Some(kind)) {
        return true;
    }
    has_module(kind)
}

fn has_module(name: &str) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // NixOS keeps them with the system that was booted.
    let places = ["/run/booted-system/kernel-modules/lib/modules", "/lib/modules"];
    let lists = places.iter().flat_map(|place| {
        ["modules.dep", "modules.builtin"].map(|list| Path::new(place).join(release.trim()).join(list))
    });
    let module = format!("/{name}.ko");
    lists.into_iter().any(|list| fs::read_to_string(list).is_ok_and(|list| list.contains(&module)))
}

/// Reads the names of every disk and partition of this machine.
pub fn named_devices() -> Vec<NamedDevice> {
    let mut all = Vec::new();
    let is_disk = |name: &String| {
        let path = format!("/sys/class/block/{name}");
        let sized = read_line(&Path::new(&path).join("size")).is_some_and(|size| size != "0");
        sized
            && !Path::new(&path).join("partition").exists()
            && !NO_DISKS.iter().any(|kind| is_kind(name, kind))
    };
    for disk in names_in("/sys/class/block").into_iter().filter(is_disk) {
        all.extend(names_on(&disk).unwrap_or_default());
    }
    all
}

fn names_on(disk: &str) -> Result<Vec<NamedDevice>> {
    let path = format!("/dev/{}", disk.replace('!', "/"));
    let mut file = File::open(&path).with_context(|| format!("opening {path}"))?;
    let size = ioctl::device_size(&file)?;
    let sector_size = ioctl::sector_size(&file)?;
    let contents = contents::look(&mut file, size, sector_size)?;
    let content_names = |found: &Option<contents::Found>| {
        let found = found.clone();
        found.map_or((None, None), |found| (found.label, found.uuid))
    };
    let (label, uuid) = content_names(&contents.content);
    let mut all =
        vec![NamedDevice { node: path.clone(), disk: path.clone(), label, uuid, ..NamedDevice::default() }];
    for partition in &contents.partitions {
        let (label, uuid) = content_names(&partition.content);
        let separator = if disk.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
        all.push(NamedDevice {
            // For reading by people only: devices to write are found by number.
            node: format!("{path}{separator}{}", partition.number),
            disk: path.clone(),
            label,
            uuid,
            part_label: Some(partition.name.clone()).filter(|name| !name.is_empty()),
            part_uuid: partition.uuid.map(|uuid| uuid.to_string()),
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fstab;
    use crate::disk::image::Loop;

    fn refusals(path: &Path) -> Vec<String> {
        disk(path).unwrap().refusals.iter().map(Refusal::to_string).collect()
    }

    #[test]
    fn what_is_no_disk_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(refusals(dir.path()), ["it is a directory, not a disk or an image"]);
        assert_eq!(refusals(Path::new("/dev/null")), ["it is a character device, not a disk or an image"]);
        assert_eq!(refusals(Path::new("/dev/sdzz9")), ["it is not there, not a disk or an image"]);
        let facts = disk(&dir.path().join("new.img")).unwrap();
        assert_eq!((facts.kind, facts.refusals), (DiskKind::NewImage, vec![]));
    }

    #[test]
    fn an_attached_image_and_its_loop_device_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        fs::write(&path, vec![0; 4 << 20]).unwrap();
        let script = "printf 'label: gpt\\nsize=1M, name=\"one\"\\n' | sfdisk -q \"$0\"";
        assert!(
            std::process::Command::new("sh").arg("-c").arg(script).arg(&path).status().unwrap().success()
        );
        assert_eq!(refusals(&path), Vec::<String>::new());
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let device = Loop::attach(&file, Bytes::mib(4)).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(device.path(), &link).unwrap();
        let facts = disk(&link).unwrap();
        assert_eq!(facts.node, device.path());
        assert_eq!((facts.size, facts.sector_size, facts.kind), (Bytes::mib(4), 512, DiskKind::BlockDevice));
        assert_eq!(facts.contents.partitions[0].name, "one");
        assert_eq!(facts.transport.as_deref(), Some("loop"));
        assert_eq!(facts.refusals, []);
        assert!(facts.picture("before").contains("one"));
        let told = format!("{} is attached to {}", path.display(), device.path().display());
        assert_eq!(refusals(&path), [told]);
        let claimed = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device.path()).unwrap();
        assert_eq!(refusals(&link), [format!("{} is in use by the kernel", device.path().display())]);
        drop(claimed);
        assert!(named_devices().iter().any(|named| named.part_label.as_deref() == Some("one")));
    }

    #[test]
    fn the_disk_of_the_running_system_is_refused() {
        let number = fs::metadata("/").unwrap().dev();
        let Ok(name) = kernel_name(number) else { return };
        let path = PathBuf::from(format!("/dev/{name}"));
        if path.exists() {
            let told = refusals(&path);
            assert!(
                told.iter().any(|line| line.contains("holds the root file system of the running system")),
                "{told:?}"
            );
        }
    }

    #[test]
    fn names_are_written_as_udev_writes_them() {
        for name in ["nixos", "my disk", "a/b\\c", "größe"] {
            assert_eq!(fstab::undo_udev(&udev_name(name)), name);
        }
        assert_eq!(udev_name("a b"), "a\\x20b");
    }

    #[test]
    fn what_the_kernel_cannot_mount_is_known_before() {
        assert!(can_mount("ext4"));
        assert!(!can_mount("nonsensefs"));
    }
}
