//! Boot loaders: which one a system has, having it install itself, and looking whether it did.
//!
//! The system's own `bin/switch-to-configuration boot` does the work, so that every loader NixOS
//! knows keeps what its owner configured. It runs in a [`Fence`] whose only block devices are the
//! target's. Its exit status says little (it may be any old errno, 0 included), so what counts is
//! what it left on the disk.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::progress::{Event, Progress};
use crate::store::path::{HASH_LENGTH, STORE_DIR, StorePath};
use crate::sys::namespace::{self, DeviceNode, Efi, Fence, Network, Preparation};
use crate::sys::{command, file, inside};

/// A system's boot loader, as far as the texts in its store tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Loader {
    pub kind: Kind,
    /// Where it expects the EFI system partition.
    pub esp_mount_point: Option<PathBuf>,
    /// Where it puts kernels and menus, when that is known and another place.
    pub boot_mount_point: Option<PathBuf>,
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
    /// An installer that is not known; it is run, and its status believed.
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

// Real installers are scripts of a few KiB that name a handful of others.
const TEXT_LIMIT: u64 = 1 << 20;
const TEXTS_LIMIT: usize = 64;
const DEPTH: usize = 3;

/// Finds out which boot loader `system` has, by reading its installer and the texts that names.
pub fn recognise(root: &Path, system: &StorePath) -> Result<Loader> {
    let wrapper = PathBuf::from(format!("{system}/bin/switch-to-configuration"));
    let wrapper = match inside::read(root, &wrapper, TEXT_LIMIT) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loader::of(Kind::NoSwitch)),
        Err(error) => return Err(error).with_context(|| format!("reading {}", wrapper.display())),
    };
    let installer = installer(&String::from_utf8_lossy(&wrapper)).with_context(|| {
        format!("finding the boot-loader installer in {system}/bin/switch-to-configuration")
    })?;
    Ok(judge(&installer, &texts(root, &installer)))
}

/// A small text file of the store, under the name by which it was found.
struct Text {
    path: String,
    text: String,
}

/// Reads the texts in the store that `start` names, and those that these name.
fn texts(root: &Path, start: &str) -> Vec<Text> {
    let mut seen = BTreeSet::new();
    let mut texts = Vec::new();
    let mut left: VecDeque<(String, usize)> = store_names(start).into_iter().map(|name| (name, 0)).collect();
    while let Some((path, depth)) = left.pop_front() {
        if texts.len() == TEXTS_LIMIT || !seen.insert(path.clone()) {
            continue;
        }
        let Ok(contents) = inside::read(root, Path::new(&path), TEXT_LIMIT) else { continue };
        // Programs name hundreds of paths that say nothing about the loader.
        let Ok(text) = String::from_utf8(contents) else { continue };
        if text.contains('\0') {
            continue;
        }
        if depth + 1 < DEPTH {
            left.extend(store_names(&text).into_iter().map(|name| (name, depth + 1)));
        }
        texts.push(Text { path, text });
    }
    texts
}

