//! Partition tables: from a layout and a disk's geometry to sectors, and those onto the disk.
//!
//! [`plan`] decides; [`write`] and [`read`] are the only users of the `gpt` package. A table is
//! written whole: protective MBR, primary and backup header, no boot code.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, anyhow, ensure};
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types::{OperatingSystem, Type};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::layout::{ALIGNMENT, Architecture, DiskLayout, LayoutError, Size};
use crate::size::Bytes;

// The backup array and header take 33 sectors of 512 bytes or 5 of 4096; a whole MiB keeps the end aligned.
const BACKUP: Bytes = Bytes::mib(1);
// The partition array of a usual table; more is hostile or broken.
const ARRAY_ENTRIES: u32 = 128;
const MOST_ENTRIES_READ: u32 = 1024;

/// A partition table, in bytes: sectors matter only while it is read or written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    pub disk_uuid: Uuid,
    pub disk_size: Bytes,
    pub sector_size: u64,
    pub slots: Vec<Slot>,
}

/// One partition of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Slot {
    pub number: u32,
    pub start: Bytes,
    pub size: Bytes,
    pub type_uuid: Uuid,
    pub uuid: Uuid,
    pub name: String,
    /// The attribute bits.
    pub attributes: u64,
}

/// Fresh ids for what the layout leaves open, from the caller: a plan is the same every time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    pub disk: Uuid,
    /// One a partition, at least as many as the layout has.
    pub partitions: Vec<Uuid>,
}

impl Ids {
    /// Returns random ids for a layout of so many partitions.
    pub fn random(partitions: usize) -> Ids {
        Ids { disk: Uuid::new_v4(), partitions: (0..partitions).map(|_| Uuid::new_v4()).collect() }
    }
}

/// Turns a layout into a table for a disk of this size.
pub fn plan(
    disk: &DiskLayout,
    architecture: Architecture,
    disk_size: Bytes,
    sector_size: u64,
    ids: &Ids,
) -> Result<Table, LayoutError> {
    block_size(sector_size).ok_or(LayoutError::SectorSize(sector_size))?;
    let need = ALIGNMENT + BACKUP + disk.least();
    if need > disk_size {
        return Err(LayoutError::DoesNotFit { need, have: disk_size });
    }
    let end = disk_size.round_down(ALIGNMENT) - BACKUP;
    let mut at = ALIGNMENT;
    let mut slots = Vec::new();
    for (index, partition) in disk.partitions.iter().enumerate() {
        let size = match partition.size {
            Size::Fixed(size) => size.round_up(ALIGNMENT),
            Size::Rest => end - at,
            Size::AllBut(left) => end - left.round_up(ALIGNMENT) - at,
        };
        slots.push(Slot {
            number: index as u32 + 1,
            start: at,
            size,
            type_uuid: partition.kind.guid(architecture),
            uuid: partition.uuid.unwrap_or(ids.partitions[index]),
            name: partition.name.clone(),
            attributes: partition.attributes.iter().fold(0, |bits, bit| bits | 1 << bit),
        });
        at += size;
    }
    Ok(Table { disk_uuid: ids.disk, disk_size, sector_size, slots })
}

fn block_size(sector_size: u64) -> Option<LogicalBlockSize> {
    match sector_size {
        512 => Some(LogicalBlockSize::Lb512),
        4096 => Some(LogicalBlockSize::Lb4096),
        _ => None,
    }
}

/// Writes the table: protective MBR, primary and backup, then syncs.
pub fn write(disk: &mut File, table: &Table) -> Result<()> {
    let sectors = table.disk_size.0 / table.sector_size;
    let block = block_size(table.sector_size)
        .with_context(|| format!("writing a table for sectors of {} bytes", table.sector_size))?;
    let mbr = ProtectiveMBR::with_lb_size(u32::try_from(sectors - 1).unwrap_or(u32::MAX));
    mbr.overwrite_lba0(disk).map_err(|error| anyhow!("{error}")).context("writing the protective MBR")?;
    // Not from the old headers: a broken one would shape the new.
    let mut gpt = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(block)
        .create_from_device(&mut *disk, Some(table.disk_uuid))
        .context("making a partition table")?;
    let mut partitions = BTreeMap::new();
    for slot in &table.slots {
        let first_lba = slot.start.0 / table.sector_size;
        partitions.insert(
            slot.number,
            gpt::partition::Partition {
                part_type_guid: Type { guid: slot.type_uuid, os: OperatingSystem::None },
                part_guid: slot.uuid,
                first_lba,
                last_lba: first_lba + slot.size.0 / table.sector_size - 1,
                flags: slot.attributes,
                name: slot.name.clone(),
            },
        );
    }
    gpt.update_partitions(partitions).context("placing the partitions")?;
    gpt.write().context("writing the partition table")?;
    disk.sync_all().context("syncing the partition table")
}

