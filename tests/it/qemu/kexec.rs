//! Jumps from kernel to kernel in a virtual machine: by what the kernel loads, then by what we place.
//!
//! The machine starts from an initrd with this program in it, which its disk has for its successors.

use std::convert::Infallible;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use nixos_install_via::boot::kexec::{self, KexecError};
use nixos_install_via::sys::unpack;

use crate::env::{TestEnv, fixture, in_root, text, tool};
use crate::vm::{BOOT, Machine, Start, Vm};

const MEMORY: u32 = 512;
const INITRD: &str = "files/initrd";
const PARAMETERS: &str = "console=ttyS0 quiet panic=-1";

const INIT: &str = r#"#!/bin/sh
mkdir -p /proc /sys /dev /tmp /disk /variables
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module" 2>/dev/null; done </modules/order
mount -t efivarfs variables /variables 2>/dev/null
count() { ls "$1" 2>/dev/null | wc -l; }
word() { sed -n "s/^.*$1=\([a-z]*\).*$/\1/p" /proc/cmdline; }
came=$(word came)
mount -t ext4 /dev/vda /disk
echo "written:" $(cat /disk/before-* 2>/dev/null).
echo "recovered: $(dmesg | grep -c 'EXT4-fs.*recovery')"
echo "acpi: $(count /sys/firmware/acpi/tables) processors: $(nproc)"
echo "efi: $(count /sys/firmware/efi) variables: $(count /variables)"
echo "memory: $(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo)"
echo "came by: ${came:-firmware}."
case $came in
'') next=file ;;
file) next=segments ;;
*) NEXT=nowhere /program --exact qemu::kexec::the_guest_s_side --ignored --nocapture; echo "refusals: $?." ;;
esac
if [ "$next" ]; then
    # Somebody still writes when the machine jumps.
    (echo "before $next" && exec sleep 1000) >"/disk/before-$next" &
    NEXT=$next RUST_BACKTRACE=0 /program --exact qemu::kexec::the_guest_s_side --ignored --nocapture
    echo "the jump failed"
fi
poweroff -f
"#;

#[test]
fn a_bios_machine_jumps_by_either_way() {
    let story = Story::new();
    let vm = story.machine().start();
    let seen = story.watch(&vm);
    assert_eq!(seen.each("efi"), ["0 variables: 0"; 3]);
}

#[test]
fn a_uefi_machine_jumps_by_either_way_and_keeps_its_firmware() {
    let story = Story::new();
    let vm = story.machine().uefi().start();
    let seen = story.watch(&vm);
    let efi = seen.each("efi");
    assert!(!efi[0].starts_with("0 ") && !efi[0].ends_with(" 0"), "{efi:?}");
    assert!(efi.iter().all(|each| *each == efi[0]), "{efi:?}");
}

#[test]
#[ignore = "it is what the guests of this file run"]
fn the_guest_s_side() {
    let next = std::env::var("NEXT").expect("the init of a guest sets it");
    if next == "nowhere" {
        return refusals();
    }
    let jump = || -> Result<Infallible> {
        let (kernel, initrd) = (File::open("/kernel")?, File::open("/disk/initrd")?);
        let parameters = format!("{PARAMETERS} came={next}");
        let load = if next == "segments" { kexec::load_segments } else { kexec::load };
        load(&kernel, &initrd, &parameters)?;
        // As for somebody who thinks twice, and once more.
        kexec::unload();
        assert_eq!(loaded(), "0");
        assert!(kexec::jump().is_err());
        load(&kernel, &initrd, &parameters)?;
        assert_eq!(loaded(), "1");
        kexec::jump()
    };
    panic!("{:#}", jump().unwrap_err());
}

fn loaded() -> String {
    fs::read_to_string("/sys/kernel/kexec_loaded").unwrap().trim().to_owned()
}

/// What a kernel says to what cannot be.
fn refusals() {
    let open = |path: &str| File::open(path).unwrap();
    let (kernel, other) = (open("/kernel"), open("/bin/busybox"));
    for load in [kexec::load, kexec::load_file, kexec::load_segments] {
        assert_eq!(load(&other, &kernel, ""), Err(KexecError::NotAKernel));
        assert!(matches!(load(&kernel, &other, &"x".repeat(2048)), Err(KexecError::CommandLine { .. })));
        let large = File::create_new("/large").unwrap();
        large.set_len(u64::from(MEMORY) << 20).unwrap();
        drop(large);
        assert!(matches!(load(&kernel, &open("/large"), ""), Err(KexecError::NoMemory(_))));
        fs::remove_file("/large").unwrap();
    }
    let writing = File::options().append(true).open("/kernel").unwrap();
    assert_eq!(kexec::load_file(&kernel, &other, ""), Err(KexecError::BeingWritten));
    drop(writing);
    assert_eq!(kexec::load(&kernel, &other, ""), Ok(()));
    kexec::unload();
    fs::write("/proc/sys/kernel/kexec_load_disabled", "1").unwrap();
    for load in [kexec::load, kexec::load_file, kexec::load_segments] {
        assert_eq!(load(&kernel, &other, ""), Err(KexecError::Disabled));
    }
}

