//! The disk of a machine that already runs: what it installs from, and must not change.
//!
//! Its root comes from `install-to-dir`. QEMU starts the kernel itself, unless the disk shall have a loader.
//! The demo uses this file too.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::vm::Start;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 3072 * MIB;
const FIRST_SIZE: u64 = 256 * MIB;
// A partition ends where the backup table begins, rounded down to whole MiB.
const ROOT_START: u64 = MIB + FIRST_SIZE;
const ROOT_SIZE: u64 = SIZE - ROOT_START - MIB;

const SECTOR: u64 = 512;
const ESP_TYPE: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];

pub enum Firmware {
    Uefi,
    Bios,
    /// UEFI that starts systemd-boot from the disk.
    UefiLoader,
    /// The same, and neither its partitions nor its file systems have names.
    UefiUnnamed,
}

pub struct Source {
    pub image: PathBuf,
    firmware: Firmware,
    kernel: PathBuf,
    initrd: PathBuf,
    parameters: String,
}

impl Source {
    /// Makes the disk in `work` from the fixture in `from`, with what `firmware` reads in its first partition.
    pub fn make(binary: &Path, from: &Path, toplevel: &str, firmware: Firmware, work: &Path) -> Source {
        let root = work.join("source-root");
        let image = work.join("source.img");
        run(Command::new(binary)
            .args(["install-to-dir", "--yes", "--from"])
            .arg(from)
            .args(["--system", toplevel])
            .arg(&root));
        let inside = |name: &str| {
            let mut path = root.join(&toplevel[1..]).join(name);
            while let Ok(target) = fs::read_link(&path) {
                path = root.join(target.strip_prefix("/").expect("links in a toplevel are absolute"));
            }
            path
        };
        let keep = |name: &str| {
            fs::copy(inside(name), work.join(name)).expect("the system has a kernel and an initrd");
            work.join(name)
        };
        let own = fs::read_to_string(inside("kernel-params")).expect("the system has parameters");
        let (kernel, initrd) = (keep("kernel"), keep("initrd"));
        let parameters = format!("init={toplevel}/init {own}");
        let source = Source { image, firmware, kernel, initrd, parameters };
        source.partition();
        match source.firmware {
            Firmware::Bios => {}
            Firmware::Uefi => source.format_esp(work, &["-n", "ESP"], |_| {}),
            Firmware::UefiLoader | Firmware::UefiUnnamed => {
                let named = matches!(source.firmware, Firmware::UefiLoader);
                let name: &[&str] = if named { &["-n", "ESP"] } else { &[] };
                let loader = inside("systemd").join("lib/systemd/boot/efi/systemd-bootx64.efi");
                source.format_esp(work, name, |esp| source.fill_esp(work, esp, &loader));
            }
        }
        source.format_root(&root);
        fs::remove_dir_all(&root).expect("the directory is ours");
        source
    }

    pub fn start(&self) -> Start {
        match self.firmware {
            Firmware::UefiLoader | Firmware::UefiUnnamed => Start::Uefi,
            Firmware::Uefi | Firmware::Bios => Start::Kernel {
                kernel: self.kernel.clone(),
                initrd: self.initrd.clone(),
                parameters: self.parameters.clone(),
            },
        }
    }

    /// Writes a table of two partitions, and boot code that a wrong installation would overwrite.
    fn partition(&self) {
        let image = &self.image;
        let file = File::create(image).expect("the work directory can be written");
        file.set_len(SIZE).expect("images can be sparse");
        let first_code = match self.firmware {
            Firmware::Uefi | Firmware::UefiLoader | Firmware::UefiUnnamed => "--typecode=1:ef00",
            Firmware::Bios => "--typecode=1:ef02",
        };
        let first = format!("--new=1:{}:{}", MIB / SECTOR, ROOT_START / SECTOR - 1);
        let root = format!("--new=2:{}:{}", ROOT_START / SECTOR, (ROOT_START + ROOT_SIZE) / SECTOR - 1);
        run(Command::new("sgdisk").args([&first, first_code, &root, "--typecode=2:8304"]).arg(image));
        file.write_all_at(&[0xb7; 440], 0).expect("the image can be written");
        file.write_all_at(&vec![0xb8; 512 << 10], 64 * SECTOR).expect("the image can be written");
    }

