//! Boot loaders: which one a system has, having it install itself, and looking whether it did.
//!
//! The system's own `bin/switch-to-configuration boot` does the work, so that every loader NixOS
//! knows keeps what its owner configured. It runs in a [`Fence`] whose only block devices are the
//! target's. Its exit status says little (it may be any old errno, 0 included), so what counts is
//! what it left on the disk.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

pub use self::devices::{TargetDisk, TargetPartition, device_nodes, link_name};
pub use self::needs::{Need, needs, toplevels};
pub use self::recognise::recognise;
pub use self::removable::ensure_removable;
use crate::progress::{Event, Progress};
use crate::store::path::StorePath;
use crate::sys::namespace::{self, DeviceNode, Efi, Fence, Network, Preparation};
use crate::sys::{command, inside};

mod devices;
mod entries;
mod look;
mod needs;
mod recognise;
mod removable;
mod version;

/// A system's boot loader, as far as the texts in its store tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Loader {
    pub kind: Kind,
    /// Where it expects the EFI system partition.
    pub esp_mount_point: Option<PathBuf>,
    /// Where it puts kernels and menus, when that is known and another place.
    pub boot_mount_point: Option<PathBuf>,
    /// Where else it writes: to the other boot directories and EFI system partitions of GRUB's mirrored boots.
    #[serde(default)]
    pub written: Vec<PathBuf>,
    /// The disks it writes boot code to, as named when the system was built.
    pub baked_devices: Vec<PathBuf>,
    pub can_touch_efi_variables: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    SystemdBoot,
    GrubBios,
    GrubEfi,
    /// GRUB for BIOS and for EFI on one disk.
    GrubBoth,
    /// GRUB's menu only: something else loads GRUB.
    GrubMenu,
    Lanzaboote,
    Limine,
    Extlinux,
    /// An installer that is not known; it is run, and judged by whether anything that it left names the system.
    External,
    /// No boot loader is enabled.
    None,
    /// There is no `bin/switch-to-configuration`: a container, or switching is disabled.
    NoSwitch,
}

impl Kind {
    /// Tells whether firmware finds this loader on an EFI system partition.
    pub fn needs_esp(self) -> bool {
        matches!(self, Kind::SystemdBoot | Kind::GrubEfi | Kind::GrubBoth | Kind::Lanzaboote)
    }

    /// Tells whether this loader writes boot code for a BIOS, which wants a partition of its own.
    pub fn needs_bios_partition(self) -> bool {
        matches!(self, Kind::GrubBios | Kind::GrubBoth)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::SystemdBoot => "systemd-boot",
            Kind::GrubBios => "GRUB for BIOS",
            Kind::GrubEfi => "GRUB for UEFI",
            Kind::GrubBoth => "GRUB for BIOS and UEFI",
            Kind::GrubMenu => "GRUB's menu",
            Kind::Lanzaboote => "lanzaboote",
            Kind::Limine => "limine",
            Kind::Extlinux => "extlinux",
            Kind::External => "the boot loader",
            Kind::None | Kind::NoSwitch => "no boot loader",
        })
    }
}

/// A system that brings no boot loader.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("this system installs no boot loader; enable one in its configuration, or use install-to-dir")]
pub struct NoLoader;

/// All that the installation of a boot loader needs to know.
pub struct Install<'a> {
    /// Where the target's file systems are mounted, the ESP and `/boot` included.
    pub root: &'a Path,
    pub system: &'a StorePath,
    pub loader: &'a Loader,
    /// The ESP's mount point within the root, such as `/boot`.
    pub esp: Option<&'a Path>,
    /// From [`device_nodes`].
    pub devices: Vec<DeviceNode>,
    /// The disks or images whose boot code must have been written, as found here.
    pub disks: &'a [PathBuf],
    /// Let the installer change this machine's EFI variables.
    pub efi_variables: bool,
    /// Programs to run first, activation among them: the installer fails in a root
    /// that was never activated.
    pub activation: Vec<Preparation>,
}

/// Has the system install its boot loader, and looks whether it is there.
pub fn install(install: &Install, progress: &dyn Progress) -> Result<()> {
    if matches!(install.loader.kind, Kind::None | Kind::NoSwitch) {
        bail!(NoLoader);
    }
    run_installer(install, progress).context("installing the boot loader")?;
    look::look(install, progress).context("looking for the boot loader that was installed")?;
    if let Some(esp) = install.esp {
        let arch = architecture(install.root, install.system)?;
        ensure_removable(&below(install.root, esp), install.loader.kind, arch)?;
    }
    Ok(())
}

// Enough to see what failed; all of it has gone to the progress already.
const LAST_LINES: usize = 20;