/// Reads the table that is on a disk or image; none if there is no GPT.
///
/// What is on a disk is untrusted: a header that would make the reader allocate or stumble is an error.
pub fn read(disk: &mut File, sector_size: u64) -> Result<Option<Table>> {
    let block = block_size(sector_size).with_context(|| format!("reading sectors of {sector_size} bytes"))?;
    let disk_size = disk.seek(SeekFrom::End(0)).context("measuring the disk")?;
    let mut headers = 0;
    for at in [sector_size, (disk_size / sector_size).saturating_sub(1) * sector_size] {
        let mut header = [0; 92];
        if disk.read_exact_at(&mut header, at).is_err() || &header[..8] != b"EFI PART" {
            continue;
        }
        let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let (entries, entry_size) = (number(80), number(84));
        ensure!(
            entry_size == 128 && entries <= MOST_ENTRIES_READ,
            "the partition table has {entries} entries of {entry_size} bytes, not the usual {ARRAY_ENTRIES} of 128"
        );
        headers += 1;
    }
    if headers == 0 {
        return Ok(None);
    }
    disk.rewind().context("rewinding the disk")?;
    let gpt = gpt::GptConfig::new()
        .logical_block_size(block)
        .open_from_device(Unwritable(disk))
        .context("reading the partition table")?;
    let slot = |(number, partition): (&u32, &gpt::partition::Partition)| {
        let sectors = (partition.last_lba.checked_add(1)?).checked_sub(partition.first_lba)?;
        Some(Slot {
            number: *number,
            start: Bytes(partition.first_lba.checked_mul(sector_size)?),
            size: Bytes(sectors.checked_mul(sector_size)?),
            type_uuid: partition.part_type_guid.guid,
            uuid: partition.part_guid,
            name: partition.name.clone(),
            attributes: partition.flags,
        })
    };
    let slots =
        gpt.partitions().iter().filter(|(_, partition)| partition.is_used()).filter_map(slot).collect();
    Ok(Some(Table { disk_uuid: *gpt.guid(), disk_size: Bytes(disk_size), sector_size, slots }))
}

/// The `gpt` package wants a writer even to read.
#[derive(Debug)]
struct Unwritable<'a>(&'a mut File);

impl Read for Unwritable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Seek for Unwritable<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.0.seek(to)
    }
}

