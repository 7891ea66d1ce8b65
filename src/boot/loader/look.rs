//! Judging a boot loader by what its installer left: what would be started, and whether that is the system.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::entries::{self, Entry};
use super::{Install, Kind, below};
use crate::progress::{Event, Progress};

/// Fails where the boot loader is not there, or would start something else.
pub(super) fn look(install: &Install, progress: &dyn Progress) -> Result<()> {
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
        Kind::External => {
            look_anywhere(&[esp, root.join("boot")], &system.to_string(), progress);
            Ok(())
        }
        Kind::None | Kind::NoSwitch => Ok(()),
    }
}

/// Looks at the entry that systemd-boot would start, which may lie on the ESP or on the boot partition beside it.
fn look_for_entry(esp: &Path, boot: &Path, init: &str) -> Result<()> {
    let conf = esp.join("loader/loader.conf");
    let conf_text = fs::read_to_string(&conf).with_context(|| format!("reading {}", conf.display()))?;
    let mut places = vec![esp];
    places.extend((boot != esp).then_some(boot));
    let mut all = Vec::new();
    for place in &places {
        let found = read_entries(&place.join("loader/entries"))?;
        all.extend(found.into_iter().map(|entry| (*place, entry)));
    }
    let (homes, entries): (Vec<&Path>, Vec<Entry>) = all.into_iter().unzip();
    let Some(entry) = entries::chosen(&conf_text, &entries) else {
        bail!("there is no boot entry in {}", boot.join("loader/entries").display());
    };
    let at = entries.iter().position(|other| std::ptr::eq(other, entry)).expect("it is one of them");
    let (home, shown) = (homes[at], homes[at].join("loader/entries").join(&entry.file));
    let shown = shown.display();
    if !entry.values("options").any(|options| options.split_whitespace().any(|word| word == init)) {
        bail!(
            "{} starts {shown}, which does not have {init}; the system must be the newest generation of its profile",
            conf.display()
        );
    }
    for path in ["linux", "initrd"].iter().flat_map(|name| entry.values(name)) {
        if !below(home, Path::new(path)).metadata().is_ok_and(|meta| meta.len() > 0) {
            bail!("the default entry {shown} wants {path}, which is not there");
        }
    }
    Ok(())
}

fn read_entries(dir: &Path) -> Result<Vec<Entry>> {
    let reading = || format!("reading {}", dir.display());
    let found = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.with_context(reading)?,
    };
    let mut entries = Vec::new();
    for file in found {
        let name = file.with_context(reading)?.file_name();
        let Some(name) = name.to_str().filter(|name| name.to_ascii_lowercase().ends_with(".conf")) else {
            continue;
        };
        let text = fs::read(dir.join(name)).with_context(reading)?;
        entries.push(Entry::new(name, String::from_utf8_lossy(&text).into_owned()));
    }
    Ok(entries)
}

fn look_for_image(esp: &Path, init: &str) -> Result<()> {
    let dir = esp.join("EFI/Linux");
    let entries = fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("reading {}", dir.display()))?.path();
        // The command line lies in the image as plain text.
        if holds(&path, init)? {
            return Ok(());
        }
    }
    bail!("no image in {} has {init}", dir.display())
}

fn look_for_words(path: &Path, words: &str) -> Result<()> {
    if !holds(path, words)? {
        bail!("{} does not have {words}", path.display());
    }
    Ok(())
}

fn holds(path: &Path, words: &str) -> Result<bool> {
    let contents = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(contents.windows(words.len()).any(|part| part == words.as_bytes()))
}

// What a loader is told is small; kernels and initrds are not read.
const TOLD: u64 = 4 << 20;
const DEPTH: usize = 6;

/// Looks whether any file in these directories names the system, and says so if none does: of a loader that is not
/// known nothing else can be judged.
fn look_anywhere(places: &[PathBuf], system: &str, progress: &dyn Progress) {
    if places.iter().any(|place| is_named_below(place, system, DEPTH)) {
        return;
    }
    let text = "this boot loader is not known here, and of what its installer left nothing names the system; \
                see whether it boots before you rely on it";
    progress.event(Event::Warning { text: text.to_owned() });
}

fn is_named_below(dir: &Path, system: &str, depth: usize) -> bool {
    let Ok(entries) = fs::read_dir(dir) else { return false };
    entries.filter_map(Result::ok).any(|entry| {
        let path = entry.path();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => depth > 0 && is_named_below(&path, system, depth - 1),
            Ok(meta) if meta.is_file() && meta.len() <= TOLD => holds(&path, system).unwrap_or(false),
            _ => false,
        }
    })
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
