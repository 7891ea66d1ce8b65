//! Layouts that are derived, and fstabs that are refused.

use super::*;

static NO_LUKS: BTreeMap<String, PathBuf> = BTreeMap::new();

fn wanted<'a>(fstab: &'a str, loader: Loader, present: &'a BTreeMap<String, Present>) -> Wanted<'a> {
    Wanted {
        fstab,
        kernel_params: "root=fstab loglevel=4",
        loader,
        esp_mountpoint: None,
        architecture: Architecture::X86_64,
        present,
        luks: &NO_LUKS,
        written: &[],
        disk_size: Some(Bytes::gib(64)),
        boot_files: Bytes::mib(60),
    }
}

/// One line a partition: name, type, size, format, label, uuid, mounts.
fn told(layout: &Layout) -> Vec<String> {
    let disk = layout.disk().unwrap().1;
    let line = |(index, p): (usize, &Partition)| {
        let content = p.content.as_ref().map(Content::opened);
        let mounts: Vec<String> = disk
            .mounts()
            .iter()
            .filter(|mount| mount.partition == index)
            .map(|m| format!("{}{}", m.subvolume.map_or(String::new(), |s| format!("{s}:")), m.mountpoint))
            .collect();
        format!(
            "{} {} {} {} {} {} {}",
            p.name,
            p.kind,
            p.size,
            content.map_or("-", Content::format_name),
            content.and_then(Content::label).unwrap_or("-"),
            content.and_then(Content::uuid).unwrap_or("-"),
            mounts.join(" ")
        )
    };
    disk.partitions.iter().enumerate().map(|it| line(it).trim_end().to_owned()).collect()
}

#[test]
fn common_systems_get_the_layout_they_boot_from() {
    let present = BTreeMap::from([
        (
            "/dev/disk/by-label/swap".to_owned(),
            Present { node: "/dev/sda2".into(), size: Bytes::gib(4), ..Present::default() },
        ),
        (
            "UUID=11111111-2222-3333-4444-555555555555".to_owned(),
            Present { node: "/dev/sda3".into(), size: Bytes::gib(9), ..Present::default() },
        ),
        (
            "/dev/disk/by-label/pool".to_owned(),
            Present { node: "/dev/sda3".into(), size: Bytes::gib(9), ..Present::default() },
        ),
        (
            "/dev/disk/by-label/old".to_owned(),
            Present {
                node: "/dev/sda4".into(),
                size: Bytes::gib(3),
                format: Some("xfs".into()),
                opened: None,
            },
        ),
    ]);
    for (what, loader, fstab, partitions) in [
        (
            "systemd-boot, by label",
            Loader::SystemdBoot,
            "/dev/disk/by-label/nixos / ext4 x-initrd.mount 0 1\n/dev/disk/by-label/ESP /boot vfat umask=0077 0 2\n/dev/disk/by-label/swap none swap defaults\ntmpfs /tmp tmpfs size=50% 0 0\n",
            vec!["ESP esp 1G vfat ESP - /boot", "swap swap 4G swap swap -", "root root 100% ext4 nixos - /"],
        ),
        (
            "GRUB on BIOS, one partition, by UUID",
            Loader::GrubBios,
            "/dev/disk/by-uuid/44444444-4444-4444-8888-888888888888 / xfs defaults 0 1\n",
            vec![
                "bios-boot bios-boot 1M - - -",
                "root root 100% xfs - 44444444-4444-4444-8888-888888888888 /",
            ],
        ),
        (
            "GRUB both ways, /boot of its own, udev and fstab escapes",
            Loader::GrubHybrid,
            "LABEL=my\\040root / ext4 - 0 1\n/dev/disk/by-partlabel/my\\x20boot /boot ext2 - 0 2\nUUID=abcd-1234 /boot/efi vfat - 0 2\n",
            vec![
                "ESP esp 1G vfat - abcd-1234 /boot/efi",
                "bios-boot bios-boot 1M - - -",
                "my boot linux 1G ext2 - - /boot",
                "root root 100% ext4 my root - /",
            ],
        ),
        (
            "xbootldr",
            Loader::SystemdBoot,
            "LABEL=r / ext4 - 0 1\nLABEL=E /efi vfat - 0 2\nLABEL=X /boot vfat - 0 2\n",
            vec!["ESP esp 1G vfat E - /efi", "boot xbootldr 1G vfat X - /boot", "root root 100% ext4 r - /"],
        ),
        (
            "disko's btrfs, two names for one device",
            Loader::SystemdBoot,
            "UUID=11111111-2222-3333-4444-555555555555 / btrfs subvol=/root,compress=zstd,x-initrd.mount 0 0\n/dev/disk/by-label/pool /home btrfs subvol=root/home 0 0\n/dev/disk/by-label/pool /mnt/top btrfs nofail 0 0\n/dev/disk/by-partlabel/disk-main-ESP /boot vfat - 0 2\n",
            vec![
                "disk-main-ESP esp 1G vfat - - /boot",
                "root root 100% btrfs pool 11111111-2222-3333-4444-555555555555 root:/ root/home:/home /mnt/top",
            ],
        ),
        (
            "root in memory, a second disk with a known size",
            Loader::SystemdBoot,
            "none / tmpfs size=2G 0 0\nLABEL=nix /nix ext4 - 0 2\nLABEL=E /boot vfat - 0 2\n/dev/disk/by-label/old /home auto - 0 2\n",
            vec![
                "ESP esp 1G vfat E - /boot",
                "home home 3G xfs old - /home",
                "nix linux 100% ext4 nix - /nix",
            ],
        ),
        (
            "an ESP that fstab does not name",
            Loader::OtherEfi,
            "PARTUUID=6E0A3C5E-0f4a-4f5a-9f0b-0a4c5d6e7f80 / ext4 - 0 1\n",
            vec!["ESP esp 1G vfat - - /boot", "root root 100% ext4 - - /"],
        ),
        (
            "a vfat /boot under GRUB for BIOS",
            Loader::GrubBios,
            "LABEL=r / ext4 - 0 1\nLABEL=B /boot vfat - 0 2\n",
            vec![
                "bios-boot bios-boot 1M - - -",
                "boot xbootldr 1G vfat B - /boot",
                "root root 100% ext4 r - /",
            ],
        ),
    ] {
        let derived =
            derive(&wanted(fstab, loader, &present)).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(told(&derived.layout), partitions, "{what}");
    }
}