/// What a machine starts from, and the disk that it writes.
struct Story {
    env: TestEnv,
    kernel: PathBuf,
}

impl Story {
    fn new() -> Story {
        let (env, system) = (TestEnv::new(), fixture("uefi"));
        let root = env.path("initrd");
        fs::create_dir(&root).unwrap();
        let inside = |name: &str| inside(&system.root, &Path::new(&system.toplevel).join(name));
        // Busybox and the modules for disks come from the system's own initrd.
        let shell = |script: &str, words: &[&str]| tool("sh", &[&["-euc", script, "sh"], words].concat());
        shell(
            "gzip -dc \"$1\" | (cd \"$2\" && busybox cpio -id 2>&1)",
            &[text(&inside("initrd")), text(&root)],
        );
        let kernel = inside("kernel");
        fs::copy(&kernel, root.join("kernel")).unwrap();
        fs::write(root.join("init"), INIT).unwrap();
        fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
        let efivarfs = tool("find", &[text(&inside("kernel-modules")), "-name", "efivarfs.ko.xz"]);
        fs::write(root.join("modules/efivarfs.ko"), unpack::read(Path::new(efivarfs.trim())).unwrap())
            .unwrap();
        shell("echo efivarfs.ko >>\"$1\"", &[text(&root.join("modules/order"))]);

        let me = std::env::current_exe().unwrap();
        tool("strip", &["-o", text(&root.join("program")), text(&me)]);
        for library in tool("ldd", &[text(&me)]).split_whitespace().filter(|word| word.starts_with('/')) {
            let target = in_root(&root, library);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(library, target).unwrap();
        }
        // Linux 6.1 believes a table of the firmware even where an initrd was loaded over it: what it finds there
        // tells how much memory is taken. What is compressed does not look like such a table.
        fs::create_dir(env.path("files")).unwrap();
        shell(
            "cd \"$1\" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1 >\"$2\"",
            &[text(&root), text(&env.path(INITRD))],
        );
        let disk = env.image("disk", 64);
        tool("mkfs.ext4", &["-q", "-d", text(&env.path("files")), text(&disk)]);
        Story { env, kernel }
    }

    fn machine(&self) -> Machine {
        let (kernel, initrd) = (self.kernel.clone(), self.env.path(INITRD));
        let parameters = PARAMETERS.to_owned();
        // Two cores, for the jump has to stop one of them.
        Machine::new(Start::Kernel { kernel, initrd, parameters })
            .cores(2)
            .memory(MEMORY)
            .disk(&self.env.path("disk"))
    }

    /// Waits for both jumps and checks what has to be so with any firmware.
    #[track_caller]
    fn watch(&self, vm: &Vm) -> Seen {
        for way in ["firmware", "file", "segments"] {
            vm.wait_serial(&format!("came by: {way}."), BOOT);
        }
        vm.wait_off(BOOT);
        let seen = Seen(vm.serial());
        assert_eq!(seen.each("written"), [".", "before file.", "before file before segments."]);
        // The disk was left as by an orderly end.
        assert_eq!(seen.each("recovered"), ["0"; 3]);
        assert_eq!(seen.each("refusals"), ["0."]);
        let acpi = seen.each("acpi");
        assert!(acpi.iter().all(|each| *each == acpi[0]) && !acpi[0].starts_with('0'), "{acpi:?}");
        let memory = seen.each("memory").iter().map(|kib| kib.parse().unwrap()).collect::<Vec<i64>>();
        assert!(memory.iter().all(|kib| (kib - memory[0]).abs() < 4096), "{memory:?}");
        seen
    }
}

/// What a machine said on its serial port.
struct Seen(String);

impl Seen {
    /// What it said of something after each start.
    fn each(&self, what: &str) -> Vec<&str> {
        let prefix = format!("{what}: ");
        self.0.lines().filter_map(|line| line.split_once(&prefix)).map(|(_, rest)| rest.trim()).collect()
    }
}

/// Follows the links of a system in another root.
fn inside(root: &Path, path: &Path) -> PathBuf {
    let mut path = in_root(root, text(path));
    while let Ok(target) = fs::read_link(&path) {
        path = in_root(root, text(&target));
    }
    path
}
