//! Recognising: which boot loader a system has, by what NixOS's installers are called and hold.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Kind, Loader};
use crate::store::path::{HASH_LENGTH, STORE_DIR, StorePath};
use crate::sys::inside;

// Real installers are scripts of a few KiB that name a handful of others.
pub(super) const TEXT_LIMIT: u64 = 1 << 20;
const TEXTS_LIMIT: usize = 64;
const DEPTH: usize = 3;

/// Finds out which boot loader `system` has, by reading its installer and the texts that names.
pub fn recognise(root: &Path, system: &StorePath) -> Result<Loader> {
    let Some(wrapper) = wrapper(root, system)? else { return Ok(Loader::of(Kind::NoSwitch)) };
    // One that does not tell what it calls is run all the same.
    let Some(installer) = installer(&wrapper) else { return Ok(Loader::of(Kind::External)) };
    Ok(judge(&installer, &texts(root, &installer)))
}

/// Reads the texts that the installer of `system` consists of, as far as they are found.
pub(super) fn installer_texts(root: &Path, system: &StorePath) -> Result<Vec<Text>> {
    let installer = wrapper(root, system)?.and_then(|wrapper| installer(&wrapper));
    Ok(installer.map_or_else(Vec::new, |installer| texts(root, &installer)))
}

/// Reads what is called to switch to the system, if there is such a thing.
fn wrapper(root: &Path, system: &StorePath) -> Result<Option<String>> {
    let path = PathBuf::from(format!("{system}/bin/switch-to-configuration"));
    match inside::read(root, &path, TEXT_LIMIT) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// A small text file of the store, under the name by which it was found.
pub(super) struct Text {
    pub path: String,
    pub text: String,
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
/// the wrapper (a shell script, or a small binary that tells how it was made), or what the older
/// Perl program has in its place.
fn installer(wrapper: &str) -> Option<String> {
    // In the data of a binary the value may stand on either side of the name; in the text by which nixpkgs'
    // makeBinaryWrapper was called it stands behind.
    let wrapper = match wrapper.find("makeCWrapper ") {
        Some(at) if wrapper.contains('\0') => &wrapper[at..],
        _ => wrapper,
    };
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
    pub(super) fn of(kind: Kind) -> Self {
        Loader {
            kind,
            esp_mount_point: None,
            boot_mount_point: None,
            written: Vec::new(),
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
        let rest = rest.trim().trim_start_matches("Path(");
        let (value, rest) = match rest.chars().next().filter(|c| ['"', '\''].contains(c)) {
            Some(quote) => rest[1..].split_once(quote)?,
            None => (&rest[..rest.find([')', ';', ' ']).unwrap_or(rest.len())], ""),
        };
        // `NAME = "x" == "1"`, where nixpkgs has the builder compare.
        let compared = rest.trim_start().strip_prefix("==").map(str::trim);
        let value = match compared.map(|other| other.trim_matches(['"', '\''])) {
            Some(other) => {
                if value == other {
                    "1"
                } else {
                    "0"
                }
            }
            None => value,
        };
        Some(value.to_owned()).filter(|value| !value.is_empty())
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
    let places = |name: &str| -> Vec<PathBuf> {
        let mut places: Vec<PathBuf> = Vec::new();
        for place in all(name).into_iter().filter(|value| value.starts_with('/')).map(PathBuf::from) {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places
    };
    let (boots, mut esps) = (places("bootPath"), places("efiSysMountPoint"));
    esps.retain(|_| kind.needs_esp());
    let others = [boots.get(1..), esps.get(1..)].into_iter().flatten().flatten();
    Loader {
        kind,
        esp_mount_point: esps.first().cloned(),
        boot_mount_point: boots.first().cloned(),
        written: others.cloned().collect(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

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
            format!(
                "\u{7f}ELF\0{path}\0INSTALL_BOOTLOADER\0/nix/store/{H}-check\0PRE_SWITCH_CHECK\0# makeCWrapper /x \\\n#   --set 'PRE_SWITCH_CHECK' '/nix/store/{H}-check' \\\n#   --set 'INSTALL_BOOTLOADER' '{path}' \\\n"
            ),
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
        let compared = "EFI_SYS_MOUNT_POINT = Path(\"/boot\")\nCAN_TOUCH_EFI_VARIABLES = \"\" == \"1\"\n";
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
                "install-systemd-boot.sh",
                vec![text("systemd-boot", compared)],
                Loader {
                    esp_mount_point: Some("/boot".into()),
                    can_touch_efi_variables: Some(false),
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
        assert_eq!(recognise(root.path(), &system()).unwrap().kind, Kind::External);
    }
}