#[test]
fn a_system_that_finds_its_root_by_type_needs_no_names() {
    let none = BTreeMap::new();
    for fstab in ["", "/dev/gpt-auto-root / ext4 x-initrd.mount 0 1\n"] {
        let mut wanted = wanted(fstab, Loader::SystemdBoot, &none);
        wanted.kernel_params = "quiet root=gpt-auto rw";
        wanted.disk_size = Some(Bytes::gib(3));
        let layout = derive(&wanted).unwrap().layout;
        assert_eq!(told(&layout), ["ESP esp 288M vfat - - /boot", "root root 100% ext4 - - /"]);
        assert_eq!(layout.disk().unwrap().1.partitions[1].attributes, [GROW_FILE_SYSTEM]);
    }
}

#[test]
fn what_the_system_boots_without_is_left_out_and_told() {
    let fstab = "LABEL=r / ext4 - 0 1\nLABEL=usb /media/usb exfat nofail 0 0\nLABEL=d /data zfs noauto 0 0\nserver:/x /mnt/x nfs4 _netdev 0 0\n/swapfile none swap defaults\n/x.img /mnt/i squashfs loop 0 0\n/nix/a /nix/b none bind 0 0\n";
    let none = BTreeMap::new();
    let derived = derive(&wanted(fstab, Loader::GrubBios, &none)).unwrap();
    assert_eq!(derived.layout.disk().unwrap().1.partitions.len(), 2);
    assert_eq!(
        derived.notes,
        [
            "server:/x on /mnt/x is a nfs4 mount: left out",
            "/swapfile on swap is a swap file: left out",
            "/x.img on /mnt/i is a file: left out, and the boot stops there; bring it with --extra-files, or say nofail in the system's configuration",
            "LABEL=usb on /media/usb is not needed to boot (nofail or noauto): left out",
            "LABEL=d on /data is not needed to boot (nofail or noauto): left out",
        ]
    );
}

