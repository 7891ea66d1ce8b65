# The options of installVia.
{ lib, pkgs, ... }:
let
  inherit (lib) mkOption types literalExpression;
  presets = import ./presets.nix;

  optionalText =
    description: example:
    mkOption {
      type = types.nullOr types.str;
      default = null;
      inherit description example;
    };

  mountpoint = optionalText "Where it is mounted." "/home";

  mountOptions = mkOption {
    type = types.listOf types.str;
    default = [ ];
    example = [ "compress=zstd" ];
    description = "Mount options, one an entry.";
  };

  label = optionalText ''
    The label: at most 16 bytes on ext2 to ext4 and swap, 12 on xfs, 11 on vfat, 255 on btrfs.
  '' "nixos";

  uuid = optionalText ''
    The UUID, `ABCD-1234` on vfat and 8-4-4-4-12 hex digits elsewhere. A fresh one if not set.
  '' "44444444-4444-4444-8888-888888888888";

  subvolume = types.submodule {
    options = {
      path = mkOption {
        type = types.str;
        example = "/home";
        description = "Path of the subvolume below the top level.";
      };
      inherit mountpoint;
      options = mountOptions;
    };
  };

  # What is on a partition. Encryption holds another content, and that is not encrypted again.
  contentOptions = kinds: {
    type = mkOption {
      type = types.enum kinds;
      description = "The kind of content.";
    };
    format = mkOption {
      type = types.nullOr (
        types.enum [
          "ext2"
          "ext3"
          "ext4"
          "xfs"
          "vfat"
          "btrfs"
        ]
      );
      default = null;
      example = "ext4";
      description = "The file system of a `filesystem`.";
    };
    inherit label uuid mountpoint;
    options = mountOptions;
    subvolumes = mkOption {
      type = types.listOf subvolume;
      default = [ ];
      description = "The subvolumes of a `btrfs`.";
    };
  };

  plainKinds = [
    "filesystem"
    "btrfs"
    "swap"
  ];

  content = types.submodule {
    options = contentOptions (plainKinds ++ [ "luks" ]) // {
      name = optionalText "The name under which `luks` is opened in {file}`/dev/mapper`." "root";
      settings = mkOption {
        type = types.attrsOf types.anything;
        default = { };
        example = {
          allowDiscards = true;
        };
        description = "More of {option}`boot.initrd.luks.devices.<name>` for a `luks`.";
      };
      content = mkOption {
        type = types.nullOr (types.submodule { options = contentOptions plainKinds; });
        default = null;
        description = "What a `luks` holds.";
      };
    };
  };

  partition = types.submodule {
    options = {
      name = mkOption {
        type = types.str;
        example = "root";
        description = "The PARTLABEL: 1 to 36 characters, unique.";
      };
      type = mkOption {
        type = types.str;
        default = "linux";
        example = "esp";
        description = ''
          `esp`, `bios-boot`, `xbootldr`, `swap`, `root`, `home`, `srv`, `var`, `linux`, or a type GUID.
          `root` becomes the root type of the system's architecture.
        '';
      };
      size = mkOption {
        type = types.str;
        example = "512M";
        description = ''
          A number with K, M, G or T (powers of 1024), or `100%` for what is left. Only the last
          partition may say `100%`. `-8G` is all but the last 8 GiB of the disk, where the partitions
          that follow have their place.
        '';
      };
      uuid = optionalText "The PARTUUID. A fresh one if not set." "6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80";
      attributes = mkOption {
        type = types.listOf (types.ints.between 0 63);
        default = [ ];
        example = [ 59 ];
        description = ''
          Bits of the entry by number: 2 bootable by BIOS, 59 grow the file system, 60 read-only, 63 no
          automatic mount.
        '';
      };
      content = mkOption {
        type = types.nullOr content;
        default = null;
        description = "What is on the partition.";
      };
    };
  };

  disk = types.submodule {
    options = {
      device = optionalText ''
        The disk that the configuration is written for. It is never followed, for the command names the
        disk; GRUB for BIOS is configured with it where {option}`boot.loader.grub.devices` names none, and
        several disks are told apart by it.
      '' "/dev/sda";
      partitions = mkOption {
        type = types.listOf partition;
        default = [ ];
        description = "The partitions, in order.";
      };
    };
  };

  layout = types.submodule {
    options.disks = mkOption {
      type = types.attrsOf disk;
      default = { };
      description = "The disks by name.";
    };
  };
