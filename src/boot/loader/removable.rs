//! The removable path: what firmware starts that has no boot entry.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result, bail};

use super::Kind;
use crate::sys::file;

/// Makes sure that firmware without a boot entry finds the loader on the ESP mounted at `esp`, as
/// it does on a stick that is carried to another machine: `EFI/BOOT/BOOTX64.EFI` is there already, or
/// becomes a copy of the loader's image.
pub fn ensure_removable(esp: &Path, kind: Kind, arch: &str) -> Result<()> {
    let name = format!("BOOT{arch}.EFI");
    if find(esp, &["EFI", "BOOT", &name])?.is_some() {
        return Ok(());
    }
    let Some(image) = image(esp, arch)? else {
        // A loader for BIOS or U-Boot, or one that is not known, may well have no image.
        if kind.needs_esp() {
            bail!("the boot loader left no EFI image on the ESP; firmware would find nothing to start");
        }
        return Ok(());
    };
    let efi = find(esp, &["EFI"])?.expect("the image lies there");
    let dir = match find(&efi, &["BOOT"])? {
        Some(dir) => dir,
        None => {
            let dir = efi.join("BOOT");
            fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
            file::sync_dir(&efi)?;
            dir
        }
    };
    let contents = fs::read(&image).with_context(|| format!("reading {}", image.display()))?;
    file::publish(&dir.join(name), &contents)
}

/// Returns the loader's own image: systemd-boot's, limine's, or GRUB's in a directory of any name.
fn image(esp: &Path, arch: &str) -> Result<Option<PathBuf>> {
    let systemd = format!("systemd-boot{arch}.efi");
    let limine = format!("BOOT{arch}.EFI");
    for path in [["EFI", "systemd", &systemd], ["EFI", "limine", &limine]] {
        if let Some(path) = find(esp, &path)? {
            return Ok(Some(path));
        }
    }
    let Some(efi) = find(esp, &["EFI"])? else { return Ok(None) };
    for dir in names(&efi)? {
        let path = efi.join(&dir);
        if path.is_dir()
            && let Some(path) = find(&path, &[&format!("grub{arch}.efi")])?
        {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Finds a path by names whose case does not matter, as on FAT.
fn find(dir: &Path, path: &[&str]) -> Result<Option<PathBuf>> {
    let mut found = dir.to_owned();
    for part in path {
        if !found.is_dir() {
            return Ok(None);
        }
        let same = |name: &std::ffi::OsString| name.as_bytes().eq_ignore_ascii_case(part.as_bytes());
        match names(&found)?.into_iter().find(same) {
            Some(name) => found.push(name),
            None => return Ok(None),
        }
    }
    Ok(Some(found))
}

fn names(dir: &Path) -> Result<Vec<std::ffi::OsString>> {
    let names = fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>());
    let mut names: Vec<_> = names.with_context(|| format!("reading {}", dir.display()))?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_finds_the_loader_on_a_removable_disk() {
        for (present, arch, expected) in [
            ("EFI/systemd/systemd-bootx64.efi", "X64", Some("EFI/BOOT/BOOTX64.EFI")),
            ("efi/SYSTEMD/SYSTEMD-BOOTAA64.EFI", "AA64", Some("efi/BOOT/BOOTAA64.EFI")),
            ("EFI/NixOS-boot/grubx64.efi", "X64", Some("EFI/BOOT/BOOTX64.EFI")),
            ("EFI/limine/BOOTX64.EFI", "X64", Some("EFI/BOOT/BOOTX64.EFI")),
            ("EFI/systemd/systemd-bootx64.efi", "AA64", None),
            ("loader/loader.conf", "X64", None),
        ] {
            let esp = tempfile::tempdir().unwrap();
            let path = esp.path().join(present);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, present).unwrap();
            let result = ensure_removable(esp.path(), Kind::SystemdBoot, arch);
            match expected {
                Some(place) => assert_eq!(fs::read_to_string(esp.path().join(place)).unwrap(), present),
                None => assert!(result.is_err()),
            }
            // For loaders that need no ESP nothing is wrong.
            ensure_removable(esp.path(), Kind::Extlinux, arch).unwrap();
        }
        // One that is there is left alone.
        let esp = tempfile::tempdir().unwrap();
        for (path, text) in [("efi/boot/bootx64.efi", "signed"), ("efi/systemd/systemd-bootx64.efi", "other")]
        {
            let path = esp.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        ensure_removable(esp.path(), Kind::Lanzaboote, "X64").unwrap();
        assert_eq!(fs::read_to_string(esp.path().join("efi/boot/bootx64.efi")).unwrap(), "signed");
        assert_eq!(fs::read_dir(esp.path().join("efi/boot")).unwrap().count(), 1);
    }
}
