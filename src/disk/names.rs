//! Names: whether a layout makes everything by the names that the system goes by.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::derive::GPT_AUTO_LUKS;
use super::derive::choice::{self, on_a_disk, place, required};
use super::fstab::{self, Name};
use super::layout::{Content, DiskLayout, Layout, LayoutError, MountEntry, Partition, PartitionType};

// By these systemd calls what it has found by its type.
const GPT_AUTO: [&str; 2] = ["/dev/gpt-auto-root", GPT_AUTO_LUKS];

/// Checks that a layout makes everything fstab needs, by its names and its mount points.
///
/// `luks` are the devices that the initrd opens, by the names it gives them.
pub fn check(layout: &Layout, fstab: &str, luks: &BTreeMap<String, PathBuf>) -> Result<(), LayoutError> {
    let (_, disk) = layout.disk()?;
    let mounts = disk.mounts();
    for entry in fstab::parse(fstab).iter().filter(|entry| required(entry) && on_a_disk(entry)) {
        choice::check_options(entry)?;
        let error = |hint: String| {
            Err(LayoutError::NotReproduced { device: entry.device.clone(), mountpoint: place(entry), hint })
        };
        let (name, is_empty) = match entry.random_key() {
            Some(name) => (name, true),
            None => (entry.name(), false),
        };
        let fits = |partition: &Partition| !is_empty || partition.content.is_none();
        let hint = if is_empty { " and no content" } else { "" };
        match name {
            Name::Label(label) if is_empty || !disk.has_content(|c| c.label() == Some(&label)) => {
                return error(format!("whose content has the label {label:?}"));
            }
            Name::Uuid(uuid) if is_empty || !disk.has_content(|c| is_uuid(c.uuid(), &uuid)) => {
                return error(format!("whose content has the UUID {uuid}"));
            }
            Name::PartLabel(name) if !disk.has(|p| p.name == name && fits(p)) => {
                return error(format!("the name {name:?}{hint}"));
            }
            Name::PartUuid(uuid) if !disk.has(|p| has_uuid(p, &uuid) && fits(p)) => {
                return error(format!("the uuid {uuid}{hint}"));
            }
            Name::Other(device) => match device.strip_prefix("/dev/mapper/") {
                Some(name) if !opens(disk, name) => {
                    return error(format!("whose content is of type luks and has the name {name:?}"));
                }
                None if !GPT_AUTO.contains(&device.as_str()) => return Err(choice::nameless(entry)),
                _ => {}
            },
            _ => {}
        }
        let mounted = |mount: &MountEntry<'_>| mount.mountpoint == entry.mountpoint;
        if !entry.is_swap() && entry.has("x-initrd.mount") && !mounts.iter().any(mounted) {
            return error(format!("with the mount point {}", entry.mountpoint));
        }
    }
    check_opened(disk, luks)
}

/// Returns what the kernel's parameters name: the parameter, and the device as it is written there.
pub fn of_kernel(params: &str) -> impl Iterator<Item = (&str, &str)> {
    params.split_ascii_whitespace().filter_map(|word| {
        let (name, value) = word.split_once('=')?;
        let is_device = !matches!(Name::parse(value), Name::Other(_)) || value.starts_with("/dev/");
        (matches!(name, "root" | "resume") && is_device).then_some((name, value))
    })
}

/// Says which names of the kernel's parameters and of crypttab nothing has in a layout, with what comes of it.
pub fn unmet(disk: &DiskLayout, kernel_params: &str, crypttab: &str) -> Vec<String> {
    let of_kernel =
        of_kernel(kernel_params).filter(|(_, device)| !is_there(disk, device)).map(|(name, device)| {
            let comes = match name {
                "resume" => {
                    "the clone does not wake from hibernation, and its stage 1 may wait for that device"
                }
                _ => "the clone finds no root by it",
            };
            format!("{name}={device} of the kernel parameters names nothing on the new disk: {comes}")
        });
    let of_crypttab = crypttab.lines().filter(|line| !line.trim_start().starts_with('#')).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (name, device, options) = (fields.next()?, fields.next()?, fields.nth(1).unwrap_or_default());
        let waits = !options.split(',').any(|option| matches!(option, "nofail" | "noauto"));
        (waits && !is_there(disk, device)).then(|| {
            format!(
                "/etc/crypttab opens {name} from {device}, which nothing on the new disk is called: its boot waits for that in vain unless the line says nofail"
            )
        })
    });
    of_kernel.chain(of_crypttab).collect()
}