    fn format_esp(&self, work: &Path, name: &[&str], fill: impl FnOnce(&Path)) {
        let esp = work.join("esp.img");
        File::create(&esp)
            .and_then(|file| file.set_len(FIRST_SIZE))
            .expect("the work directory can be written");
        run(Command::new("mkfs.vfat").args(["-F", "32"]).args(name).arg(&esp));
        fill(&esp);
        let mut from = File::open(&esp).expect("it was just made");
        let mut to = File::options().write(true).open(&self.image).expect("it was just made");
        to.seek(SeekFrom::Start(MIB)).expect("images seek");
        // Its zeros are already there.
        let mut block = vec![0; MIB as usize];
        while let count @ 1.. = from.read(&mut block).expect("the file can be read") {
            if block[..count].iter().any(|&byte| byte != 0) {
                to.write_all(&block[..count]).expect("the image can be written");
            } else {
                to.seek(SeekFrom::Current(count as i64)).expect("images seek");
            }
        }
        fs::remove_file(&esp).expect("it is ours");
    }

    /// Puts onto an ESP what starts the system, with the names that systemd-boot looks for.
    fn fill_esp(&self, work: &Path, esp: &Path, loader: &Path) {
        let conf = work.join("loader.conf");
        fs::write(&conf, "timeout 0\n").expect("the work directory can be written");
        let entry = work.join("entry.conf");
        let lines = format!("title NixOS\nlinux /kernel\ninitrd /initrd\noptions {}\n", self.parameters);
        fs::write(&entry, lines).expect("the work directory can be written");
        let tool = |name: &str| {
            let mut command = Command::new(name);
            command.env("MTOOLS_SKIP_CHECK", "1").arg("-i").arg(esp);
            command
        };
        run(tool("mmd").args(["::/EFI", "::/EFI/BOOT", "::/EFI/systemd", "::/loader", "::/loader/entries"]));
        for (file, place) in [
            (loader, "::/EFI/BOOT/BOOTX64.EFI"),
            (loader, "::/EFI/systemd/systemd-bootx64.efi"),
            (&self.kernel, "::/kernel"),
            (&self.initrd, "::/initrd"),
            (&conf, "::/loader/loader.conf"),
            (&entry, "::/loader/entries/nixos.conf"),
        ] {
            run(tool("mcopy").arg(file).arg(place));
        }
    }

    fn format_root(&self, root: &Path) {
        let options = format!("root_owner=0:0,offset={ROOT_START},nodiscard");
        let label = if let Firmware::UefiUnnamed = self.firmware { "" } else { "nixos" };
        run(Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-L", label, "-E", &options, "-d"])
            .arg(root)
            .arg(&self.image)
            .arg(format!("{}k", ROOT_SIZE / 1024)));
    }
}

/// The byte at which the ESP of a disk image begins, if it has a partition table with one.
pub fn esp(image: &Path) -> Option<u64> {
    let file = File::open(image).ok()?;
    let mut header = [0; SECTOR as usize];
    file.read_exact_at(&mut header, SECTOR).ok()?;
    if &header[..8] != b"EFI PART" {
        return None;
    }
    let mut entries = [0; 128 * 128];
    file.read_exact_at(&mut entries, 2 * SECTOR).ok()?;
    let entry = entries.chunks(128).find(|entry| entry[..16] == ESP_TYPE)?;
    Some(u64::from_le_bytes(entry[32..40].try_into().expect("eight bytes")) * SECTOR)
}

/// Does firmware find a loader on this disk, and the loader a system?
pub fn is_bootable(image: &Path) -> bool {
    let Some(offset) = esp(image) else { return false };
    let place = format!("{}@@{offset}", image.display());
    let holds = |name: &str| {
        let mut command = Command::new("mdir");
        command.env("MTOOLS_SKIP_CHECK", "1").args(["-b", "-i", &place, name]);
        let output = command.stdin(Stdio::null()).output().expect("mtools is installed");
        output.status.success() && !output.stdout.is_empty()
    };
    holds("::/EFI/BOOT/BOOTX64.EFI") && holds("::/loader/entries/*.conf")
}

/// The boot code, the table and what lies before the first file system but the ESP's own blocks.
pub fn boot_area(image: &Path) -> Vec<u8> {
    let mut area = vec![0; MIB as usize];
    let file = File::open(image).expect("the image is there");
    file.read_exact_at(&mut area, 0).expect("the image is larger");
    area
}

#[track_caller]
fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {}: {stderr}", output.status);
}
