# The layouts of the common cases. Each is the list of partitions of the one disk, named main.
let
  # Room for many generations, and for firmware that wants FAT32.
  espAt = mountpoint: {
    name = "ESP";
    type = "esp";
    size = "1G";
    content = {
      type = "filesystem";
      format = "vfat";
      label = "ESP";
      inherit mountpoint;
      # The random seed and the secrets of an initrd are for root alone.
      options = [ "umask=0077" ];
    };
  };

  # Where GRUB writes its code on a GPT disk that BIOS starts.
  biosBoot = {
    name = "bios";
    type = "bios-boot";
    size = "1M";
  };

  root = content: {
    name = "root";
    type = "root";
    size = "100%";
    inherit content;
  };

  ext4 = {
    type = "filesystem";
    format = "ext4";
    label = "nixos";
    mountpoint = "/";
  };
in
{
  uefi-ext4 = [
    (espAt "/boot")
    (root ext4)
  ];

  uefi-btrfs = [
    (espAt "/boot")
    (root {
      type = "btrfs";
      label = "nixos";
      subvolumes = [
        {
          path = "/root";
          mountpoint = "/";
          options = [ "compress=zstd" ];
        }
        {
          path = "/home";
          mountpoint = "/home";
          options = [ "compress=zstd" ];
        }
        {
          path = "/nix";
          mountpoint = "/nix";
          options = [
            "compress=zstd"
            "noatime"
          ];
        }
      ];
    })
  ];

  uefi-luks = [
    (espAt "/boot")
    (root {
      type = "luks";
      # The name under which systemd opens an encrypted root that it finds by itself.
      name = "root";
      content = ext4;
    })
  ];

  bios-grub = [
    biosBoot
    (root ext4)
  ];

  # GRUB reads kernels from the root, so that the ESP holds nothing but its loader.
  hybrid = [
    biosBoot
    (espAt "/boot/efi")
    (root ext4)
  ];
}