fn is_there(disk: &DiskLayout, device: &str) -> bool {
    match Name::parse(device) {
        Name::Label(label) => disk.has_content(|content| content.label() == Some(&label)),
        Name::Uuid(uuid) => disk.has_content(|content| is_uuid(content.uuid(), &uuid)),
        Name::PartLabel(name) => disk.has(|partition| partition.name == name),
        Name::PartUuid(uuid) => disk.has(|partition| has_uuid(partition, &uuid)),
        Name::Other(device) => {
            let mapper = device.strip_prefix("/dev/mapper/");
            mapper.is_some_and(|name| opens(disk, name)) || GPT_AUTO.contains(&device.as_str())
        }
    }
}

/// Tells whether a device of `/dev/mapper` is there when the layout's partitions are opened.
fn opens(disk: &DiskLayout, name: &str) -> bool {
    disk.has(|partition| partition.luks().is_some_and(|luks| luks.name == name))
}

/// Checks that what the layout encrypts is what the initrd opens.
fn check_opened(disk: &DiskLayout, luks: &BTreeMap<String, PathBuf>) -> Result<(), LayoutError> {
    for partition in &disk.partitions {
        let Some(content) = partition.luks() else { continue };
        let Some(device) = luks.get(&content.name) else {
            // Without a manifest nobody knows.
            let known: Vec<&str> = luks.keys().map(String::as_str).collect();
            if known.is_empty() {
                continue;
            }
            let (partition, name) = (partition.name.clone(), content.name.clone());
            return Err(LayoutError::NotOpened { partition, name, known: known.join(", ") });
        };
        let device = device.to_string_lossy();
        let found = match Name::parse(&device) {
            Name::Label(label) => content.label.as_ref() == Some(&label),
            Name::Uuid(uuid) => is_uuid(content.uuid.as_deref(), &uuid),
            Name::PartLabel(name) => partition.name == name,
            Name::PartUuid(uuid) => has_uuid(partition, &uuid),
            Name::Other(path) => path == GPT_AUTO_LUKS && partition.kind == PartitionType::Root,
        };
        if !found {
            let (partition, name) = (partition.name.clone(), content.name.clone());
            return Err(LayoutError::OpenedFrom { partition, name, device: device.into_owned() });
        }
    }
    Ok(())
}

fn is_uuid(have: Option<&str>, uuid: &str) -> bool {
    have.is_some_and(|have| have.eq_ignore_ascii_case(uuid))
}

fn has_uuid(partition: &Partition, uuid: &str) -> bool {
    is_uuid(partition.uuid.map(|uuid| uuid.to_string()).as_deref(), uuid)
}

impl DiskLayout {
    fn has(&self, test: impl Fn(&Partition) -> bool) -> bool {
        self.partitions.iter().any(test)
    }