/// Returns the installer that a `switch-to-configuration` calls: the value of `INSTALL_BOOTLOADER` in
/// the wrapper (a shell script, or a small binary that holds the same words), or what the older
/// Perl program has in its place.
fn installer(wrapper: &str) -> Option<String> {
    let shell = wrapper.match_indices("INSTALL_BOOTLOADER").filter_map(|(at, word)| {
        // `NIXOS_INSTALL_BOOTLOADER` is something else.
        let own = !wrapper[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let rest = wrapper[at + word.len()..].trim_start_matches(['=', '\'', '"', ' ', '\\', ',', '\0']);
        let end = rest.find(['\'', '"', '\n', '\\', '\0', ';']).unwrap_or(rest.len());
        Some(rest[..end].trim()).filter(|value| own && !value.is_empty() && !value.starts_with('$'))
    });
    let perl = wrapper.match_indices("installBootLoader").filter_map(|(at, word)| {
        let rest = wrapper[at + word.len()..].trim_start().strip_prefix('=')?.trim_start();
        let rest = rest.strip_prefix(['"', '\''])?;
        Some(&rest[..rest.find(['"', '\''])?]).filter(|value| value.starts_with('/'))
    });
    shell.chain(perl).next().map(str::to_owned)
}

/// Returns the files of the store that a text names, each once, in order.
fn store_names(text: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (at, _) in text.match_indices(STORE_DIR) {
        let rest = &text[at..];
        let part = |c: char| c.is_ascii_alphanumeric() || "+-._?=/".contains(c);
        let end = rest.find(|c| !part(c)).unwrap_or(rest.len());
        let name = rest[..end].trim_end_matches(['.', '/']);
        let long_enough = name.len() > STORE_DIR.len() + 1 + HASH_LENGTH;
        if long_enough
            && StorePath::containing(Path::new(name)).is_some()
            && !names.iter().any(|known| known == name)
        {
            names.push(name.to_owned());
        }
    }
    names
}

/// Decides by what NixOS's installers (and their settings) are called and hold.
fn judge(installer: &str, texts: &[Text]) -> Loader {
    let named =
        |marker: &str| installer.contains(marker) || texts.iter().any(|text| text.path.contains(marker));
    let holds = |marker: &str| texts.iter().any(|text| text.text.contains(marker));
    let settings: Vec<&str> =
        texts.iter().map(|text| text.text.as_str()).filter(|text| text.contains("<attr name=")).collect();
    let first = texts.first().map_or("", |text| text.text.as_str());

    // Wrapped loaders first: lanzaboote's hook names systemd-boot's files too.
    if named("lzbt") || holds("/bin/lzbt") || holds("lzbt-systemd") {
        Loader { esp_mount_point: lanzaboote_esp(texts), ..Loader::of(Kind::Lanzaboote) }
    } else if !settings.is_empty() && (named("grub") || holds("install-grub")) {
        grub(&settings)
    } else if named("limine") {
        limine(texts)
    } else if named("extlinux-conf-builder") || holds("extlinux-conf-builder") {
        Loader::of(Kind::Extlinux)
    } else if named("systemd-boot") || holds("systemd-boot-builder") {
        systemd_boot(texts)
    } else if is_none(installer, first) {
        Loader::of(Kind::None)
    } else {
        Loader::of(Kind::External)
    }
}

/// Tells whether the installer is what NixOS puts where no loader is enabled.
fn is_none(installer: &str, text: &str) -> bool {
    let program = installer.split_whitespace().next().unwrap_or_default();
    program.rsplit('/').next() == Some("true")
        || program.is_empty()
        || text.contains("do not know how to make this configuration bootable")
}

impl Loader {
    fn of(kind: Kind) -> Self {
        Loader {
            kind,
            esp_mount_point: None,
            boot_mount_point: None,
            baked_devices: Vec::new(),
            can_touch_efi_variables: None,
        }
    }
}

fn systemd_boot(texts: &[Text]) -> Loader {
    let assigned = |names: &[&str]| {
        texts.iter().find_map(|text| names.iter().find_map(|name| assignment(&text.text, name)))
    };
    let option = texts.iter().find_map(|text| {
        let rest = text.text.split_once("--esp-path=")?.1;
        Some(rest[..rest.find(['"', '\'', ' ', '\n']).unwrap_or(rest.len())].to_owned())
    });
    let path = |text: String| Some(PathBuf::from(text)).filter(|path| path.is_absolute());
    let esp = assigned(&["EFI_SYS_MOUNT_POINT", "efiSysMountPoint", "esp"])
        .and_then(path)
        .or(option.and_then(path));
    let boot = assigned(&["BOOT_MOUNT_POINT"]).and_then(path).filter(|boot| Some(boot) != esp.as_ref());
    let touch = assigned(&["CAN_TOUCH_EFI_VARIABLES"]).map(|value| value == "1");
    Loader {
        esp_mount_point: esp,
        boot_mount_point: boot,
        can_touch_efi_variables: touch,
        ..Loader::of(Kind::SystemdBoot)
    }
}

/// Returns the text that `name` is set to: `NAME = "x"`, `NAME = Path("x")`, `name=x`.
fn assignment(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let rest = line.trim_start().strip_prefix(name)?.trim_start();
        // `NAME: str = "x"`.
        let rest = match rest.strip_prefix(':') {
            Some(typed) => typed.split_once('=')?.1,
            None => rest.strip_prefix('=')?,
        };
        let rest = rest.trim().trim_start_matches("Path(").trim_start_matches(['"', '\'']);
        let end = rest.find(['"', '\'', ')', ';', ' ']).unwrap_or(rest.len());
        Some(rest[..end].to_owned()).filter(|value| !value.is_empty())
    })
}