#[test]
fn what_is_not_needed_is_kept_where_it_costs_nothing() {
    let size = |node: &str, gib| Present { node: node.into(), size: Bytes::gib(gib), ..Present::default() };
    let present = BTreeMap::from([
        ("LABEL=h".to_owned(), size("/dev/sda3", 5)),
        ("LABEL=s".to_owned(), size("/dev/sda4", 2)),
        ("UUID=11111111-2222-3333-4444-555555555555".to_owned(), size("/dev/sda4", 2)),
        ("UUID=44444444-4444-4444-8888-888888888888".to_owned(), size("/dev/sda2", 9)),
        ("LABEL=r".to_owned(), size("/dev/sda2", 9)),
    ]);
    for (what, line, params, partition, note) in [
        ("swap that may be missing", "LABEL=s none swap nofail", "", "swap swap 2G swap s -", ""),
        (
            "swap of one disk that may be missing",
            "/dev/disk/by-id/x none swap nofail",
            "",
            "",
            "/dev/disk/by-id/x on swap is not needed to boot",
        ),
        (
            "on demand, and here",
            "LABEL=h /home ext4 noauto,x-systemd.automount 0 0",
            "",
            "home home 5G ext4 h - /home",
            "",
        ),
        (
            "on demand, and nobody knows how large",
            "LABEL=gone /media ext4 noauto,x-systemd.automount 0 0",
            "",
            "",
            "LABEL=gone on /media is not needed to boot",
        ),
        (
            "swap with a random key",
            "/dev/mapper/dev-disk-byx2dpartlabel-diskx2dmainx2dswap none swap discard",
            "",
            "disk-main-swap swap 2G - - -",
            "",
        ),
        (
            "hibernation to a swap that fstab calls otherwise",
            "LABEL=s none swap -",
            "resume=UUID=11111111-2222-3333-4444-555555555555",
            "swap swap 2G swap s 11111111-2222-3333-4444-555555555555",
            "",
        ),
        (
            "hibernation to a swap file",
            "/swapfile none swap -",
            "resume=UUID=44444444-4444-4444-8888-888888888888 resume_offset=1234",
            "",
            "/swapfile on swap is a swap file: left out",
        ),
    ] {
        let fstab = format!("LABEL=r / ext4 - 0 1\n{line}\n");
        let wanted = Wanted { kernel_params: params, ..wanted(&fstab, Loader::NoPartition, &present) };
        let derived = derive(&wanted).unwrap_or_else(|error| panic!("{what}: {error}"));
        let told = told(&derived.layout);
        let root = match line.starts_with("/swapfile") {
            true => "root root 100% ext4 r 44444444-4444-4444-8888-888888888888 /",
            false => "root root 100% ext4 r - /",
        };
        assert_eq!(told.last().unwrap(), root, "{what}");
        assert_eq!(told[..told.len() - 1].join("; "), partition, "{what}");
        let notes = derived.notes.join("; ");
        assert!(notes.is_empty() == note.is_empty() && notes.starts_with(note), "{what}: {notes}");
        assert!(names::unmet(derived.layout.disk().unwrap().1, params, "").is_empty(), "{what}");
    }
}

#[test]
fn what_a_loader_writes_to_is_kept_whatever_its_options() {
    let (none, second) = (BTreeMap::new(), [PathBuf::from("/boot2")]);
    let fstab = "LABEL=r / ext4 - 0 1\nLABEL=E /boot vfat - 0 2\nLABEL=E2 /boot2 vfat nofail 0 2\n";
    let wanted = Wanted { written: &second, ..wanted(fstab, Loader::GrubEfi, &none) };
    let told = told(&derive(&wanted).unwrap().layout);
    assert_eq!(
        told,
        ["ESP esp 1G vfat E - /boot", "ESP-2 esp 1G vfat E2 - /boot2", "root root 100% ext4 r - /"]
    );
}

