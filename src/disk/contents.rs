//! Contents: what a disk holds now, told by signatures, and how those are erased.
//!
//! Looking and wiping use the same [`SIGNATURES`], so that nothing that was found stays.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::table;
use crate::size::Bytes;

// Most signatures, boot code and both partition tables are this near to an end.
const EDGE: u64 = 1 << 20;
// Extended partitions form a chain; a hostile one forms a ring.
const MOST_LOGICAL: usize = 128;

/// Where a signature is, from the start or from the end of its device.
#[derive(Clone, Copy)]
enum At {
    Start(u64),
    /// Back from the end rounded down to a multiple of the second number.
    End(u64, u64),
}

use At::{End, Start};

struct Signature {
    kind: &'static str,
    at: At,
    magic: &'static [u8],
    /// Where label (offset, length) and UUID are, in bytes from the start of the device.
    label: Option<(u64, usize)>,
    uuid: Option<u64>,
}

const fn plain(kind: &'static str, at: At, magic: &'static [u8]) -> Signature {
    Signature { kind, at, magic, label: None, uuid: None }
}

const fn named(
    kind: &'static str,
    at: u64,
    magic: &'static [u8],
    label: (u64, usize),
    uuid: Option<u64>,
) -> Signature {
    Signature { kind, at: Start(at), magic, label: Some(label), uuid }
}

const MD_MAGIC: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
const ZFS_MAGIC: &[u8] = &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0];