/// Reads the XML that NixOS gives to its GRUB installer, one document for each mirrored boot.
fn grub(settings: &[&str]) -> Loader {
    let all = |name: &str| settings.iter().flat_map(move |text| attribute(text, name)).collect::<Vec<_>>();
    let is_set = |name: &str| all(name).iter().any(|value| !value.is_empty() && value != "false");
    let mut devices: Vec<PathBuf> = Vec::new();
    for device in all("devices").into_iter().filter(|device| device != "nodev" && device.starts_with('/')) {
        if !devices.iter().any(|known| known.as_os_str() == device.as_str()) {
            devices.push(device.into());
        }
    }
    let kind = match (!devices.is_empty(), is_set("grubEfi") || is_set("grubTargetEfi")) {
        (true, true) => Kind::GrubBoth,
        (true, false) => Kind::GrubBios,
        (false, true) => Kind::GrubEfi,
        (false, false) => Kind::GrubMenu,
    };
    let first = |name: &str| all(name).into_iter().find(|value| value.starts_with('/')).map(PathBuf::from);
    Loader {
        kind,
        esp_mount_point: first("efiSysMountPoint").filter(|_| kind.needs_esp()),
        boot_mount_point: first("bootPath"),
        baked_devices: devices,
        can_touch_efi_variables: all("canTouchEfiVariables").first().map(|value| value == "true"),
    }
}

/// Returns the values of an attribute in the XML that Nix writes: `<string value="…"/>`, bools and
/// lists of them.
fn attribute(xml: &str, name: &str) -> Vec<String> {
    let Some((_, rest)) = xml.split_once(&format!("<attr name=\"{name}\">")) else { return Vec::new() };
    let inner = rest.split_once("</attr>").map_or("", |(inner, _)| inner);
    let values = inner.split("value=\"").skip(1).filter_map(|rest| rest.split_once('"'));
    values.map(|(value, _)| unescape(value)).collect()
}

fn unescape(xml: &str) -> String {
    xml.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&")
}

fn lanzaboote_esp(texts: &[Text]) -> Option<PathBuf> {
    texts.iter().find_map(|text| {
        // The ESP stands before the generations, with or without quotes and a line's continuation.
        let before = text.text.split_once("/nix/var/nix/profiles/system-")?.0;
        let word = before.split_whitespace().rev().find(|word| *word != "\\")?;
        Some(PathBuf::from(word.trim_matches(['"', '\'']))).filter(|path| path.is_absolute())
    })
}

fn limine(texts: &[Text]) -> Loader {
    let json = texts.iter().find_map(|text| {
        let value: serde_json::Value = serde_json::from_str(&text.text).ok()?;
        value.get("efiMountPoint").is_some().then_some(value)
    });
    let Some(json) = json else { return Loader::of(Kind::Limine) };
    let text = |name: &str| json.get(name).and_then(|value| value.as_str());
    let on = |name: &str| json.get(name).and_then(|value| value.as_bool());
    let bios = on("biosSupport").unwrap_or(false);
    Loader {
        esp_mount_point: text("efiMountPoint")
            .map(PathBuf::from)
            .filter(|_| on("efiSupport").unwrap_or(true)),
        baked_devices: text("biosDevice")
            .filter(|device| bios && device.starts_with('/'))
            .map(PathBuf::from)
            .into_iter()
            .collect(),
        can_touch_efi_variables: on("canTouchEfiVariables"),
        ..Loader::of(Kind::Limine)
    }
}

/// A disk of the target and its partitions, as the kernel here names them.
#[derive(Clone, Debug)]
pub struct TargetDisk {
    pub name: String,
    pub rdev: u64,
    pub partitions: Vec<TargetPartition>,
}

#[derive(Clone, Debug)]
pub struct TargetPartition {
    pub number: u32,
    pub name: String,
    pub rdev: u64,
    /// Names as udev would link them, such as `disk/by-label/nixos`; see [`link_name`].
    pub links: Vec<String>,
}

/// Returns udev's link for a label, UUID, partition label or partition UUID: `by` is `label`, `uuid`,
/// `partlabel` or `partuuid`.
pub fn link_name(by: &str, value: &str) -> String {
    let mut name = format!("disk/by-{by}/");
    for c in value.chars() {
        if c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c) || !c.is_ascii() {
            name.push(c);
        } else {
            name.push_str(&format!("\\x{:02x}", c as u32));
        }
    }
    name
}

