# Configurations of disko, in as few words as they take.
{ world }:
rec {
  systemdBoot = {
    boot.loader.grub.enable = false;
    boot.loader.systemd-boot.enable = true;
    boot.initrd.systemd.enable = true;
  };

  # The modules of a system with these devices.
  disko = devices: [
    world.disko
    systemdBoot
    { disko.devices = devices; }
    # As disko's own module does.
    {
      fileSystems."/" = {
        device = "/dev/disk/by-partlabel/disk-main-root";
        fsType = "ext4";
      };
    }
  ];
  # The modules of a system with one disk of these partitions.
  diskoDisk = partitions: disko { disk.main = gpt partitions; };

  holding = device: content: {
    type = "disk";
    inherit device content;
    preCreateHook = "exit 1";
    _config = throw "an internal attribute was looked at";
  };
  gpt =
    partitions:
    holding "/dev/vda" {
      type = "gpt";
      inherit partitions;
    };

  # A content, and a partition that it fills.
  filesystem = format: mountpoint: {
    type = "filesystem";
    inherit format mountpoint;
    mountOptions = [ "defaults" ];
  };
  ext4 = filesystem "ext4";
  vfat = at: filesystem "vfat" at // { mountOptions = [ "umask=0077" ]; };
  member = type: name: {
    inherit type;
    pool = name;
    vg = name;
    filesystem = name;
    inherit name;
  };
  rest = content: {
    size = "100%";
    inherit content;
  };
  sized = size: content: { inherit size content; };

  bios = {
    type = "EF02";
    size = "1M";
  };
  esp = {
    type = "EF00";
    size = "500M";
    content = vfat "/boot";
  };
  root = rest (ext4 "/");
}