/// Every signature we know. Copies of the same kind are listed too: each must go.
const SIGNATURES: &[Signature] = &[
    named("ext", 0x438, b"\x53\xef", (0x478, 16), Some(0x468)),
    named("xfs", 0, b"XFSB", (108, 12), Some(32)),
    named("btrfs", 0x1_0040, b"_BHRfS_M", (0x1_012b, 256), Some(0x1_0020)),
    plain("btrfs", Start(0x400_0040), b"_BHRfS_M"),
    plain("btrfs", Start(0x40_0000_0040), b"_BHRfS_M"),
    named("vfat", 0x52, b"FAT32   ", (0x47, 11), None),
    named("vfat", 0x36, b"FAT16   ", (0x2b, 11), None),
    named("vfat", 0x36, b"FAT12   ", (0x2b, 11), None),
    plain("ntfs", Start(3), b"NTFS    "),
    plain("BitLocker", Start(3), b"-FVE-FS-"),
    plain("exfat", Start(3), b"EXFAT   "),
    named("swap", 4096 - 10, b"SWAPSPACE2", (1052, 16), Some(1036)),
    named("swap", 8192 - 10, b"SWAPSPACE2", (1052, 16), Some(1036)),
    named("swap", 16384 - 10, b"SWAPSPACE2", (1052, 16), Some(1036)),
    named("swap", 65536 - 10, b"SWAPSPACE2", (1052, 16), Some(1036)),
    plain("hibernation image", Start(4096 - 10), b"S1SUSPEND"),
    plain("LUKS", Start(0), b"LUKS\xba\xbe"),
    plain("LUKS", Start(0x4000), b"SKUL\xba\xbe"),
    plain("LUKS", Start(0x8000), b"SKUL\xba\xbe"),
    plain("LUKS", Start(0x10000), b"SKUL\xba\xbe"),
    plain("LUKS", Start(0x20000), b"SKUL\xba\xbe"),
    plain("LUKS", Start(0x40000), b"SKUL\xba\xbe"),
    plain("LVM", Start(0), b"LABELONE"),
    plain("LVM", Start(512), b"LABELONE"),
    plain("LVM", Start(1024), b"LABELONE"),
    plain("LVM", Start(1536), b"LABELONE"),
    plain("RAID member", Start(0), MD_MAGIC),
    plain("RAID member", Start(4096), MD_MAGIC),
    plain("RAID member", End(8192, 4096), MD_MAGIC),
    plain("RAID member", End(65536, 65536), MD_MAGIC),
    plain("RAID member", End(1024, 1), b"Intel Raid ISM Cfg Sig. "),
    plain("RAID member", End(512, 1), b"\xde\x11\xde\x11"),
    named("iso9660", 0x8001, b"CD001", (0x8028, 32), None),
    plain("udf", Start(0x8801), b"NSR02"),
    plain("udf", Start(0x9001), b"NSR03"),
    plain("squashfs", Start(0), b"hsqs"),
    plain("erofs", Start(1024), b"\xe2\xe1\xf5\xe0"),
    plain("bcache", Start(0x1018), b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    plain("bcachefs", Start(0x1018), b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    Signature { uuid: Some(0x46c), ..plain("f2fs", Start(0x400), b"\x10\x20\xf5\xf2") },
    plain("nilfs2", Start(0x406), b"\x34\x34"),
    plain("reiserfs", Start(0x1_0034), b"ReIsEr"),
    plain("jfs", Start(0x8000), b"JFS1"),
    plain("apfs", Start(0x20), b"NXSB"),
    plain("hfsplus", Start(0x400), b"H+\x00\x04"),
    plain("hfsplus", Start(0x400), b"HX\x00\x05"),
    plain("VMFS", Start(0x20_0000), b"\x0d\xd0\x01\xc0"),
];

/// A signature that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// `ext4`, `swap`, `LUKS`…
    pub kind: String,
    pub label: Option<String>,
    pub uuid: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TableKind {
    Gpt,
    Mbr,
    /// A GPT whose headers cannot be read.
    BrokenGpt,
    None,
}

/// A partition of the table that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FoundPartition {
    pub number: u32,
    pub start: Bytes,
    pub size: Bytes,
    /// The PARTLABEL; empty in an MBR.
    pub name: String,
    pub uuid: Option<Uuid>,
    pub content: Option<Found>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Contents {
    pub table: TableKind,
    pub partitions: Vec<FoundPartition>,
    /// What stands on the disk itself, without a partition.
    pub content: Option<Found>,
}

/// Looks at a whole disk: its table, and what is on it and on each partition.
pub fn look(disk: &mut File, size: Bytes, sector_size: u64) -> Result<Contents> {
    let content = on_device(disk, Bytes(0), size)?;
    let (table, mut partitions) = match table::read(disk, sector_size) {
        Ok(Some(table)) => {
            let found = |slot: table::Slot| FoundPartition {
                number: slot.number,
                start: slot.start,
                size: slot.size,
                name: slot.name,
                uuid: Some(slot.uuid),
                content: None,
            };
            (TableKind::Gpt, table.slots.into_iter().map(found).collect())
        }
        Err(error) if error.downcast_ref::<io::Error>().is_some() => return Err(error),
        Err(_) => (TableKind::BrokenGpt, Vec::new()),
        // A file system's boot sector ends like an MBR and holds code where the MBR has its partitions.
        Ok(None) if content.is_some() => (TableKind::None, Vec::new()),
        Ok(None) => read_mbr(disk, size, sector_size)?,
    };
    for partition in &mut partitions {
        if partition.start + partition.size <= size {
            partition.content = on_device(disk, partition.start, partition.size)?;
        }
    }
    Ok(Contents { table, partitions, content })
}

/// Tells what is on a device that starts at `start` of the file and is so large.
pub fn on_device(file: &File, start: Bytes, size: Bytes) -> Result<Option<Found>> {
    let read = |at: u64, length: usize| read_some(file, start.0 + at, length, size.0.saturating_sub(at));
    for signature in SIGNATURES {
        let Some(at) = place(signature.at, size.0) else { continue };
        if read(at, signature.magic.len())? != signature.magic {
            continue;
        }
        let mut kind = signature.kind;
        if kind == "ext" {
            kind = ext_kind(&read(0x45c, 8)?);
        }
        let label = match signature.label {
            Some((at, length)) => text(&read(at, length)?),
            None => None,
        };
        let uuid = match (signature.uuid, kind) {
            (Some(at), _) => Uuid::from_slice(&read(at, 16)?).ok().map(|uuid| uuid.to_string()),
            (None, "vfat") => vfat_id(&read(if signature.at_is(0x52) { 0x43 } else { 0x27 }, 4)?),
            _ => None,
        };
        let label = label.filter(|label| !(kind == "vfat" && label == "NO NAME"));
        return Ok(Some(Found { kind: kind.to_owned(), label, uuid }));
    }
    Ok(zfs_at(&read)?.then(|| Found { kind: "ZFS member".to_owned(), label: None, uuid: None }))
}

impl Signature {
    fn at_is(&self, at: u64) -> bool {
        matches!(self.at, Start(here) if here == at)
    }
}

fn place(at: At, size: u64) -> Option<u64> {
    match at {
        Start(at) => (at < size).then_some(at),
        End(back, unit) => (size / unit * unit).checked_sub(back),
    }
}

/// Reads up to `length` bytes; fewer at the end of the device or of the file.
fn read_some(file: &File, at: u64, length: usize, left: u64) -> Result<Vec<u8>> {
    let mut buffer = vec![0; length.min(usize::try_from(left).unwrap_or(usize::MAX))];
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| format!("reading at byte {at}")),
        }
    }
    buffer.truncate(done);
    Ok(buffer)
}

