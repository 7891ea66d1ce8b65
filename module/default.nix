# The NixOS module: from installVia.* to file systems, the manifest and the entry scripts.
#
# The decisions are in the files beside this one, as functions of plain data; here they meet the
# options of NixOS.
{
  config,
  lib,
  options,
  pkgs,
  ...
}:
let
  inherit (lib)
    mkDefault
    mkIf
    mkMerge
    mkOrder
    ;

  cfg = config.installVia;

  checks = import ./check.nix { inherit lib; };
  disko = import ./disko.nix { inherit lib; };
  filesystems = import ./filesystems.nix { inherit lib; };
  identities = import ./identity.nix { inherit lib; };
  layouts = import ./layout.nix { inherit lib; };
  loader = import ./loader.nix { inherit lib config; };
  manifests = import ./manifest.nix { inherit lib pkgs; };
  presets = import ./presets.nix;

  systemdStage1 = config.boot.initrd.systemd.enable;

  # --- where the layout comes from ---

  hasDisko = cfg.readDisko && options ? disko.devices && disko.describes config.disko.devices;
  fromDisko = disko.read config.disko.devices;
  hasLayout = cfg.layout != null;
  # Only a layout of our own names file systems; disko names its own.
  layout = layouts.clean cfg.layout;
  described =
    if hasLayout then
      layout
    else if hasDisko then
      fromDisko.layout
    else
      null;

  settings = {
    inherit layout;
    inherit (cfg) identity grow;
  };

  # --- what is wrong with it ---

  layoutProblems = if hasLayout then checks.problems layout else [ ];
  # What the layout means can only be asked of one that is whole.
  isWhole = layoutProblems == [ ];
  # disko's may say what a layout cannot. That is no mistake, and only who installs onto a disk needs one.
  layoutReason =
    if !isWhole then
      "installVia.layout: ${lib.head layoutProblems}"
    else if !hasLayout && hasDisko then
      fromDisko.reason
    else
      null;

  problems =
    map (problem: "installVia.layout: ${problem}") layoutProblems
    ++
      lib.optional (hasLayout && hasDisko)
        "installVia.layout and disko.devices both describe the disks; keep one, or set installVia.readDisko to false"
    ++ lib.optionals (hasLayout && isWhole) (
      checks.identityProblems {
        inherit layout systemdStage1;
        inherit (cfg) identity;
        bootLoader = loader.kind;
      }
      ++ map (problem: "installVia.layout: ${problem}") (
        checks.loaderProblems {
          inherit layout;
          inherit (loader) espMountPoint grubDevices;
          bootLoader = loader.kind;
        }
      )
    )
    ++
      lib.optional (!hasLayout && cfg.identity != "preserve")
        "installVia.identity is ${cfg.identity} and there is no installVia.layout whose file systems it could name; set a layout or leave the identity out"
    ++
      map
        (
          name:
          "installVia.extraTools.${name} is ${
            toString cfg.extraTools.${name}
          }, which is not in the store; take the program from a package"
        )
        (
          lib.filter (name: !lib.hasPrefix builtins.storeDir (toString cfg.extraTools.${name})) (
            lib.attrNames cfg.extraTools
          )
        );

  diskoWarnings =
    lib.optional (fromDisko.reason != null)
      "${fromDisko.reason}; the layout of a clone is derived from fstab instead, and installVia.readDisko = false asks for that without a warning"
    ++ fromDisko.warnings;

  warnings =
    map (warning: "installVia: ${warning}") (
      lib.optionals (described != null && isWhole) (
        checks.spaceWarnings {
          layout = described;
          inherit (loader) kernelMountPoint generations;
        }
      )
      ++ lib.optionals (!hasLayout && hasDisko) diskoWarnings
    )
    ++ lib.optionals (hasLayout && isWhole) (lib.unique (filesystems.warnings cfg.identity layout));

  # --- what the system is told ---

  usesGptAuto = cfg.identity == "gpt-auto";
  canUseGptAuto =
    lib.elem loader.kind [
      "systemd-boot"
      "lanzaboote"
    ]
    && systemdStage1
    && identities.rootIsFound layout;

  biosDisks = lib.filter (disk: disk ? device && lib.any (p: p.type == "bios-boot") disk.partitions) (
    lib.attrValues layout.disks
  );
  mountOfType =
    type: lib.findFirst (mount: mount.partition.type == type) null (layouts.mounts layout);
  espMount = mountOfType "esp";
  xbootldrMount = mountOfType "xbootldr";
  repart = filesystems.repartPartitions settings;

  # --- what the installer is told ---

  fsTypes = lib.unique (map (fs: fs.fsType) (lib.attrValues config.fileSystems));
  tools =
    manifests.tools (
      if described != null then
        manifests.contentsOf described
      else
        {
          formats = fsTypes;
          swap = config.swapDevices != [ ];
          encryption = config.boot.initrd.luks.devices != { };
        }
    )
    // lib.mapAttrs (_: path: "${path}") cfg.extraTools;

  manifest = manifests.render {
    inherit (cfg) identity;
    inherit tools layoutReason;
    inherit (loader) espMountPoint grubDevices canTouchEfiVariables;
    bootLoader = loader.kind;
    luksDevices = lib.mapAttrs (_: device: device.device) config.boot.initrd.luks.devices;
    layout =
      if !isWhole then
        null
      else if hasLayout && usesGptAuto then
        filesystems.marked settings
      else
        described;
    ssh = "${lib.getBin config.programs.ssh.package}/bin/ssh";
  };

  manifestFile = pkgs.writeText "install-via-manifest.json" (builtins.toJSON manifest);

  # What runs while the system is built must run on the machine that builds.
  generator =
    if pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform then
      cfg.package
    else
      pkgs.buildPackages.nixos-install-via
        or (pkgs.buildPackages.pkgsStatic.callPackage ./package.nix { });