/// Decides under which names the installer finds the target's disks and partitions.
///
/// A name from the configuration always means the target, whatever the machine here calls so:
/// GRUB configured for `/dev/vda` and installed onto `/dev/vdb` must find `/dev/vdb` there. The first
/// baked disk is the first target, and so on; those left over are the first as well.
pub fn device_nodes(disks: &[TargetDisk], baked: &[PathBuf]) -> Vec<DeviceNode> {
    let mut baked_disks: Vec<String> = Vec::new();
    for device in baked {
        let Some(name) = device.strip_prefix("/dev").ok().and_then(Path::to_str) else { continue };
        let (disk, _) = split_partition(name);
        if !baked_disks.contains(&disk) {
            baked_disks.push(disk);
        }
    }
    let owner = |index: usize| if index < disks.len() { index } else { 0 };
    let mut taken = BTreeSet::new();
    let mut claimed: Vec<Vec<String>> = vec![Vec::new(); disks.len()];
    for (index, name) in baked_disks.into_iter().enumerate() {
        if let Some(names) = claimed.get_mut(owner(index)) {
            names.push(name);
        }
    }
    // Names from the configuration first, then the kernel's where they are still free.
    let mut nodes: Vec<(u64, Vec<String>)> = Vec::new();
    for (disk, names) in disks.iter().zip(&claimed) {
        nodes.push((disk.rdev, names.clone()));
        for part in &disk.partitions {
            let names = names.iter().map(|name| partition_name(name, part.number)).collect();
            nodes.push((part.rdev, names));
        }
    }
    taken.extend(nodes.iter().flat_map(|(_, names)| names.iter().cloned()));
    let kernel = disks.iter().flat_map(|disk| {
        let parts = disk.partitions.iter().map(|part| (&part.name, part.links.as_slice()));
        std::iter::once((&disk.name, [].as_slice())).chain(parts)
    });
    for ((_, names), (name, links)) in nodes.iter_mut().zip(kernel) {
        names.retain({
            let mut seen = BTreeSet::new();
            move |name| seen.insert(name.clone())
        });
        if names.contains(name) || taken.insert(name.clone()) {
            names.retain(|known| known != name);
            // What /proc/self/mountinfo shows stands first: links lead to it.
            names.insert(0, name.clone());
        } else if let Some(plain) = names.iter().position(|name| !name.contains('/')) {
            names.swap(0, plain);
        } else {
            // Links need a node to lead to; its name matters to nobody.
            names.insert(0, format!("{name}.target"));
        }
        names.extend(links.iter().cloned());
    }
    nodes.into_iter().map(|(rdev, names)| DeviceNode { names, rdev }).collect()
}

/// Splits `vda1`, `nvme0n1p2` or `disk/by-id/x-part3` into disk and partition.
fn split_partition(name: &str) -> (String, Option<u32>) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name[stem.len()..].parse().ok();
    let disk = if name.contains('/') {
        stem.strip_suffix("-part")
    } else if ["sd", "vd", "hd", "xvd"].iter().any(|prefix| name.starts_with(prefix)) {
        Some(stem)
    } else {
        stem.strip_suffix('p').filter(|disk| disk.ends_with(|c: char| c.is_ascii_digit()))
    };
    match (disk, number) {
        (Some(disk), Some(number)) => (disk.to_owned(), Some(number)),
        _ => (name.to_owned(), None),
    }
}

fn partition_name(disk: &str, number: u32) -> String {
    if disk.contains('/') {
        format!("{disk}-part{number}")
    } else if disk.ends_with(|c: char| c.is_ascii_digit()) {
        format!("{disk}p{number}")
    } else {
        format!("{disk}{number}")
    }
}

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
    look(install).context("looking for the boot loader that was installed")?;
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

/// Judges by what is on the disk.
fn look(install: &Install) -> Result<()> {
    let Install { root, system, loader, .. } = install;
    let esp = install.esp.or(loader.esp_mount_point.as_deref());
    let esp = esp.map_or_else(|| root.join("boot"), |esp| below(root, esp));
    let boot = loader.boot_mount_point.as_deref().map_or_else(|| esp.clone(), |boot| below(root, boot));
    let init = format!("init={system}/init");
    match loader.kind {
        Kind::SystemdBoot => look_for_entry(&esp, &boot, &init),
        Kind::Lanzaboote => look_for_image(&esp, &init),
        Kind::GrubBios | Kind::GrubEfi | Kind::GrubBoth | Kind::GrubMenu => {
            let boot = loader.boot_mount_point.as_deref().unwrap_or(Path::new("/boot"));
            look_for_words(&below(root, boot).join("grub/grub.cfg"), &init)?;
            if loader.kind.needs_bios_partition() {
                install.disks.iter().try_for_each(|disk| look_for_boot_code(disk))?;
            }
            Ok(())
        }
        Kind::Limine => {
            let places = [esp.join("limine/limine.conf"), root.join("boot/limine/limine.conf")];
            let place = places.iter().find(|path| path.exists()).unwrap_or(&places[0]);
            look_for_words(place, &system.to_string())
        }
        Kind::Extlinux => look_for_words(&root.join("boot/extlinux/extlinux.conf"), &init),
        Kind::External | Kind::None | Kind::NoSwitch => Ok(()),
    }
}