fn zfs_at(read: &impl Fn(u64, usize) -> Result<Vec<u8>>) -> Result<bool> {
    // The ring of uberblocks in the first label and in the second.
    for label in [0_u64, 256 << 10] {
        let ring = read(label + (128 << 10), 128 << 10)?;
        let backwards: Vec<u8> = ZFS_MAGIC.iter().rev().copied().collect();
        if ring.chunks(1024).any(|block| block.starts_with(ZFS_MAGIC) || block.starts_with(&backwards)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn ext_kind(features: &[u8]) -> &'static str {
    let word = |at: usize| {
        features.get(at..at + 4).map_or(0, |b| u32::from_le_bytes(b.try_into().expect("four bytes")))
    };
    const HAS_JOURNAL: u32 = 4;
    // What ext3 knows: file types, recovery, journal devices, meta block groups.
    const OLD_FEATURES: u32 = 0x1e;
    match (word(0) & HAS_JOURNAL != 0, word(4) & !OLD_FEATURES != 0) {
        (_, true) => "ext4",
        (true, false) => "ext3",
        (false, false) => "ext2",
    }
}

fn vfat_id(bytes: &[u8]) -> Option<String> {
    let id = u32::from_le_bytes(bytes.try_into().ok()?);
    Some(format!("{:04X}-{:04X}", id >> 16, id & 0xffff))
}

fn text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned();
    (!text.is_empty()).then_some(text)
}

fn read_mbr(disk: &File, size: Bytes, sector_size: u64) -> Result<(TableKind, Vec<FoundPartition>)> {
    let none = (TableKind::None, Vec::new());
    let sector = read_some(disk, 0, 512, size.0)?;
    if sector.len() < 512 || sector[510..] != [0x55, 0xaa] {
        return Ok(none);
    }
    let entries = mbr_entries(&sector);
    if entries.iter().any(|entry| !matches!(entry.flag, 0 | 0x80)) {
        return Ok(none);
    }
    let mut found = Vec::new();
    let partition = |number: u32, start: u64, sectors: u64| FoundPartition {
        number,
        start: Bytes(start.saturating_mul(sector_size)),
        size: Bytes(sectors.saturating_mul(sector_size)),
        name: String::new(),
        uuid: None,
        content: None,
    };
    let mut extended = None;
    for (index, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.used()) {
        match entry.kind {
            0x05 | 0x0f | 0x85 => extended = Some(entry.start),
            _ => found.push(partition(index as u32 + 1, entry.start, entry.sectors)),
        }
    }
    if let Some(base) = extended {
        let mut at = base;
        for number in (5..).take(MOST_LOGICAL) {
            let sector = read_some(disk, at.saturating_mul(sector_size), 512, u64::MAX)?;
            if sector.len() < 512 || sector[510..] != [0x55, 0xaa] {
                break;
            }
            let [this, next, ..] = mbr_entries(&sector);
            if this.used() {
                found.push(partition(number, at + this.start, this.sectors));
            }
            if !next.used() {
                break;
            }
            at = base + next.start;
        }
    }
    let used = entries.iter().any(MbrEntry::used);
    Ok((if used { TableKind::Mbr } else { TableKind::None }, found))
}

struct MbrEntry {
    flag: u8,
    kind: u8,
    start: u64,
    sectors: u64,
}

impl MbrEntry {
    fn used(&self) -> bool {
        self.kind != 0 && self.sectors != 0
    }
}

fn mbr_entries(sector: &[u8]) -> [MbrEntry; 4] {
    std::array::from_fn(|index| {
        let entry = &sector[446 + index * 16..][..16];
        let number =
            |at: usize| u64::from(u32::from_le_bytes(entry[at..at + 4].try_into().expect("four bytes")));
        MbrEntry { flag: entry[0], kind: entry[4], start: number(8), sectors: number(12) }
    })
}

/// Erases a disk's signatures, tables and boot code, those of each partition it has now, and what
/// would come to light at the ends of each partition it gets.
pub fn wipe_disk(disk: &mut File, size: Bytes, sector_size: u64, coming: &[table::Slot]) -> Result<()> {
    let contents = look(disk, size, sector_size)?;
    for partition in &contents.partitions {
        let end = (partition.start + partition.size).min(size);
        wipe(disk, partition.start, end - partition.start)
            .with_context(|| format!("wiping partition {}", partition.number))?;
    }
    for slot in coming {
        wipe(disk, slot.start, slot.size).with_context(|| format!("wiping the place of {}", slot.name))?;
    }
    wipe(disk, Bytes(0), size).context("wiping the disk")?;
    disk.sync_all().context("syncing the wiped disk")
}

/// Erases the signatures of one device within a file: both ends, and what lies between.
pub fn wipe(file: &File, start: Bytes, size: Bytes) -> Result<()> {
    for signature in SIGNATURES {
        let Some(at) = place(signature.at, size.0) else { continue };
        if read_some(file, start.0 + at, signature.magic.len(), size.0 - at)? == signature.magic {
            zero(file, start.0 + at, signature.magic.len() as u64)?;
        }
    }
    let edge = EDGE.min(size.0);
    zero(file, start.0, edge)?;
    zero(file, start.0 + size.0 - edge, edge)
}

fn zero(file: &File, at: u64, length: u64) -> Result<()> {
    let zeros = vec![0; usize::try_from(length).context("wiping more than fits into memory")?];
    file.write_all_at(&zeros, at).with_context(|| format!("erasing {} at byte {at}", Bytes(length)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn run(program: &str, args: &[&str]) -> (bool, String) {
        let output = Command::new(program).args(args).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn image(size: Bytes) -> (tempfile::NamedTempFile, String) {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(size.0).unwrap();
        let path = image.path().to_str().unwrap().to_owned();
        (image, path)
    }

    const UUID: &str = "6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80";

    #[test]
    fn what_the_tools_make_is_told_and_after_wiping_nothing_is_left() {
        for (program, args, kind, uuid) in [
            ("mkfs.ext4", vec!["-q", "-L", "name", "-U", UUID], "ext4", UUID),
            ("mkfs.ext3", vec!["-q", "-L", "name", "-U", UUID], "ext3", UUID),
            ("mkfs.ext2", vec!["-q", "-L", "name", "-U", UUID], "ext2", UUID),
            (
                "mkfs.xfs",
                vec!["-q", "-L", "name", "-m", "uuid=6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80"],
                "xfs",
                UUID,
            ),
            ("mkfs.btrfs", vec!["-q", "-L", "name", "-U", UUID], "btrfs", UUID),
            ("mkfs.vfat", vec!["-F", "32", "-n", "name", "-i", "ABCD1234"], "vfat", "ABCD-1234"),
            ("mkfs.vfat", vec!["-F", "16", "-n", "name", "-i", "ABCD1234"], "vfat", "ABCD-1234"),
            ("mkswap", vec!["-q", "-L", "name", "-U", UUID], "swap", UUID),
        ] {
            let (image, path) = image(Bytes::mib(320));
            assert!(run(program, &[&args[..], &[&path]].concat()).0, "{program} {args:?}");
            let mut file = image.reopen().unwrap();
            let found = look(&mut file, Bytes::mib(320), 512).unwrap();
            let content = Found { kind: kind.into(), label: Some("name".into()), uuid: Some(uuid.into()) };
            assert_eq!(
                found,
                Contents { table: TableKind::None, partitions: vec![], content: Some(content) }
            );
            wipe_disk(&mut file, Bytes::mib(320), 512, &[]).unwrap();
            assert_eq!(run("blkid", &["-p", &path]), (false, String::new()), "{program}");
            assert_eq!(run("wipefs", &[&path]).1, "", "{program}");
            assert_eq!(on_device(&file, Bytes(0), Bytes::mib(320)).unwrap(), None);
        }
    }

    #[test]
    fn both_ends_of_old_partitions_are_wiped() {
        for label in ["gpt", "dos"] {
            let (image, path) = image(Bytes::mib(64));
            let script = format!("label: {label}\nsize=20M\nsize=20M\n");
            let words = ["-c", "printf \"$0\" | sfdisk -q \"$1\"", &script, &path];
            assert!(run("sh", &words).0);
            let mut file = image.reopen().unwrap();
            // An old RAID member at the end of the first partition, LUKS on the second, boot code.
            file.write_all_at(MD_MAGIC, (21 << 20) - 65536).unwrap();
            file.write_all_at(b"LUKS\xba\xbe", 21 << 20).unwrap();
            file.write_all_at(b"boot code", 16).unwrap();
            let found = look(&mut file, Bytes::mib(64), 512).unwrap();
            let kinds: Vec<_> = found
                .partitions
                .iter()
                .map(|p| p.content.as_ref().map_or("-", |found| &found.kind))
                .collect();
            assert_eq!(kinds, ["RAID member", "LUKS"]);
            assert_eq!(found.table, if label == "gpt" { TableKind::Gpt } else { TableKind::Mbr });
            wipe_disk(&mut file, Bytes::mib(64), 512, &[]).unwrap();
            assert!(std::fs::read(&path).unwrap().iter().all(|&byte| byte == 0), "{label}");
        }
    }

    #[test]
    fn signatures_without_a_tool_here_are_known_too() {
        let size = Bytes::mib(8);
        for (at, magic, kind) in [
            (0x400, &b"\x10\x20\xf5\xf2"[..], "f2fs"),
            (3, b"NTFS    ", "ntfs"),
            (3, b"EXFAT   ", "exfat"),
            (512, b"LABELONE", "LVM"),
            (4096, MD_MAGIC, "RAID member"),
            (size.0 - 8192, MD_MAGIC, "RAID member"),
            (0x8001, b"CD001", "iso9660"),
            ((128 << 10) + 5 * 1024, ZFS_MAGIC, "ZFS member"),
            (0x1018, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", "bcachefs"),
        ] {
            let (image, _) = image(size);
            image.as_file().write_all_at(magic, at).unwrap();
            assert_eq!(on_device(image.as_file(), Bytes(0), size).unwrap().unwrap().kind, kind);
            wipe(image.as_file(), Bytes(0), size).unwrap();
            assert_eq!(on_device(image.as_file(), Bytes(0), size).unwrap(), None);
        }
    }

    #[test]
    fn a_ring_of_extended_partitions_ends_and_a_tiny_disk_is_no_trouble() {
        let (image, _) = image(Bytes::mib(4));
        let mut sector = [0; 512];
        sector[450] = 5;
        (sector[454], sector[458]) = (8, 100);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        image.as_file().write_all_at(&sector, 0).unwrap();
        (sector[450], sector[466], sector[474]) = (0x83, 5, 1);
        image.as_file().write_all_at(&sector, 8 * 512).unwrap();
        let mut file = image.reopen().unwrap();
        let found = look(&mut file, Bytes::mib(4), 512).unwrap();
        assert!(found.partitions.len() <= MOST_LOGICAL);
        for size in [0, 1, 511, 4096] {
            let image = tempfile::tempfile().unwrap();
            image.set_len(size).unwrap();
            let mut file = image;
            assert_eq!(look(&mut file, Bytes(size), 512).unwrap().table, TableKind::None);
            wipe(&file, Bytes(0), Bytes(size)).unwrap();
            assert_eq!(file.metadata().unwrap().len(), size);
        }
    }
}