    fn has_content(&self, test: impl Fn(&Content) -> bool) -> bool {
        self.partitions.iter().flat_map(Partition::layers).any(test)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::layout;

    #[test]
    fn a_layout_that_misses_a_name_of_fstab_is_told() {
        let json = r#"{"disks": {"main": {"partitions": [{"name": "root", "type": "root", "size": "100%",
            "uuid": "6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80",
            "content": {"type": "filesystem", "format": "ext4", "label": "nixos", "mountpoint": "/"}}]}}}"#;
        let layout = layout::parse(json).unwrap();
        let none = BTreeMap::new();
        for good in [
            "LABEL=nixos / ext4 x-initrd.mount 0 1",
            "PARTLABEL=root / ext4 - 0 1",
            "PARTUUID=6E0A3C5E-0f4a-4f5a-9f0b-0a4c5d6e7f80 / ext4 - 0 1",
            "LABEL=nixos / ext4 - 0 1\nLABEL=usb /media ext4 nofail\nserver:/ /x nfs - 0 0\n/dev/zfs /z tmpfs - 0 0",
        ] {
            assert_eq!(check(&layout, good, &none), Ok(()), "{good}");
        }
        for (bad, hint) in [
            ("LABEL=nix / ext4 - 0 1", "whose content has the label \"nix\""),
            ("UUID=ABCD-1234 /boot vfat - 0 1", "whose content has the UUID ABCD-1234"),
            ("PARTLABEL=disk-main-root / ext4 - 0 1", "the name \"disk-main-root\""),
            ("PARTUUID=00000000-0f4a-4f5a-9f0b-0a4c5d6e7f80 / ext4 - 0 1", "the uuid 00000000"),
            ("/dev/mapper/root / ext4 - 0 1", "whose content is of type luks and has the name \"root\""),
            ("LABEL=nixos /home btrfs subvol=h,x-initrd.mount 0 1", "with the mount point /home"),
            ("/dev/mapper/dev-disk-byx2dpartlabel-root none swap -", "the name \"root\" and no content"),
        ] {
            let error = check(&layout, bad, &none).expect_err(bad).to_string();
            assert!(error.contains("the clone would not boot") && error.contains(hint), "{error}");
        }
        // What no layout can give.
        for (bad, why) in [
            ("/dev/sda1 / ext4 - 0 1", "goes by the order of the disks"),
            ("/dev/disk/by-id/ata-X-part2 / ext4 - 0 1", "names one particular disk"),
            ("LABEL=nixos / btrfs device=/dev/disk/by-id/x,device=/dev/disk/by-id/y 0 1", "several devices"),
            ("LABEL=nixos / ext4 X-mount.subdir=root 0 1", "shows its directory root only"),
        ] {
            let error = check(&layout, bad, &none).expect_err(bad).to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn names_of_the_kernel_and_of_crypttab_are_told_when_nothing_has_them() {
        let json = r#"{"disks": {"main": {"partitions": [{"name": "swap", "type": "swap", "size": "1G",
            "content": {"type": "swap", "uuid": "11111111-2222-3333-4444-555555555555"}},
            {"name": "root", "type": "root", "size": "100%", "content": {"type": "luks", "name": "crypt",
            "content": {"type": "filesystem", "format": "ext4", "label": "nixos", "mountpoint": "/"}}}]}}}"#;
        let layout = layout::parse(json).unwrap();
        let disk = layout.disk().unwrap().1;
        for (params, crypttab, told) in [
            ("root=fstab resume=/dev/disk/by-uuid/11111111-2222-3333-4444-555555555555 quiet", "", ""),
            ("resume=/dev/mapper/crypt root=LABEL=nixos", "", ""),
            ("root=gpt-auto resume=no", "# x\n\ncrypt /dev/disk/by-partlabel/root -\n", ""),
            ("resume=UUID=00000000-2222-3333-4444-555555555555", "", "resume=UUID=0"),
            ("resume=/dev/nvme0n1p2", "", "does not wake"),
            ("root=/dev/disk/by-label/other", "", "finds no root"),
            ("", "data UUID=abc /etc/key luks,nofail\n", ""),
            ("", "data UUID=abc none luks\n", "opens data from UUID=abc"),
        ] {
            let said = unmet(disk, params, crypttab).join("\n");
            assert!(said.is_empty() == told.is_empty() && said.contains(told), "{params} {crypttab}: {said}");
        }
    }

    #[test]
    fn what_is_encrypted_is_what_the_initrd_opens() {
        let layout = |name: &str| {
            let json = format!(
                r#"{{"disks": {{"main": {{"partitions": [{{"name": "root", "type": "root", "size": "100%",
                "uuid": "6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80",
                "content": {{"type": "luks", "name": "{name}", "label": "crypt",
                "uuid": "11111111-2222-3333-4444-555555555555",
                "content": {{"type": "filesystem", "format": "ext4", "label": "nixos", "mountpoint": "/"}}}}}}]}}}}}}"#
            );
            layout::parse(&json).unwrap()
        };
        let luks = |device: &str| BTreeMap::from([("root".to_owned(), PathBuf::from(device))]);
        for device in [
            "/dev/disk/by-partlabel/root",
            "/dev/disk/by-partuuid/6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80",
            "/dev/disk/by-uuid/11111111-2222-3333-4444-555555555555",
            "/dev/disk/by-label/crypt",
            GPT_AUTO_LUKS,
        ] {
            for fstab in ["LABEL=nixos / ext4 - 0 1", "/dev/mapper/root / ext4 - 0 1"] {
                assert_eq!(check(&layout("root"), fstab, &luks(device)), Ok(()), "{device}, {fstab}");
            }
        }
        assert_eq!(check(&layout("other"), "LABEL=nixos / ext4 - 0 1", &BTreeMap::new()), Ok(()));
        for (name, device, sentence) in [
            (
                "root",
                "/dev/disk/by-uuid/00000000-2222-3333-4444-555555555555",
                "opens root from /dev/disk/by-uuid/0",
            ),
            ("root", "/dev/sda2", "opens root from /dev/sda2"),
            ("other", "/dev/disk/by-partlabel/root", "opens nothing as other; it opens root"),
        ] {
            let error = check(&layout(name), "", &luks(device)).expect_err(device).to_string();
            assert!(error.contains(sentence), "{error}");
        }
    }
}