fn look_for_entry(esp: &Path, boot: &Path, init: &str) -> Result<()> {
    let conf = esp.join("loader/loader.conf");
    let text = fs::read_to_string(&conf).with_context(|| format!("reading {}", conf.display()))?;
    let Some(default) = setting(&text, "default") else {
        bail!(
            "{} names no default entry; the system must be the newest generation of its profile",
            conf.display()
        );
    };
    let entry = boot.join("loader/entries").join(default);
    let text = fs::read_to_string(&entry)
        .with_context(|| format!("reading the default entry {}", entry.display()))?;
    if !setting(&text, "options").is_some_and(|options| options.split_whitespace().any(|word| word == init)) {
        bail!("the default entry {} does not have {init}", entry.display());
    }
    for name in ["linux", "initrd"] {
        let Some(path) = setting(&text, name) else { continue };
        let file = below(boot, Path::new(path));
        if !file.metadata().is_ok_and(|meta| meta.len() > 0) {
            bail!("the default entry {} wants {path}, which is not there", entry.display());
        }
    }
    Ok(())
}

fn setting<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (word, rest) = line.trim().split_once(char::is_whitespace)?;
        (word == name).then(|| rest.trim())
    })
}

fn look_for_image(esp: &Path, init: &str) -> Result<()> {
    let dir = esp.join("EFI/Linux");
    let entries = fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("reading {}", dir.display()))?.path();
        let image = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        // The command line lies in the image as plain text.
        if image.windows(init.len()).any(|part| part == init.as_bytes()) {
            return Ok(());
        }
    }
    bail!("no image in {} has {init}", dir.display())
}

fn look_for_words(path: &Path, words: &str) -> Result<()> {
    let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    if !String::from_utf8_lossy(&text).contains(words) {
        bail!("{} does not have {words}", path.display());
    }
    Ok(())
}

// The part of the first sector that is code: a disk's signature and MBR follow.
const BOOT_CODE: usize = 440;

fn look_for_boot_code(disk: &Path) -> Result<()> {
    let mut code = [0; BOOT_CODE];
    let disk_name = disk.display();
    File::open(disk)
        .and_then(|mut disk| disk.read_exact(&mut code))
        .with_context(|| format!("reading {disk_name}"))?;
    if code.iter().all(|&byte| byte == 0) {
        bail!("{disk_name} has no boot code in its first sector");
    }
    Ok(())
}

/// Returns what the UEFI specification calls the machine: `X64` in `BOOTX64.EFI`.
fn architecture(root: &Path, system: &StorePath) -> Result<&'static str> {
    let path = PathBuf::from(format!("{system}/system"));
    let text =
        inside::read(root, &path, TEXT_LIMIT).with_context(|| format!("reading {}", path.display()))?;
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

