# The options of NixOS that the module reads and sets, with the rules that meet it there.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  flag = option types.bool;
  texts = option (types.listOf types.str) [ ];
  text = option (types.nullOr types.str) null;

  fileSystem = types.submodule (
    { name, config, ... }:
    {
      options = {
        mountPoint = option types.str name;
        device = text;
        label = text;
        fsType = option types.str "auto";
        options = option (types.listOf types.str) [ "defaults" ];
        autoResize = flag false;
        neededForBoot = flag false;
      };
      config = {
        device = lib.mkIf (config.label != null) (lib.mkDefault "/dev/disk/by-label/${config.label}");
        options = lib.mkIf config.autoResize [ "x-systemd.growfs" ];
      };
    }
  );

  swapDevice = types.submodule {
    options = {
      device = text;
      label = text;
    };
  };

  luksDevice = types.submodule {
    options = {
      device = mkOption { type = types.str; };
      allowDiscards = flag false;
    };
  };

  grub = config.boot.loader.grub;
  failed = map (a: a.message) (lib.filter (a: !a.assertion) config.assertions);
in
{
  options = {
    assertions = option (types.listOf types.raw) [ ];
    warnings = texts;
    fileSystems = option (types.attrsOf fileSystem) { };
    swapDevices = option (types.listOf swapDevice) [ ];
    environment.systemPackages = option (types.listOf types.package) [ ];
    programs.ssh.package = option types.package pkgs.openssh;

    boot = {
      isContainer = flag false;
      kernelParams = texts;
      supportedFilesystems = texts;
      initrd = {
        luks.devices = option (types.attrsOf luksDevice) { };
        services.udev.rules = option types.lines "";
        systemd = {
          enable = flag false;
          root = option (types.enum [
            "fstab"
            "gpt-auto"
          ]) "fstab";
          repart.enable = flag false;
        };
      };
      lanzaboote.enable = flag false;
      loader = {
        efi = {
          canTouchEfiVariables = flag false;
          efiSysMountPoint = option types.str "/boot";
        };
        systemd-boot = {
          enable = flag false;
          configurationLimit = option (types.nullOr (types.ints.between 0 1000)) null;
          xbootldrMountPoint = text;
        };
        grub = {
          enable = flag (!config.boot.isContainer);
          efiSupport = flag false;
          device = option types.str "";
          devices = texts;
          mirroredBoots = option (types.listOf types.raw) [ ];
          configurationLimit = option (types.ints.between 0 1000) 100;
        };
        generic-extlinux-compatible.enable = flag false;
        limine = {
          enable = flag false;
          efiSupport = flag true;
          maxGenerations = option (types.nullOr (types.ints.between 0 1000)) null;
        };
        external.enable = flag false;
      };
    };

    systemd.repart = {
      enable = flag false;
      partitions = option (types.attrsOf (types.attrsOf types.str)) { };
    };

    system.systemBuilderCommands = option types.lines "";
    system.build = mkOption {
      type = types.attrsOf types.raw;
      default = { };
    };
  };

  config = {
    boot.loader.grub = {
      devices = lib.mkIf (grub.device != "") [ grub.device ];
      mirroredBoots = lib.mkIf (grub.devices != [ ]) [
        {
          path = "/boot";
          inherit (grub) devices;
        }
      ];
    };

    boot.kernelParams = lib.mkIf config.boot.initrd.systemd.enable (
      [ "root=${config.boot.initrd.systemd.root}" ]
      ++ lib.optional (config.boot.initrd.systemd.root == "gpt-auto") "rw"
    );

    assertions = [
      {
        assertion =
          config.boot.isContainer
          || config.boot.initrd.systemd.root == "gpt-auto"
          || lib.any (fs: fs.mountPoint == "/") (lib.attrValues config.fileSystems);
        message = "The ‘fileSystems’ option does not specify your root file system.";
      }
      {
        assertion = config.boot.initrd.systemd.repart.enable -> config.boot.initrd.systemd.enable;
        message = "'boot.initrd.systemd.repart.enable' can only be enabled if 'boot.initrd.systemd.enable' is also enabled.";
      }
    ];

    # A plain mkdir, in the default order.
    system.systemBuilderCommands = ''
      mkdir $out/bin
    '';

    system.build.toplevel =
      if failed != [ ] then
        throw "\nFailed assertions:\n${lib.concatStringsSep "\n" (map (message: "- ${message}") failed)}"
      else
        pkgs.run "nixos-system-test" ''
          mkdir $out
          echo kernel > $out/kernel
          ${config.system.systemBuilderCommands}
        '';
  };
}