fn run_installer(install: &Install, progress: &dyn Progress) -> Result<()> {
    let fence = Fence {
        devices: install.devices.clone(),
        network: Network::None,
        efi: if install.efi_variables { Efi::Visible } else { Efi::Hidden },
        before: install.activation.clone(),
        ..Fence::around(install.root)
    };
    let system = install.system;
    let mut switch = fence.command(format!("{system}/bin/switch-to-configuration"), ["boot"]);
    switch.env("NIXOS_INSTALL_BOOTLOADER", "1");
    switch.env("LOCALE_ARCHIVE", format!("{system}/sw/lib/locale/locale-archive"));
    if !install.efi_variables {
        // bootctl's checks of the ESP may ask udev's database, which the fence does not have. What
        // they guard is our own layout.
        switch.env("SYSTEMD_RELAX_ESP_CHECKS", "1");
    }
    let mut tail = VecDeque::new();
    let status = command::stream_status(&mut switch, |line| {
        progress.event(Event::Output { program: "boot loader".to_owned(), line: line.to_owned() });
        tail.push_back(format!("\n    {line}"));
        if tail.len() > LAST_LINES {
            tail.pop_front();
        }
    })?;
    match namespace::exit_code(status) {
        0 => Ok(()),
        code => {
            bail!("the system's switch-to-configuration ended with status {code}{}", String::from_iter(tail))
        }
    }
}

/// Returns what the UEFI specification calls the machine: `X64` in `BOOTX64.EFI`.
fn architecture(root: &Path, system: &StorePath) -> Result<&'static str> {
    let path = PathBuf::from(format!("{system}/system"));
    let text = inside::read(root, &path, recognise::TEXT_LIMIT)
        .with_context(|| format!("reading {}", path.display()))?;
    let text = String::from_utf8_lossy(&text);
    match text.trim().split('-').next().unwrap_or_default() {
        "x86_64" => Ok("X64"),
        "aarch64" => Ok("AA64"),
        "i686" | "i586" => Ok("IA32"),
        "riscv64" => Ok("RISCV64"),
        "loongarch64" => Ok("LOONGARCH64"),
        other => bail!("firmware has no name for the architecture {other:?} of {system}"),
    }
}