impl std::io::Write for Unwritable<'_> {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::layout;
    use std::path::Path;
    use std::process::Command;

    const LAYOUT: &str = r#"{"disks": {"main": {"partitions": [
        {"name": "ESP", "type": "esp", "size": "64M", "content": {"type": "filesystem", "format": "vfat", "mountpoint": "/boot"}},
        {"name": "bios", "type": "bios-boot", "size": "1M"},
        {"name": "größe 漢字", "type": "swap", "size": "1000000", "uuid": "6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80", "content": {"type": "swap"}},
        {"name": "root", "type": "root", "size": "100%", "attributes": [59, 2], "content": {"type": "filesystem", "format": "ext4", "mountpoint": "/"}}]}}}"#;

    fn disk_layout() -> DiskLayout {
        layout::parse(LAYOUT).unwrap().disk().unwrap().1.clone()
    }

    fn ids() -> Ids {
        let id = |n: u128| Uuid::from_u128(0x1000_0000_0000_4000_8000_0000_0000_0000 + n);
        Ids { disk: id(0), partitions: (1..10).map(id).collect() }
    }

    fn planned(size: Bytes, sector_size: u64) -> Result<Table, LayoutError> {
        plan(&disk_layout(), Architecture::X86_64, size, sector_size, &ids())
    }

    #[test]
    fn partitions_are_aligned_and_the_last_leaves_room_for_the_backup_table() {
        for (size, sector_size, rest) in [
            (Bytes::gib(1), 512, Bytes::mib(1024 - 68)),
            (Bytes::gib(1), 4096, Bytes::mib(1024 - 68)),
            (Bytes(Bytes::gib(1).0 + 512 * 77), 512, Bytes::mib(1024 - 68)),
        ] {
            let slots = planned(size, sector_size).unwrap().slots;
            assert!(slots.iter().all(|slot| slot.start.0 % (1 << 20) == 0 && slot.size.0 % (1 << 20) == 0));
            let sizes: Vec<Bytes> = slots.iter().map(|slot| slot.size).collect();
            assert_eq!(sizes, [Bytes::mib(64), Bytes::mib(1), Bytes::mib(1), rest], "{size}");
            assert_eq!(slots[3].attributes, 1 << 59 | 1 << 2);
            assert_eq!(slots[2].uuid.to_string(), "6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80");
        }
    }

    #[test]
    fn a_partition_that_leaves_the_end_of_the_disk_ends_before_it() {
        let swap = |size| format!(r#", {{"name": "swap", "type": "swap", "size": "{size}"}}]}}}}}}"#);
        for (end, behind) in [("]}}}".to_owned(), None), (swap("100%"), Some(98)), (swap("16M"), Some(16))] {
            let text = LAYOUT.replace("100%", "-102400000").replace("]}}}", &end);
            let layout = layout::parse(&text).unwrap();
            let of = |size| plan(layout.disk().unwrap().1, Architecture::X86_64, size, 512, &ids());
            let slots = of(Bytes::gib(1)).unwrap().slots;
            // 1 MiB before the first and 1 MiB for the backup table; what is left is rounded up, to 98 MiB.
            assert_eq!(slots[3].size, Bytes::mib(1024 - 2 - 66 - 98), "{end}");
            let found = slots.get(4).map(|slot| (slot.start, slot.size));
            let expected = behind.map(|size| (slots[3].start + slots[3].size, Bytes::mib(size)));
            assert_eq!(found, expected, "{end}");
            // The root's least are 16 MiB.
            assert!(of(Bytes::mib(2 + 66 + 16 + 98)).is_ok());
            let (need, have) = (Bytes::mib(2 + 66 + 16 + 98), Bytes::mib(2 + 66 + 16 + 97));
            assert_eq!(of(have), Err(LayoutError::DoesNotFit { need, have }));
        }
    }

    #[test]
    fn a_disk_too_small_is_told_with_both_numbers() {
        for size in [Bytes(0), Bytes::mib(1), Bytes::mib(60), Bytes::mib(83)] {
            let error = planned(size, 512).unwrap_err();
            assert_eq!(error, LayoutError::DoesNotFit { need: Bytes::mib(84), have: size });
        }
        assert!(planned(Bytes::mib(84), 512).is_ok());
        assert_eq!(planned(Bytes::gib(1), 520), Err(LayoutError::SectorSize(520)));
    }

    fn image(size: Bytes) -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(size.0).unwrap();
        image
    }

    fn said(program: &str, path: &Path) -> String {
        let option = if program == "sgdisk" { "-v" } else { "-d" };
        let output = Command::new(program).env("LC_ALL", "C.UTF-8").arg(option).arg(path).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    #[test]
    fn what_is_written_is_read_back_and_other_tools_agree() {
        let image = image(Bytes(Bytes::gib(1).0 + 512 * 77));
        let table = planned(Bytes(Bytes::gib(1).0 + 512 * 77), 512).unwrap();
        let mut file = image.reopen().unwrap();
        // An old and broken table must not shine through.
        file.write_all_at(&[0xff; 8192], 0).unwrap();
        write(&mut file, &table).unwrap();
        assert_eq!(read(&mut file, 512).unwrap(), Some(table));
        assert!(
            said("sgdisk", image.path()).contains("No problems found"),
            "{}",
            said("sgdisk", image.path())
        );
        let dump = said("sfdisk", image.path());
        for line in [
            "label: gpt",
            "label-id: 10000000-0000-4000-8000-000000000000",
            "first-lba: 34",
            "start=        2048, size=      131072, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=10000000-0000-4000-8000-000000000001, name=\"ESP\"",
            r#"name="gr\xc3\xb6\xc3\x9fe \xe6\xbc\xa2\xe5\xad\x97""#,
            "attrs=\"LegacyBIOSBootable GUID:59\"",
        ] {
            assert!(dump.contains(line), "{dump}\nlacks {line}");
        }
    }

    #[test]
    fn a_table_for_large_sectors_is_read_back() {
        let image = image(Bytes::gib(1));
        let table = planned(Bytes::gib(1), 4096).unwrap();
        let mut file = image.reopen().unwrap();
        write(&mut file, &table).unwrap();
        assert_eq!(read(&mut file, 4096).unwrap(), Some(table));
        assert_eq!(read(&mut file, 512).unwrap(), None);
    }

    #[test]
    fn broken_and_hostile_tables_are_errors_and_no_table_is_none() {
        let image = image(Bytes::gib(1));
        let mut file = image.reopen().unwrap();
        assert_eq!(read(&mut file, 512).unwrap(), None);
        write(&mut file, &planned(Bytes::gib(1), 512).unwrap()).unwrap();
        // One broken header is survived: the other is read.
        file.write_all_at(&[0; 512], 512).unwrap();
        assert_eq!(read(&mut file, 512).unwrap().unwrap().slots.len(), 4);
        for (at, value) in [(80, u32::MAX), (84, 4096), (84, 0)] {
            let mut header = [0; 512];
            header[..8].copy_from_slice(b"EFI PART");
            header[80..84].copy_from_slice(&128_u32.to_le_bytes());
            header[84..88].copy_from_slice(&128_u32.to_le_bytes());
            header[at..at + 4].copy_from_slice(&value.to_le_bytes());
            file.write_all_at(&header, 512).unwrap();
            assert!(read(&mut file, 512).unwrap_err().to_string().contains("not the usual"));
        }
        let empty = tempfile::tempfile().unwrap();
        assert_eq!(read(&mut { empty }, 512).unwrap(), None);
    }
}
