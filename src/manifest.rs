//! What the NixOS module wrote about the system: `$toplevel/install-via/manifest.json`.
//!
//! A system without the module has no manifest; then the layout is derived and the tools are looked
//! for in the system's own `sw`. Every field is told in `docs/manifest.md`.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::boot::loader::{Kind, Loader};
use crate::disk::layout::{self, Layout, LayoutError};
use crate::store::path::StorePath;
use crate::sys::inside;

/// Where the manifest is in a toplevel.
pub const PLACE: &str = "install-via/manifest.json";

/// The only version there is.
const VERSION: u64 = 1;

// Real ones are a few KiB.
const LIMIT: u64 = 1 << 20;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    /// How the system's disk, partitions and file systems are found at boot.
    pub identity: Option<Identity>,
    pub boot_loader: Option<BootLoader>,
    pub esp_mount_point: Option<PathBuf>,
    /// The disks that GRUB writes boot code to, or `nodev`.
    pub grub_devices: Vec<String>,
    pub can_touch_efi_variables: Option<bool>,
    /// The devices that the initrd opens, by the names it gives them.
    pub luks_devices: BTreeMap<String, PathBuf>,
    /// The layout of the system's disk; absent where it is to be derived.
    ///
    /// One that this version cannot make is no mistake of the manifest: the system can be built with
    /// it, installed into directories, and onto a disk with another layout.
    pub layout: Option<Result<Layout, LayoutError>>,
    /// Why there is no layout, where the system's configuration describes its disks in another way than ours.
    pub layout_reason: Option<String>,
    /// Programs by name, such as `mkfs.ext4`.
    pub tools: BTreeMap<String, PathBuf>,
    /// The OpenSSH client.
    pub ssh: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identity {
    /// Nothing is named: the root is found on the disk that was booted.
    GptAuto,
    /// By the labels of file systems.
    Label,
    /// By the names of partitions.
    Partlabel,
    /// By what the configuration names already, whatever that is.
    Preserve,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootLoader {
    SystemdBoot,
    Grub,
    Lanzaboote,
    Limine,
    Extlinux,
    Other,
    None,
}

/// A text that is no manifest.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest is not whole JSON: {0}")]
    Json(String),
    #[error("the manifest is not a JSON object")]
    NoObject,
    #[error("the manifest does not say its version, a whole number such as {VERSION}")]
    NoVersion,
    #[error(
        "the manifest has version {0} and this program reads version {VERSION}; \
         use the program that the system itself carries"
    )]
    Version(u64),
    #[error("the manifest has a field {0:?}, which version {VERSION} does not know")]
    Unknown(String),
    #[error("the manifest's {field}: {what}")]
    Type { field: &'static str, what: String },
    #[error("the manifest's {field} is {value:?}, which is not {wanted}")]
    Value { field: String, value: String, wanted: &'static str },
    #[error("in the manifest, {0}")]
    Layout(#[from] LayoutError),
}

/// Parses a manifest. A version we do not know is refused before anything else is looked at.
pub fn parse(text: &str) -> Result<Manifest, ManifestError> {
    let value = serde_json::from_str(text).map_err(|error| ManifestError::Json(error.to_string()))?;
    let Value::Object(mut fields) = value else { return Err(ManifestError::NoObject) };
    match fields.remove("version").as_ref().and_then(Value::as_u64) {
        Some(VERSION) => {}
        Some(other) => return Err(ManifestError::Version(other)),
        None => return Err(ManifestError::NoVersion),
    }
    let layout: Option<Value> = take(&mut fields, "layout")?;
    let manifest = Manifest {
        identity: take(&mut fields, "identity")?,
        boot_loader: take(&mut fields, "bootLoader")?,
        esp_mount_point: take(&mut fields, "espMountPoint")?,
        grub_devices: take(&mut fields, "grubDevices")?.unwrap_or_default(),
        can_touch_efi_variables: take(&mut fields, "canTouchEfiVariables")?,
        luks_devices: take(&mut fields, "luksDevices")?.unwrap_or_default(),
        layout: layout.map(|value| read_layout(&value)).transpose()?,
        layout_reason: take(&mut fields, "layoutReason")?,
        tools: take(&mut fields, "tools")?.unwrap_or_default(),
        ssh: take(&mut fields, "ssh")?,
    };
    if let Some((name, _)) = fields.into_iter().next() {
        return Err(ManifestError::Unknown(name));
    }
    manifest.check()?;
    Ok(manifest)
}

fn read_layout(value: &Value) -> Result<Result<Layout, LayoutError>, ManifestError> {
    match layout::parse(&value.to_string()) {
        Err(error) if !error.is_unsupported() => Err(error.into()),
        result => Ok(result),
    }
}

/// Takes a field out; what is null is not there.
fn take<T: DeserializeOwned>(
    fields: &mut Map<String, Value>,
    field: &'static str,
) -> Result<Option<T>, ManifestError> {
    let value = fields.remove(field).unwrap_or(Value::Null);
    serde_json::from_value(value).map_err(|error| ManifestError::Type { field, what: error.to_string() })
}

/// Reads the manifest of a system, if it has one.
pub fn read(root: &Path, system: &StorePath) -> Result<Option<Manifest>> {
    let path = Path::new(&system.to_string()).join(PLACE);
    let context = || format!("reading {}", path.display());
    match inside::read(root, &path, LIMIT) {
        Ok(text) => {
            let text = String::from_utf8(text).with_context(context)?;
            parse(&text).with_context(context).map(Some)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(context),
    }
}

impl Manifest {
    /// Checks what the types do not say already.
    fn check(&self) -> Result<(), ManifestError> {
        let must = |fits: bool, field: &str, value: &Path, wanted: &'static str| {
            let (field, value) = (field.to_owned(), value.display().to_string());
            if fits { Ok(()) } else { Err(ManifestError::Value { field, value, wanted }) }
        };
        if let Some(path) = &self.esp_mount_point {
            must(is_plain(path), "espMountPoint", path, "an absolute path")?;
        }
        for device in self.grub_devices.iter().filter(|device| *device != "nodev") {
            let path = Path::new(device);
            must(is_plain(path), "grubDevices", path, "an absolute path or nodev")?;
        }
        for (name, path) in &self.luks_devices {
            must(is_plain(path), &format!("luksDevices.{name}"), path, "an absolute path")?;
        }
        for (name, path) in &self.tools {
            must(is_stored(path), &format!("tools.{name}"), path, "a path in the Nix store")?;
        }
        if let Some(path) = &self.ssh {
            must(is_stored(path), "ssh", path, "a path in the Nix store")?;
        }
        Ok(())
    }

    /// Returns the loader with what the module knows in the place of what its scripts seem to say.
    pub fn correct(&self, guess: Loader) -> Loader {
        let kind = match (self.boot_loader, guess.kind) {
            // Without the program that switches there is nothing to run.
            (_, Kind::NoSwitch) => Kind::NoSwitch,
            (Some(BootLoader::SystemdBoot), _) => Kind::SystemdBoot,
            (Some(BootLoader::Lanzaboote), _) => Kind::Lanzaboote,
            (Some(BootLoader::Limine), _) => Kind::Limine,
            (Some(BootLoader::Extlinux), _) => Kind::Extlinux,
            // GRUB's own settings tell for which firmware it is, and a hook may be of a loader we know. None is
            // what a module says that does not know the loader, and NixOS's own warning in its place is known.
            (Some(BootLoader::Grub | BootLoader::Other | BootLoader::None) | None, kind) => kind,
        };
        // NixOS has an ESP mount point for every system, whether it has an ESP or not.
        let may_have_esp = kind.needs_esp() || matches!(kind, Kind::Limine | Kind::External);
        let told = self.esp_mount_point.clone().filter(|_| may_have_esp);
        // More names than GRUB will use do no harm in the fence; one too few would.
        let told_devices = self.grub_devices.iter().map(PathBuf::from).filter(|path| path.is_absolute());
        let mut baked_devices: Vec<PathBuf> = told_devices.collect();
        for device in guess.baked_devices {
            if !baked_devices.contains(&device) {
                baked_devices.push(device);
            }
        }
        Loader {
            kind,
            esp_mount_point: told.or(guess.esp_mount_point),
            boot_mount_point: guess.boot_mount_point,
            written: guess.written,
            baked_devices,
            can_touch_efi_variables: self.can_touch_efi_variables.or(guess.can_touch_efi_variables),
        }
    }
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
}

fn is_stored(path: &Path) -> bool {
    is_plain(path) && StorePath::containing(path).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::names;

    #[test]
    fn a_manifest_may_say_nothing_but_its_version() {
        assert_eq!(parse(r#"{"version":1}"#).unwrap(), Manifest::default());
        assert_eq!(parse(r#"{"version":1,"layout":null,"tools":null}"#).unwrap(), Manifest::default());
    }

    #[test]
    fn the_example_of_the_documentation_says_everything() {
        let document = include_str!("../docs/manifest.md");
        let example = document.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let Manifest {
            identity,
            boot_loader,
            esp_mount_point,
            grub_devices,
            can_touch_efi_variables,
            luks_devices,
            layout,
            layout_reason,
            tools,
            ssh,
        } = parse(example).unwrap();
        assert_eq!(identity, Some(Identity::Label));
        assert_eq!(boot_loader, Some(BootLoader::Grub));
        assert_eq!(esp_mount_point, Some("/boot".into()));
        assert_eq!(grub_devices, ["/dev/sda"]);
        assert_eq!(can_touch_efi_variables, Some(false));
        assert_eq!(luks_devices["data"], Path::new("/dev/disk/by-partlabel/data"));
        assert_eq!(layout.unwrap().unwrap().disk().unwrap().1.partitions.len(), 3);
        assert_eq!(layout_reason, None);
        assert!(tools.contains_key("mkfs.ext4") && ssh.is_some());

        let Value::Object(fields) = serde_json::from_str(example).unwrap() else { panic!("no object") };
        for name in fields.keys() {
            assert!(document.contains(&format!("| `{name}` |")), "{name} has no row");
        }
    }

    #[test]
    fn what_we_do_not_know_is_refused_in_a_sentence() {
        for (text, words) in [
            ("", "the manifest is not whole JSON: EOF"),
            (r#"{"version":1,"tools":{"mkfs"#, "the manifest is not whole JSON: EOF"),
            ("[1]", "the manifest is not a JSON object"),
            ("{}", "does not say its version"),
            (r#"{"version":"1"}"#, "does not say its version"),
            (r#"{"version":1.5}"#, "does not say its version"),
            (r#"{"version":2,"future":true}"#, "has version 2 and this program reads version 1"),
            (r#"{"version":1,"colour":"red"}"#, r#"a field "colour", which version 1 does not know"#),
            (r#"{"version":1,"identity":"name"}"#, "identity: unknown variant `name`"),
            (r#"{"version":1,"identity":7}"#, "identity: invalid type: integer `7`"),
            (r#"{"version":1,"bootLoader":"lilo"}"#, "bootLoader: unknown variant `lilo`"),
            (r#"{"version":1,"bootLoader":["grub"]}"#, "bootLoader: "),
            (r#"{"version":1,"espMountPoint":true}"#, "espMountPoint: invalid type: boolean `true`"),
            (
                r#"{"version":1,"espMountPoint":"boot"}"#,
                r#"espMountPoint is "boot", which is not an absolute"#,
            ),
            (r#"{"version":1,"espMountPoint":"/a/../b"}"#, "espMountPoint is "),
            (r#"{"version":1,"grubDevices":"/dev/sda"}"#, "grubDevices: invalid type: string"),
            (r#"{"version":1,"grubDevices":["nodev","sda"]}"#, r#"grubDevices is "sda""#),
            (r#"{"version":1,"canTouchEfiVariables":"no"}"#, "canTouchEfiVariables: invalid type: string"),
            (r#"{"version":1,"luksDevices":["/dev/sda1"]}"#, "luksDevices: invalid type: sequence"),
            (r#"{"version":1,"luksDevices":{"r":"sda1"}}"#, r#"luksDevices.r is "sda1", which is not"#),
            (r#"{"version":1,"tools":{"mkfs.ext4":1}}"#, "tools: invalid type: integer"),
            (r#"{"version":1,"tools":{"mkfs.ext4":"/bin/mkfs"}}"#, "tools.mkfs.ext4 is \"/bin/mkfs\""),
            (r#"{"version":1,"ssh":"/nix/store/ssh"}"#, "which is not a path in the Nix store"),
            (
                r#"{"version":1,"ssh":"/nix/store/0c5mzqyfjhyxv5bmpanmc7dzl5cfbhzj-x/../../../bin/ssh"}"#,
                "which is not a path in the Nix store",
            ),
            (r#"{"version":1,"layoutReason":["zfs"]}"#, "layoutReason: invalid type: sequence"),
            (r#"{"version":1,"layout":"ext4"}"#, "in the manifest, "),
            (r#"{"version":1,"layout":{"disks":{}}}"#, "in the manifest, "),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn a_manifest_without_a_layout_may_say_why() {
        let text = r#"{"version":1,"layout":null,"layoutReason":"disko.devices.zpool.tank holds /"}"#;
        let manifest = parse(text).unwrap();
        assert_eq!(manifest.layout, None);
        assert_eq!(manifest.layout_reason.as_deref(), Some("disko.devices.zpool.tank holds /"));
    }

    #[test]
    fn every_beginning_of_a_manifest_is_refused() {
        let text = r#"{"version":1,"espMountPoint":"/boot"}"#;
        for length in 0..text.len() {
            assert!(matches!(parse(&text[..length]), Err(ManifestError::Json(_))), "{}", &text[..length]);
        }
    }

    #[test]
    fn what_the_module_says_of_the_loader_counts_more_than_what_its_scripts_seem_to_say() {
        let guess = |kind: Kind| Loader {
            kind,
            esp_mount_point: None,
            boot_mount_point: None,
            written: vec![],
            baked_devices: vec![],
            can_touch_efi_variables: None,
        };
        let all = r#""espMountPoint":"/efi","grubDevices":["nodev","/dev/sda"],"canTouchEfiVariables":true"#;
        for (said, guessed, kind, esp) in [
            ("systemd-boot", Kind::External, Kind::SystemdBoot, Some("/efi")),
            ("lanzaboote", Kind::SystemdBoot, Kind::Lanzaboote, Some("/efi")),
            ("limine", Kind::External, Kind::Limine, Some("/efi")),
            ("extlinux", Kind::External, Kind::Extlinux, None),
            ("none", Kind::External, Kind::External, Some("/efi")),
            ("none", Kind::None, Kind::None, None),
            ("grub", Kind::GrubBios, Kind::GrubBios, None),
            ("grub", Kind::GrubBoth, Kind::GrubBoth, Some("/efi")),
            ("other", Kind::External, Kind::External, Some("/efi")),
            ("systemd-boot", Kind::NoSwitch, Kind::NoSwitch, None),
        ] {
            let manifest = parse(&format!(r#"{{"version":1,"bootLoader":"{said}",{all}}}"#)).unwrap();
            let loader = manifest.correct(guess(guessed));
            assert_eq!((loader.kind, loader.esp_mount_point), (kind, esp.map(PathBuf::from)), "{said}");
            assert_eq!(loader.baked_devices, [PathBuf::from("/dev/sda")]);
            assert_eq!(loader.can_touch_efi_variables, Some(true));
        }
        let guess = Loader {
            esp_mount_point: Some("/boot".into()),
            baked_devices: vec!["/dev/sdb".into(), "/dev/sda".into()],
            can_touch_efi_variables: Some(false),
            ..guess(Kind::GrubBoth)
        };
        assert_eq!(Manifest::default().correct(guess.clone()), guess);
        let mirrored = Manifest { grub_devices: vec!["/dev/sda".into()], ..Manifest::default() };
        assert_eq!(mirrored.correct(guess).baked_devices, ["/dev/sda", "/dev/sdb"].map(PathBuf::from));
    }

    #[test]
    fn the_manifests_of_the_module_s_presets_are_read() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/module/golden");
        for entry in std::fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let manifest = parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(manifest.layout.is_none() || manifest.layout_reason.is_none(), "{}", path.display());
            if let Some(layout) = manifest.layout {
                // What the layout encrypts is what the initrd opens.
                names::check(&layout.unwrap(), "", &manifest.luks_devices).unwrap();
            }
        }
    }
}