/// Joins an absolute path of the target to where its root is.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::namespace::{Output, testing};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Mutex;

    const H: &str = "0c5mzqyfjhyxv5bmpanmc7dzl5cfbhzj";

    fn system() -> StorePath {
        StorePath::from_base_name(&format!("{H}-nixos-system-box-25.05")).unwrap()
    }

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Progress for Heard {
        fn event(&self, event: Event) {
            if let Event::Output { line, .. } | Event::Warning { text: line } = event {
                self.0.lock().unwrap().push(line);
            }
        }
    }

    /// A root whose switch-to-configuration is the given script, with systemd-boot's files written by `b`.
    fn root(script: &str) -> tempfile::TempDir {
        let root = testing::root();
        let toplevel = system().in_root(root.path());
        fs::create_dir_all(toplevel.join("bin")).unwrap();
        fs::create_dir_all(root.path().join("boot")).unwrap();
        fs::write(toplevel.join("system"), "x86_64-linux").unwrap();
        let switch = toplevel.join("bin/switch-to-configuration");
        fs::write(&switch, format!("#!/bin/busybox sh\nset -e\nPATH=/bin\nalias b=/bin/busybox\n{script}\n"))
            .unwrap();
        fs::set_permissions(&switch, fs::Permissions::from_mode(0o555)).unwrap();
        root
    }

    fn run(root: &Path, kind: Kind, disks: &[PathBuf]) -> (Result<()>, Vec<String>) {
        let heard = Heard::default();
        let loader = Loader { boot_mount_point: None, ..Loader::of(kind) };
        let activate = ["/bin/busybox", "sh", "-c", "echo activated; /bin/busybox touch /run/activated"];
        let activation = Preparation {
            words: activate.map(str::to_owned).to_vec(),
            environment: Vec::new(),
            output: Output::Show,
        };
        let result = install(
            &Install {
                root,
                system: &system(),
                loader: &loader,
                esp: Some(Path::new("/boot")),
                devices: Vec::new(),
                disks,
                efi_variables: false,
                activation: vec![activation],
            },
            &heard,
        );
        (result, heard.0.into_inner().unwrap())
    }

    const SYSTEMD_BOOT: &str = "[ -e /run/activated ] && [ $1 $NIXOS_INSTALL_BOOTLOADER = boot1 ] 2>/dev/null || [ \"$1$NIXOS_INSTALL_BOOTLOADER\" = boot1 ]
        echo installing
        b mkdir -p /boot/loader/entries /boot/EFI/systemd /boot/EFI/nixos
        echo image > /boot/EFI/systemd/systemd-bootx64.efi
        echo kernel > /boot/EFI/nixos/k.efi
        printf 'timeout 5\\ndefault nixos-generation-1.conf\\n' > /boot/loader/loader.conf
        printf 'title NixOS\\nlinux /EFI/nixos/k.efi\\noptions init=%s/init quiet\\n' ${0%/bin/*} > /boot/loader/entries/nixos-generation-1.conf
        ";

    #[test]
    fn systemd_boot_is_installed_after_activation_and_found_by_any_firmware() {
        let root = root(SYSTEMD_BOOT);
        let (result, heard) = run(root.path(), Kind::SystemdBoot, &[]);
        result.unwrap();
        assert_eq!(heard, ["activated", "installing"]);
        assert_eq!(fs::read(root.path().join("boot/EFI/BOOT/BOOTX64.EFI")).unwrap(), b"image\n");
        // The fence leaves nothing in the root.
        for dir in ["dev", "proc", "sys", "run"] {
            assert_eq!(fs::read_dir(root.path().join(dir)).unwrap().count(), 0, "{dir}");
        }
    }

    #[test]
    fn a_loader_that_is_not_there_is_a_failure_whatever_the_status_says() {
        let conf = "/boot/loader/entries/nixos-generation-1.conf";
        for (script, sentence) in [
            (
                "echo no room; exit 5".to_owned(),
                "the system's switch-to-configuration ended with status 5\n    activated\n    no room",
            ),
            ("kill -9 $$".to_owned(), "ended with status 137"),
            ("exit 0".to_owned(), "reading"),
            (format!("{SYSTEMD_BOOT} b rm {conf}"), "there is no boot entry in"),
            (
                format!("{SYSTEMD_BOOT} echo options init=/nix/store/other/init > {conf}"),
                "does not have init=/nix/store/",
            ),
            (
                format!("{SYSTEMD_BOOT} b rm /boot/EFI/nixos/k.efi"),
                "wants /EFI/nixos/k.efi, which is not there",
            ),
            (format!("{SYSTEMD_BOOT} b rm -r /boot/EFI/systemd"), "left no EFI image on the ESP"),
        ] {
            let root = root(&script);
            let error = format!("{:#}", run(root.path(), Kind::SystemdBoot, &[]).0.expect_err(&script));
            assert!(error.contains(sentence), "{script}: {error}");
        }
    }

    #[test]
    fn entries_by_hash_and_with_counters_are_found() {
        let counted =
            "b mv /boot/loader/entries/nixos-generation-1.conf /boot/loader/entries/nixos-0a1b+3.conf
            printf 'preferred nixos-0a1b.conf\\ndefault nixos-*\\n' > /boot/loader/loader.conf";
        let root = root(&format!("{SYSTEMD_BOOT} {counted}"));
        run(root.path(), Kind::SystemdBoot, &[]).0.unwrap();
    }

    #[test]
    fn of_a_loader_that_is_not_known_it_is_told_when_nothing_names_the_system() {
        for (script, warned) in [
            ("b mkdir -p /boot/nixos; echo \"${0%/bin/*}/init\" > /boot/nixos/cmdline.txt", false),
            ("b mkdir -p /boot/nixos; echo /nix/store/other/init > /boot/nixos/cmdline.txt", true),
        ] {
            let (result, heard) = run(root(script).path(), Kind::External, &[]);
            result.unwrap();
            assert_eq!(
                heard.iter().any(|line| line.contains("nothing names the system")),
                warned,
                "{script}"
            );
        }
    }

    #[test]
    fn grub_is_judged_by_its_menu_and_by_the_boot_code() {
        let write = "b mkdir -p /boot/grub; echo \"linux init=${0%/bin/*}/init\" > /boot/grub/grub.cfg";
        let disk = tempfile::NamedTempFile::new().unwrap();
        let disks = [disk.path().to_owned()];
        fs::write(disk.path(), [0; 512]).unwrap();
        let grub = root(write);
        let error = format!("{:#}", run(grub.path(), Kind::GrubBios, &disks).0.unwrap_err());
        assert!(error.ends_with("has no boot code in its first sector"), "{error}");
        let mut sector = [0; 512];
        sector[..3].copy_from_slice(&[0xeb, 0x63, 0x90]);
        fs::write(disk.path(), sector).unwrap();
        run(grub.path(), Kind::GrubBios, &disks).0.unwrap();
        let error = run(root("true").path(), Kind::GrubBios, &disks).0.unwrap_err();
        assert!(format!("{error:#}").contains("grub/grub.cfg"), "{error:#}");
    }

    #[test]
    fn a_system_without_a_loader_is_refused_with_what_to_do() {
        for kind in [Kind::None, Kind::NoSwitch] {
            let root = root("true");
            let error = run(root.path(), kind, &[]).0.unwrap_err();
            assert!(error.downcast_ref::<NoLoader>().is_some());
            assert!(error.to_string().ends_with("or use install-to-dir"), "{error}");
        }
    }
}