in
{
  imports = [ ./options.nix ];

  config = mkMerge [
    {
      # Not below enable, for the options must have values to be read by others.
      installVia = {
        identity = lib.mkOptionDefault (
          if !hasLayout then
            "preserve"
          else if isWhole && canUseGptAuto then
            "gpt-auto"
          else
            "label"
        );
        # Only the partitions, so that the disk can be given its device.
        layout = mkIf (cfg.preset != null) {
          disks.main.partitions = mkDefault presets.${cfg.preset};
        };
        inherit manifest;
      };
    }

    (mkIf cfg.enable {
      assertions = map (message: {
        assertion = false;
        inherit message;
      }) problems;
      inherit warnings;

      environment.systemPackages = [ cfg.package ];

      # After all others, for NixOS and people make $out/bin with a plain mkdir, also in the order of mkAfter.
      system.systemBuilderCommands = mkOrder 100000 ''
        mkdir -p "$out/bin" "$out/install-via"
        ${generator}/bin/nixos-install-via generate \
          --toplevel "$out" \
          --manifest ${manifestFile} \
          --shell ${pkgs.runtimeShell} \
          --binary ${cfg.package}/bin/nixos-install-via
      '';
    })

    (mkIf (cfg.enable && hasLayout && !hasDisko && isWhole) {
      fileSystems = filesystems.fileSystems settings;
      swapDevices = filesystems.swapDevices settings;
      boot.initrd.luks.devices = filesystems.luksDevices settings;
      # What systemd mounts by itself is in no fstab, and needs its kernel modules and fsck all the same.
      boot.supportedFilesystems = layouts.formats layout;

      boot.loader.efi.efiSysMountPoint = mkIf (espMount != null) (mkDefault espMount.mountpoint);
      boot.loader.systemd-boot.xbootldrMountPoint = mkIf (xbootldrMount != null) (
        mkDefault xbootldrMount.mountpoint
      );
      # Where the configuration names no devices. Some NixOS define them as an empty list, before which an
      # mkDefault counts for nothing.
      boot.loader.grub.mirroredBoots =
        mkIf (loader.kind == "grub" && biosDisks != [ ] && config.boot.loader.grub.devices == [ ])
          [
            {
              path = "/boot";
              devices = map (disk: disk.device) biosDisks;
              inherit (config.boot.loader.efi) efiSysMountPoint;
            }
          ];

      systemd.repart = {
        # A scripted stage 1 cannot, and the file systems of stage 2 are grown after it.
        enable = mkIf (repart != { } && !systemdStage1) true;
        partitions = repart;
      };
      # Without a device it works on the disk that the root was mounted from.
      boot.initrd.systemd.repart.enable = mkIf (repart != { } && systemdStage1) true;
    })

    # Of a layout with mistakes nothing is built, and only the mistakes should be told, not that / is missing.
    (mkIf (cfg.enable && hasLayout && !isWhole) {
      fileSystems."/" = {
        device = mkDefault "/dev/disk/by-label/nixos";
        fsType = mkDefault "auto";
      };
    })

    # NixOS wants a root in fileSystems unless root=gpt-auto, and many of its modules look there in any
    # case; options such as subvol= have their place there too. So / is in fstab as /dev/gpt-auto-root,
    # which is a link by udev to the root of the booted disk, and no name on a disk. root=gpt-auto makes
    # the generator agree: fstab's sysroot.mount stands before the generator's, and an encrypted root is
    # opened once, under the one name "root". The ESP, swap, home and srv are left to the generator. It
    # mounts the ESP on demand, which the installer of systemd-boot takes for mounted.
    (mkIf (cfg.enable && hasLayout && !hasDisko && isWhole && usesGptAuto) {
      boot.initrd.systemd.root = "gpt-auto";
      # systemd 258 moved these from 99-systemd.rules to a file that not every NixOS puts into its initrd.
      boot.initrd.services.udev.rules = ''
        SUBSYSTEM=="block", ENV{ID_PART_GPT_AUTO_ROOT}=="1", ENV{ID_FS_TYPE}!="crypto_LUKS", SYMLINK+="gpt-auto-root"
        SUBSYSTEM=="block", ENV{ID_PART_GPT_AUTO_ROOT}=="1", ENV{ID_FS_TYPE}=="crypto_LUKS", SYMLINK+="gpt-auto-root-luks"
        SUBSYSTEM=="block", ENV{DM_UUID}=="CRYPT-*", ENV{DM_NAME}=="root", SYMLINK+="gpt-auto-root"
      '';
    })
  ];
}