in
{
  options.installVia = {
    enable = lib.mkEnableOption "the commands with which this system installs itself elsewhere, in {file}`/run/current-system/bin`";

    package = mkOption {
      type = types.package;
      default = pkgs.nixos-install-via or (pkgs.pkgsStatic.callPackage ./package.nix { });
      defaultText = literalExpression "pkgs.nixos-install-via";
      description = "The package that holds the installer, for the architecture of the system.";
    };

    preset = mkOption {
      type = types.nullOr (types.enum (lib.attrNames presets));
      default = null;
      example = "uefi-ext4";
      description = ''
        A layout for a common case, of one disk named `main`. Its partitions can be replaced, and its
        {option}`installVia.layout.disks.main.device` given, in {option}`installVia.layout`.
      '';
    };

    layout = mkOption {
      type = types.nullOr layout;
      default = null;
      example = literalExpression ''
        {
          disks.main.partitions = [
            {
              name = "ESP";
              type = "esp";
              size = "1G";
              content = {
                type = "filesystem";
                format = "vfat";
                mountpoint = "/boot";
              };
            }
            {
              name = "root";
              type = "root";
              size = "100%";
              content = {
                type = "filesystem";
                format = "ext4";
                label = "nixos";
                mountpoint = "/";
              };
            }
          ];
        }
      '';
      description = ''
        What the disks hold, with the fields of {file}`docs/layout.md`. It sets {option}`fileSystems`,
        {option}`swapDevices` and what the initrd needs. Without it these stay as they are configured, and
        the layout is derived from them when a clone is made.
      '';
    };

    identity = mkOption {
      type = types.enum [
        "gpt-auto"
        "label"
        "partlabel"
        "preserve"
      ];
      defaultText = literalExpression ''
        "gpt-auto" where a layout is set and systemd finds its root, with systemd-boot and a systemd stage 1;
        else "label" where a layout is set, "preserve" otherwise
      '';
      example = "partlabel";
      description = ''
        How the file systems of {option}`installVia.layout` are named.

        - `gpt-auto`: not at all. systemd finds them by partition type on the disk that was booted, so that
          a clone can stay attached beside its original.
        - `label`: by the labels of the file systems.
        - `partlabel`: by the names of the partitions.
        - `preserve`: by the UUIDs the layout gives, else by the names of the partitions. A system with
          its own {option}`fileSystems` has this, for a clone gets the names it already has.
      '';
    };

    grow = mkOption {
      type = types.bool;
      default = true;
      example = false;
      description = ''
        Whether the last partition of {option}`installVia.layout` and its file system grow at boot into
        the space behind them, where the size is `100%`. systemd-repart does the former. What is encrypted
        is as large as its partition was when it was opened, so it follows at the next boot.
      '';
    };

    readDisko = mkOption {
      type = types.bool;
      default = true;
      example = false;
      description = ''
        Whether {option}`disko.devices`, where disko is imported, becomes the layout of a clone: that of the
        disk which holds the system. disko goes on to set {option}`fileSystems`.

        What the installer makes otherwise, such as a file system without the arguments of its mkfs, is told
        in a warning. So is what no layout can say, such as LVM, RAID or ZFS below `/`: then the system is
        built without a layout, and one is derived from {file}`/etc/fstab` when a clone is made.
      '';
    };

    extraTools = mkOption {
      type = types.attrsOf types.path;
      default = { };
      example = literalExpression ''{ "mkfs.f2fs" = "''${pkgs.f2fs-tools}/bin/mkfs.f2fs"; }'';
      description = "More programs for the installer, by name, each in the store.";
    };

    manifest = mkOption {
      type = types.attrsOf types.anything;
      readOnly = true;
      internal = true;
      description = "What is written to {file}`install-via/manifest.json` of the system.";
    };
  };
}
