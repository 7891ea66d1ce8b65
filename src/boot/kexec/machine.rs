//! What the running kernel tells of the machine to those who place another kernel themselves.

use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use super::KexecError;
use super::handover::{Efi, EfiArea, Machine};
use super::memory::{self, Area};
use crate::size::Bytes;

const IOMEM: &str = "/proc/iomem";
const FIRMWARE_MAP: &str = "/sys/firmware/memmap";
const BOOT_PARAMS: &str = "/sys/kernel/boot_params/data";
const EFI: &str = "/sys/firmware/efi";
const ACPI_RSDP: Range<usize> = 0x70..0x78;

pub fn look() -> Result<Machine, KexecError> {
    let systab = fs::read_to_string(format!("{EFI}/systab")).unwrap_or_default();
    let boot_params = fs::read(BOOT_PARAMS).unwrap_or_default();
    let mut random_seed = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random_seed))
        .map_err(|error| KexecError::unreadable("/dev/urandom", &error))?;
    let memory = match firmware_map() {
        Some(areas) if !areas.is_empty() => areas,
        _ => memory::areas_of_iomem(&iomem()?),
    };
    let acpi_rsdp = acpi_rsdp(&boot_params, &systab);
    Ok(Machine { memory, acpi_rsdp, efi: efi(&systab), boot_params, random_seed })
}

/// Returns the memory that another kernel may be placed in.
pub fn free_ram() -> Result<Vec<Range<u64>>, KexecError> {
    Ok(memory::free_ram(&iomem()?))
}

/// Tells whether the running kernel may have turned five levels of page tables on.
pub fn has_five_levels() -> bool {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "la57")
}

/// Refuses what the running kernel could only give by killing programs.
pub fn must_have(need: Bytes) -> Result<(), KexecError> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    // The oldest kernels do not say.
    match memory::available(&meminfo) {
        Some(available) if available < need => Err(KexecError::NoMemory(need)),
        _ => Ok(()),
    }
}

fn iomem() -> Result<String, KexecError> {
    fs::read_to_string(IOMEM).map_err(|error| KexecError::unreadable(IOMEM, &error))
}

/// The firmware's memory map; sorted, because directories are not.
fn firmware_map() -> Option<Vec<Area>> {
    let mut areas = Vec::new();
    for entry in fs::read_dir(FIRMWARE_MAP).ok()? {
        let dir = entry.ok()?.path();
        let text = |name: &str| fs::read_to_string(dir.join(name)).ok();
        areas.push(memory::firmware_area(&text("start")?, &text("end")?, &text("type")?)?);
    }
    areas.sort_by_key(|area| area.range.start);
    Some(areas)
}

/// Where ACPI's tables begin: a kernel finds that by itself on BIOS machines only.
fn acpi_rsdp(boot_params: &[u8], systab: &str) -> Option<u64> {
    let told = boot_params.get(ACPI_RSDP).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let told = told.filter(|&address| address != 0);
    told.or_else(|| table(systab, "ACPI20")).or_else(|| table(systab, "ACPI"))
}

/// Reads a line such as `ACPI20=0x7fb7e014` of `/sys/firmware/efi/systab`.
fn table(systab: &str, name: &str) -> Option<u64> {
    let mut lines = systab.lines().filter_map(|line| line.split_once('='));
    lines.find(|(key, _)| *key == name).and_then(|(_, value)| memory::hexadecimal(value))
}

/// What calls of the firmware need, all of it or nothing.
fn efi(systab: &str) -> Option<Efi> {
    let number = |name: &str| memory::hexadecimal(&fs::read_to_string(format!("{EFI}/{name}")).ok()?);
    Some(Efi {
        config_table: number("config_table")?,
        // Hidden where they are 0, or no longer told.
        vendor: number("fw_vendor").unwrap_or_default(),
        runtime: number("runtime").unwrap_or_default(),
        smbios: table(systab, "SMBIOS").unwrap_or_default(),
        map: (0..)
            .map_while(|entry| efi_area(&Path::new(EFI).join(format!("runtime-map/{entry}"))))
            .collect(),
    })
    .filter(|efi: &Efi| !efi.map.is_empty())
}

fn efi_area(dir: &Path) -> Option<EfiArea> {
    let number = |name: &str| memory::hexadecimal(&fs::read_to_string(dir.join(name)).ok()?);
    Some(EfiArea {
        kind: number("type")? as u32,
        physical: number("phys_addr")?,
        virtual_address: number("virt_addr")?,
        pages: number("num_pages")?,
        attribute: number("attribute")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acpi_is_found_where_the_kernel_was_told_or_where_the_firmware_says() {
        let mut told = vec![0; 4096];
        told[0x70..0x78].copy_from_slice(&0x1234_u64.to_le_bytes());
        let systab = "ACPI20=0x1fb7e014\nACPI=0x1fb7e000\nSMBIOS=0x1f9a0000\n";
        for (boot_params, systab, wanted) in [
            (&told[..], systab, Some(0x1234)),
            (&[0; 4096], systab, Some(0x1fb7_e014)),
            (&[], "SMBIOS=0x1f9a0000\nACPI=0x1fb7e000\n", Some(0x1fb7_e000)),
            (&[], "", None),
        ] {
            assert_eq!(acpi_rsdp(boot_params, systab), wanted);
        }
    }
}