/// Joins an absolute path of the target to where its root is.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::namespace::{Output, testing};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Mutex;

    const H: &str = "0c5mzqyfjhyxv5bmpanmc7dzl5cfbhzj";

    fn system() -> StorePath {
        StorePath::from_base_name(&format!("{H}-nixos-system-box-25.05")).unwrap()
    }

    #[test]
    fn the_installer_is_found_in_every_form_of_wrapper() {
        let path = format!("/nix/store/{H}-install-systemd-boot.sh");
        for wrapper in [
            format!(
                "#!/bin/sh\nexport OUT='/x'\nexport INSTALL_BOOTLOADER='{path}'\nexport SYSTEMD='/s'\nexec x \"$@\"\n"
            ),
            format!("export INSTALL_BOOTLOADER={path}\n"),
            format!("\u{7f}ELF\0INSTALL_BOOTLOADER\0{path}\0SYSTEMD\0"),
            format!("# makeCWrapper x \\\n#   --set 'INSTALL_BOOTLOADER' '{path}' \\\n"),
            format!("if [ $NIXOS_INSTALL_BOOTLOADER = 1 ]; then :; fi\nINSTALL_BOOTLOADER=\"{path}\"\n"),
            format!("#! perl\nmy $installBootLoader = \"{path}\";\nsystem(\"$installBootLoader $out\")\n"),
        ] {
            assert_eq!(installer(&wrapper).as_deref(), Some(path.as_str()), "{wrapper}");
        }
        let builder = format!("/nix/store/{H}-extlinux-conf-builder.sh -g 20 -t 5 -c");
        assert_eq!(installer(&format!("export INSTALL_BOOTLOADER='{builder}'\n")), Some(builder));
        assert_eq!(installer("export NIXOS_INSTALL_BOOTLOADER='1'\n"), None);
        assert_eq!(installer(""), None);
    }

    #[test]
    fn store_names_are_found_in_any_text() {
        let text = format!(
            "a=/nix/store/{H}-x/bin/y; '/nix/store/{H}-grub-config.xml' /nix/store/short /nix/store/{H}-x/bin/y \"/nix/store/{H}-dot.\" /nix/store"
        );
        let expected = [format!("{H}-x/bin/y"), format!("{H}-grub-config.xml"), format!("{H}-dot")];
        assert_eq!(store_names(&text), expected.map(|name| format!("/nix/store/{name}")));
    }

    fn text(name: &str, text: &str) -> Text {
        Text { path: format!("/nix/store/{H}-{name}"), text: text.to_owned() }
    }

    fn xml(devices: &[&str], efi: &str, touch: bool) -> String {
        let devices: String = devices.iter().map(|name| format!("<string value=\"{name}\" />\n")).collect();
        format!(
            "<?xml version='1.0' encoding='utf-8'?>\n<expr>\n  <attrs>\n    <attr name=\"bootPath\">\n      <string value=\"/boot\" />\n    </attr>\n\
             <attr name=\"canTouchEfiVariables\"><bool value=\"{touch}\" /></attr>\n<attr name=\"devices\">\n<list>\n{devices}</list>\n</attr>\n\
             <attr name=\"efiSysMountPoint\"><string value=\"/boot/efi\" /></attr>\n<attr name=\"extraEntries\"><string value=\"a &lt;b&gt; &quot;\" /></attr>\n\
             <attr name=\"grubEfi\"><string value=\"{efi}\" /></attr>\n  </attrs>\n</expr>\n"
        )
    }

    #[test]
    fn each_loader_is_recognised_by_its_installer() {
        let boot = |kind| Loader { boot_mount_point: Some("/boot".into()), ..Loader::of(kind) };
        let builder = "#! /nix/store/x/bin/python3 -B\nEFI_SYS_MOUNT_POINT = Path(\"/efi\")\nBOOT_MOUNT_POINT = Path(\"/boot\")\n\
                       CAN_TOUCH_EFI_VARIABLES = \"1\"\n";
        let older = "EFI_SYS_MOUNT_POINT = \"/boot\"\nBOOT_MOUNT_POINT: str = \"/boot\"\nCAN_TOUCH_EFI_VARIABLES = \"\"\n";
        let oldest = "subprocess.check_call([\"/nix/store/s/bin/bootctl\", \"--esp-path=/boot\"] + flags + [\"install\"])";
        let limine_json = r#"{"efiMountPoint":"/boot","efiSupport":true,"biosSupport":true,"biosDevice":"/dev/sda","canTouchEfiVariables":false}"#;
        let lzbt = "#!/bin/sh\n/nix/store/l-lanzatool/bin/lzbt install \\\n --systemd /nix/store/s-systemd \\\n --configuration-limit 0 \\\n \
                    /boot \\\n /nix/var/nix/profiles/system-*-link\n";
        for (name, texts, expected) in [
            (
                "install-systemd-boot.sh",
                vec![
                    text("install-systemd-boot.sh", "x/bin/systemd-boot \"$@\""),
                    text("systemd-boot/bin/systemd-boot", builder),
                ],
                Loader {
                    esp_mount_point: Some("/efi".into()),
                    can_touch_efi_variables: Some(true),
                    ..boot(Kind::SystemdBoot)
                },
            ),
            (
                "install-systemd-boot.sh",
                vec![text("systemd-boot", older)],
                Loader {
                    esp_mount_point: Some("/boot".into()),
                    can_touch_efi_variables: None,
                    ..Loader::of(Kind::SystemdBoot)
                },
            ),
            (
                "systemd-boot-builder.py",
                vec![text("systemd-boot-builder.py", oldest)],
                Loader { esp_mount_point: Some("/boot".into()), ..Loader::of(Kind::SystemdBoot) },
            ),
            (
                "install-grub.sh",
                vec![
                    text("install-grub.sh", "perl install-grub.pl"),
                    text("grub-config.xml", &xml(&["/dev/vda"], "", false)),
                ],
                Loader {
                    baked_devices: vec!["/dev/vda".into()],
                    can_touch_efi_variables: Some(false),
                    ..boot(Kind::GrubBios)
                },
            ),
            (
                "install-grub.sh",
                vec![text("grub-config.xml", &xml(&["nodev"], "/nix/store/grub", true))],
                Loader {
                    esp_mount_point: Some("/boot/efi".into()),
                    can_touch_efi_variables: Some(true),
                    ..boot(Kind::GrubEfi)
                },
            ),
            (
                "install-grub.sh",
                vec![
                    text("grub-config.xml", &xml(&["/dev/sda", "/dev/disk/by-id/ata-x"], "g", true)),
                    text("grub-config.xml", &xml(&["/dev/sda", "/dev/sdb"], "g", true)),
                ],
                Loader {
                    esp_mount_point: Some("/boot/efi".into()),
                    baked_devices: ["/dev/sda", "/dev/disk/by-id/ata-x", "/dev/sdb"]
                        .map(PathBuf::from)
                        .to_vec(),
                    can_touch_efi_variables: Some(true),
                    ..boot(Kind::GrubBoth)
                },
            ),
            (
                "install-grub.sh",
                vec![text("grub-config.xml", &xml(&["nodev"], "", false))],
                Loader { can_touch_efi_variables: Some(false), ..boot(Kind::GrubMenu) },
            ),
            (
                "install-lanzaboote",
                vec![text("install-lanzaboote", lzbt), text("systemd-boot-loader-config", "timeout 5\n")],
                Loader { esp_mount_point: Some("/boot".into()), ..Loader::of(Kind::Lanzaboote) },
            ),
            (
                "limine-install.py",
                vec![text("limine-install.py", "#!python"), text("limine-install.json", limine_json)],
                Loader {
                    esp_mount_point: Some("/boot".into()),
                    baked_devices: vec!["/dev/sda".into()],
                    can_touch_efi_variables: Some(false),
                    ..Loader::of(Kind::Limine)
                },
            ),
            (
                "extlinux-conf-builder.sh -g 20",
                vec![text("extlinux-conf-builder.sh", "#! bash")],
                Loader::of(Kind::Extlinux),
            ),
            ("coreutils-9.5/bin/true", vec![], Loader::of(Kind::None)),
            (
                "no-bootloader",
                vec![text(
                    "no-bootloader",
                    "echo 'Warning: do not know how to make this configuration bootable; please enable a boot loader.'",
                )],
                Loader::of(Kind::None),
            ),
            ("refind-install.py", vec![text("refind-install.py", "#!python\n")], Loader::of(Kind::External)),
        ] {
            assert_eq!(judge(&format!("/nix/store/{H}-{name}"), &texts), expected, "{name}");
        }
    }

    #[test]
    fn texts_are_followed_within_the_root_and_within_bounds() {
        let root = tempfile::tempdir().unwrap();
        let store = root.path().join("nix/store");
        let write = |name: &str, text: &str| {
            let path = store.join(format!("{H}-{name}"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(recognise(root.path(), &system()).unwrap().kind, Kind::NoSwitch);
        let toplevel = "nixos-system-box-25.05";
        write(
            &format!("{toplevel}/bin/real"),
            &format!("export INSTALL_BOOTLOADER='/nix/store/{H}-install.sh'\n"),
        );
        let link = store.join(format!("{H}-{toplevel}/bin/switch-to-configuration"));
        std::os::unix::fs::symlink(format!("/nix/store/{H}-{toplevel}/bin/real"), link).unwrap();
        write(
            "install.sh",
            &format!(
                "/nix/store/{H}-big /nix/store/{H}-none /nix/store/{H}-install.sh /nix/store/{H}-builder/bin/systemd-boot"
            ),
        );
        write("big", &"x".repeat((TEXT_LIMIT + 1) as usize));
        write("builder/bin/systemd-boot", "EFI_SYS_MOUNT_POINT = \"/boot\"\n");
        let loader = recognise(root.path(), &system()).unwrap();
        assert_eq!((loader.kind, loader.esp_mount_point), (Kind::SystemdBoot, Some("/boot".into())));
        write(&format!("{toplevel}/bin/real"), "exec true\n");
        let error = recognise(root.path(), &system()).unwrap_err().to_string();
        assert!(error.starts_with("finding the boot-loader installer in /nix/store/"), "{error}");
    }

    fn disk(name: &str, rdev: u64) -> TargetDisk {
        let partition = |number| TargetPartition {
            number,
            name: partition_name(name, number),
            rdev: rdev + u64::from(number),
            links: if number == 2 { vec![link_name("label", "my root")] } else { Vec::new() },
        };
        TargetDisk { name: name.to_owned(), rdev, partitions: [1, 2].map(partition).to_vec() }
    }

    #[test]
    fn baked_names_mean_the_target_whatever_the_machine_calls_so() {
        let baked = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        for (disks, names, expected) in [
            (vec![disk("vdb", 10)], vec![], "10 vdb|11 vdb1|12 vdb2 disk/by-label/my\\x20root"),
            (
                vec![disk("vdb", 10)],
                vec!["/dev/vda"],
                "10 vdb vda|11 vdb1 vda1|12 vdb2 vda2 disk/by-label/my\\x20root",
            ),
            (vec![disk("vda", 10)], vec!["/dev/vda"], "10 vda|11 vda1|12 vda2 disk/by-label/my\\x20root"),
            (
                vec![disk("nvme1n1", 10)],
                vec!["/dev/nvme0n1", "/dev/sda"],
                "10 nvme1n1 nvme0n1 sda|11 nvme1n1p1 nvme0n1p1 sda1|12 nvme1n1p2 nvme0n1p2 sda2 disk/by-label/my\\x20root",
            ),
            (
                vec![disk("sdb", 10)],
                vec!["/dev/disk/by-id/ata-x", "nodev", "/dev/sda1"],
                "10 sdb disk/by-id/ata-x sda|11 sdb1 disk/by-id/ata-x-part1 sda1|\
                 12 sdb2 disk/by-id/ata-x-part2 sda2 disk/by-label/my\\x20root",
            ),
            // Two disks that have changed places.
            (
                vec![disk("sda", 10), disk("sdb", 20)],
                vec!["/dev/sdb", "/dev/sda"],
                "10 sdb|11 sdb1|12 sdb2 disk/by-label/my\\x20root|20 sda|21 sda1|22 sda2 disk/by-label/my\\x20root",
            ),
            (
                vec![disk("sda", 10), disk("sdb", 20)],
                vec!["/dev/sdb"],
                "10 sda sdb|11 sda1 sdb1|12 sda2 sdb2 disk/by-label/my\\x20root|\
                 20 sdb.target|21 sdb1.target|22 sdb2.target disk/by-label/my\\x20root",
            ),
        ] {
            let nodes = device_nodes(&disks, &baked(&names));
            let shown: Vec<String> =
                nodes.iter().map(|node| format!("{} {}", node.rdev, node.names.join(" "))).collect();
            let shown = shown.join("|");
            assert_eq!(shown, expected, "{names:?}");
        }
    }

    #[test]
    fn partitions_are_told_from_disks() {
        for (name, disk, number) in [
            ("vda", "vda", None),
            ("vda12", "vda", Some(12)),
            ("nvme0n1", "nvme0n1", None),
            ("nvme0n1p3", "nvme0n1", Some(3)),
            ("mmcblk0p1", "mmcblk0", Some(1)),
            ("loop7", "loop7", None),
            ("loop7p2", "loop7", Some(2)),
            ("md127", "md127", None),
            ("disk/by-id/wwn-0x5000", "disk/by-id/wwn-0x5000", None),
            ("disk/by-id/wwn-0x5000-part2", "disk/by-id/wwn-0x5000", Some(2)),
        ] {
            assert_eq!(split_partition(name), (disk.to_owned(), number), "{name}");
        }
    }

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Progress for Heard {
        fn event(&self, event: Event) {
            if let Event::Output { line, .. } = event {
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
            (format!("{SYSTEMD_BOOT} echo timeout 5 > /boot/loader/loader.conf"), "names no default entry"),
            (format!("{SYSTEMD_BOOT} b rm {conf}"), "reading the default entry"),
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
