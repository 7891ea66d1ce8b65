use std::os::unix::fs::symlink;

use super::*;

/// Makes files, and links where there is an arrow, below a made-up `/sys`.
fn world(entries: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in entries {
        let (path, rest) = entry.split_once(' ').unwrap_or((entry, ""));
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match rest.strip_prefix("-> ") {
            Some(target) => symlink(target, path).unwrap(),
            None => fs::write(path, format!("{rest}\n")).unwrap(),
        }
    }
    dir
}

/// Returns a device's name and its links, each as `modalias driver module`, `-` for none.
fn told(device: &Device) -> Vec<String> {
    let show = |text: &Option<String>| text.clone().unwrap_or("-".to_owned());
    let links = device.chain.iter();
    let links =
        links.map(|link| format!("{} {} {}", show(&link.modalias), show(&link.driver), show(&link.module)));
    [device.name.clone()].into_iter().chain(links).collect()
}

#[test]
fn disks_are_followed_up_to_the_root() {
    let pci = "devices/pci0000:00/0000:00:05.0";
    let scsi = "virtio1/host2/target2:0:0/2:0:0:0";
    let sys = world(&[
        &format!("class/block/sda -> ../../{pci}/{scsi}/block/sda"),
        &format!("class/block/sda1 -> ../../{pci}/{scsi}/block/sda/sda1"),
        &format!("{pci}/{scsi}/block/sda/size 8"),
        &format!("{pci}/{scsi}/block/sda/device -> ../../../2:0:0:0"),
        &format!("{pci}/{scsi}/block/sda/sda1/partition 1"),
        &format!("{pci}/{scsi}/modalias scsi:t-0x00"),
        &format!("{pci}/{scsi}/driver -> ../../../../../../../bus/scsi/drivers/sd"),
        "bus/scsi/drivers/sd/module -> ../../../../module/sd_mod",
        "module/sd_mod/refcnt 1",
        &format!("{pci}/virtio1/modalias virtio:d00000008v00001AF4"),
        &format!("{pci}/virtio1/driver -> ../../../../bus/virtio/drivers/virtio_scsi"),
        "bus/virtio/drivers/virtio_scsi/bind ",
        &format!("{pci}/modalias pci:v00001AF4d00001048"),
        &format!("{pci}/driver -> ../../../bus/pci/drivers/virtio-pci"),
        "bus/pci/drivers/virtio-pci/module -> ../../../../module/virtio_pci",
        &format!("bus/pci/devices/0000:00:05.0 -> ../../../{pci}"),
        "devices/pci0000:00/0000:00:01.0/modalias pci:vga",
        "bus/pci/devices/0000:00:01.0 -> ../../../devices/pci0000:00/0000:00:01.0",
        "bus/cpu/devices/cpu0 -> ../../../devices/system/cpu/cpu0",
        &format!("devices/system/cpu/cpu0/modalias {}", "x".repeat(2000)),
        "class/block/loop0 -> ../../devices/virtual/block/loop0",
        "devices/virtual/block/loop0/size 0",
    ]);
    let hardware = below(sys.path()).unwrap();
    let wanted = [
        "sda",
        "scsi:t-0x00 sd sd_mod",
        "virtio:d00000008v00001AF4 virtio_scsi -",
        "pci:v00001AF4d00001048 virtio-pci virtio_pci",
    ];
    assert_eq!(hardware.disks.iter().map(told).collect::<Vec<_>>(), [wanted]);
    assert_eq!(hardware.others, ["pci:vga"]);
    assert!(hardware.is_sane());
}

#[test]
fn an_nvme_disk_of_several_paths_hangs_on_its_controllers() {
    let subsystem = "devices/virtual/nvme-subsystem/nvme-subsys0";
    let controller = "devices/pci0000:00/0000:00:04.0";
    let sys = world(&[
        &format!("class/block/nvme0n1 -> ../../{subsystem}/nvme0n1"),
        &format!("class/block/nvme0c0n1 -> ../../{controller}/nvme/nvme0/nvme0c0n1"),
        &format!("{subsystem}/nvme0n1/hidden 0"),
        &format!("{subsystem}/subsystem -> ../../../../class/nvme-subsystem"),
        &format!("{subsystem}/nvme0 -> ../../../pci0000:00/0000:00:04.0/nvme/nvme0"),
        &format!("{controller}/nvme/nvme0/nvme0c0n1/hidden 1"),
        &format!("{controller}/nvme/nvme0/state live"),
        &format!("{controller}/modalias pci:bc01sc08i02"),
        &format!("{controller}/driver -> ../../../bus/pci/drivers/nvme"),
    ]);
    let hardware = below(sys.path()).unwrap();
    assert_eq!(hardware.disks.iter().map(told).collect::<Vec<_>>(), [["nvme0n1", "pci:bc01sc08i02 nvme -"]]);
}

#[test]
fn cards_are_what_has_a_device() {
    let card = "devices/pci0000:00/0000:00:03.0";
    let sys = world(&[
        &format!("class/net/enp0s3 -> ../../{card}/net/enp0s3"),
        &format!("{card}/net/enp0s3/device -> ../../../0000:00:03.0"),
        &format!("{card}/net/enp0s3/phydev -> ../../mdio_bus/r8169-300/r8169-300:00"),
        &format!("{card}/mdio_bus/r8169-300/r8169-300:00/phy_id 0x001cc800"),
        &format!("{card}/mdio_bus/r8169-300/r8169-300:00/driver -> ../d/RTL8211B Gigabit Ethernet"),
        &format!("{card}/modalias pci:v000010ECd00008168"),
        &format!("{card}/driver -> ../../../bus/pci/drivers/r8169"),
        "class/net/lo -> ../../devices/virtual/net/lo",
        "devices/virtual/net/lo/mtu 65536",
        "class/net/bonding_masters x",
    ]);
    let hardware = below(sys.path()).unwrap();
    let phy = "mdio:00000000000111001100100000000000 RTL8211B Gigabit Ethernet -";
    assert_eq!(
        hardware.cards.iter().map(told).collect::<Vec<_>>(),
        [["enp0s3", "pci:v000010ECd00008168 r8169 -", phy]]
    );
    assert_eq!((hardware.disks, hardware.others), (Vec::new(), Vec::new()));
}

#[test]
fn this_machine_has_sane_hardware() {
    let hardware = hardware().unwrap();
    assert!(hardware.is_sane());
    let disks = hardware.disks.iter().all(|disk| Path::new("/sys/class/block").join(&disk.name).exists());
    let cards = hardware.cards.iter().all(|card| Path::new("/sys/class/net").join(&card.name).exists());
    assert!(disks && cards, "{hardware:?}");
}