#[test]
fn what_the_initrd_opens_is_encrypted_again() {
    let luks = |name: &str, device: &str| BTreeMap::from([(name.to_owned(), PathBuf::from(device))]);
    let opened = Present { node: "/dev/dm-0".into(), opened: Some("crypted".into()), ..Present::default() };
    let present = BTreeMap::from([("UUID=11111111-2222-3333-4444-555555555555".to_owned(), opened)]);
    for (what, fstab, luks, partition, outer) in [
        (
            "by its name below /dev/mapper",
            "/dev/mapper/crypted / ext4 - 0 1",
            luks("crypted", "/dev/disk/by-uuid/44444444-4444-4444-8888-888888888888"),
            "root root 100% ext4 - - /",
            "crypted - 44444444-4444-4444-8888-888888888888",
        ),
        (
            "by the UUID of what is within",
            "UUID=11111111-2222-3333-4444-555555555555 / ext4 - 0 1",
            luks("crypted", "/dev/disk/by-partlabel/secret"),
            "secret root 100% ext4 - 11111111-2222-3333-4444-555555555555 /",
            "crypted - -",
        ),
        (
            "a btrfs with subvolumes",
            "/dev/mapper/crypted / btrfs subvol=root 0 0\n/dev/mapper/crypted /home btrfs subvol=home 0 0",
            luks("crypted", "/dev/disk/by-label/outer"),
            "root root 100% btrfs - - root:/ home:/home",
            "crypted outer -",
        ),
        (
            "found by systemd",
            "",
            luks("root", "/dev/gpt-auto-root-luks"),
            "root root 100% ext4 - - /",
            "root - -",
        ),
    ] {
        let wanted = Wanted {
            luks: &luks,
            kernel_params: "root=gpt-auto",
            ..wanted(fstab, Loader::NoPartition, &present)
        };
        let layout = derive(&wanted).unwrap_or_else(|error| panic!("{what}: {error}")).layout;
        assert_eq!(told(&layout), [partition], "{what}");
        let luks = layout.disk().unwrap().1.partitions[0].luks().expect(what);
        let or_none = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
        assert_eq!(
            format!("{} {} {}", luks.name, or_none(&luks.label), or_none(&luks.uuid)),
            outer,
            "{what}"
        );
    }
    for (fstab, luks, why) in [
        (
            "/dev/mapper/crypted / ext4 - 0 1",
            luks("crypted", "/dev/sda2"),
            "/dev/sda2, mounted on /, goes by the order of the disks",
        ),
        (
            "UUID=11111111-2222-3333-4444-555555555555 / ext4 - 0 1",
            luks("other", "/dev/disk/by-label/outer"),
            "no manifest of the system says what its initrd opens as crypted",
        ),
    ] {
        let wanted = Wanted { luks: &luks, ..wanted(fstab, Loader::NoPartition, &present) };
        let error = derive(&wanted).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn what_cannot_be_made_again_is_refused_by_name() {
    let none = BTreeMap::new();
    for (line, why) in [
        ("tank/root / zfs x-initrd.mount 0 0", "tank/root, mounted on /, is a zfs file system"),
        ("LABEL=x / bcachefs - 0 0", "is a bcachefs file system"),
        ("LABEL=x / f2fs - 0 0", "is a f2fs file system"),
        ("/dev/mapper/crypted / ext4 - 0 1", "/dev/mapper/crypted, mounted on /, is LVM, or encrypted"),
        ("/dev/pool/root / ext4 - 0 1", "looks like an LVM volume"),
        ("/dev/md/root / ext4 - 0 1", "is a RAID array"),
        ("/dev/md127 / ext4 - 0 1", "is a RAID array"),
        ("/dev/sda2 / ext4 - 0 1", "goes by the order of the disks"),
        ("/dev/nvme0n1p2 / ext4 - 0 1", "goes by the order of the disks"),
        ("/dev/disk/by-id/ata-X-part1 / ext4 - 0 1", "names one particular disk"),
        ("/dev/root / ext4 - 0 1", "is chosen by root="),
        ("store / 9p trans=virtio 0 0", "is a 9p mount, which a disk cannot hold"),
        ("LABEL=x / auto - 0 1", "has the type auto"),
        ("LABEL=x / btrfs subvolid=257 0 1", "a subvolume chosen by its number"),
        ("PARTUUID=1234abcd-02 / ext4 - 0 1", "has a PARTUUID of an MBR"),
        ("LABEL=x / ext4 - 0 1\n/dev/sdb1 /data ext4 - 0 2", "/dev/sdb1, mounted on /data, goes by"),
        (
            "LABEL=x / ext4 - 0 1\nLABEL=y /data ext4 - 0 2",
            "LABEL=y, mounted on /data, is a second file system",
        ),
        (
            "LABEL=x / ext4 - 0 1\n/dev/mapper/swap none swap -",
            "/dev/mapper/swap, mounted on swap, is LVM, or encrypted",
        ),
        ("LABEL=x / ext4 - 0 1\n/dev/mapper/dev-sda2 none swap -", "is swap with a random key, on what only"),
        (
            "LABEL=x / btrfs device=/dev/disk/by-id/a,device=/dev/disk/by-id/b 0 1",
            "is a btrfs of several devices",
        ),
        ("LABEL=x / ext4 X-mount.subdir=root 0 1", "shows its directory root only"),
        ("/dev/disk/by-path/pci-0-part1 / ext4 - 0 1", "names one particular disk"),
        ("LABEL=x / ext4 - 0 1\n/dev/disk/by-id/x none swap -", "names one particular disk"),
        ("LABEL=x /home ext4 - 0 1", "has no entry for / and its kernel parameters do not say root=gpt-auto"),
    ] {
        let error = derive(&wanted(line, Loader::GrubBios, &none)).expect_err(line).to_string();
        assert!(error.contains(why), "{error}\n  is not\n{why}");
        // No layout gives a name that belongs to one disk.
        assert!(error.contains("--layout") || error.contains("in the system's configuration"), "{error}");
    }
}

#[test]
fn sizes_follow_the_disk() {
    for (disk, files, size) in [
        (Some(Bytes::gib(2)), Bytes::mib(60), Bytes::mib(288)),
        (Some(Bytes::gib(8)), Bytes::mib(60), Bytes::mib(512)),
        (Some(Bytes::gib(500)), Bytes::mib(60), Bytes::gib(1)),
        (None, Bytes::mib(60), Bytes::gib(1)),
        (Some(Bytes::gib(2)), Bytes::mib(250), Bytes::mib(544)),
    ] {
        assert_eq!(esp_size(disk, files), size);
    }
    let none = BTreeMap::new();
    let mut wanted = wanted("LABEL=x / ext4 - 0 1\nLABEL=s none swap -", Loader::GrubBios, &none);
    wanted.disk_size = Some(Bytes::gib(4));
    assert_eq!(told(&derive(&wanted).unwrap().layout)[1], "swap swap 512M swap s -");
}
