# The table: configurations, and what the module makes of them. Each case becomes { name, ok, got }.
{
  nixpkgs ? null,
}:
let
  world = import ./evaluate.nix { inherit nixpkgs; };
  inherit (world) lib;

  of = modules: (world.evaluate ([ { installVia.enable = lib.mkDefault true; } ] ++ modules)).config;
  messages = config: map (a: a.message) (lib.filter (a: !a.assertion) config.assertions);

  # --- configurations ---

  systemdBoot = {
    boot.loader.grub.enable = false;
    boot.loader.systemd-boot.enable = true;
    boot.initrd.systemd.enable = true;
  };
  grub = {
    boot.loader.grub.enable = true;
  };
  # The disks of GRUB where NixOS defines them without a condition.
  olderGrub = {
    boot.loader.grub = {
      devices = [ ];
      mirroredBoots = [ ];
    };
  };
  preset = name: { installVia.preset = name; };
  onSda = {
    installVia.layout.disks.main.device = "/dev/sda";
  };
  identity = value: { installVia.identity = value; };
  disk = partitions: { installVia.layout.disks.main.partitions = partitions; };
  # An ESP and these partitions.
  uefi = partitions: [
    systemdBoot
    (disk ([ esp ] ++ partitions))
  ];
  esp = {
    name = "ESP";
    type = "esp";
    size = "1G";
    content = {
      type = "filesystem";
      format = "vfat";
      label = "ESP";
      mountpoint = "/boot";
    };
  };
  root = {
    name = "root";
    type = "root";
    size = "100%";
    content = ext4 "/";
  };
  ext4 = mountpoint: {
    type = "filesystem";
    format = "ext4";
    label = "nixos";
    inherit mountpoint;
  };
  # A partition with one value changed.
  with' =
    set: name: value:
    set // { ${name} = value; };

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
  diskoDisk = partitions: {
    disk.main = {
      type = "disk";
      device = "/dev/vda";
      preCreateHook = "exit 1";
      _config = throw "an internal attribute was looked at";
      content = {
        type = "gpt";
        inherit partitions;
      };
    };
  };
  diskoEsp = {
    type = "EF00";
    size = "500M";
    content = {
      type = "filesystem";
      format = "vfat";
      mountpoint = "/boot";
      mountOptions = [ "umask=0077" ];
    };
  };
  diskoRoot = {
    size = "100%";
    content = {
      type = "filesystem";
      format = "ext4";
      mountpoint = "/";
      mountOptions = [ "defaults" ];
    };
  };

  # --- the forms of a case ---

  # What fstab and the initrd are told, in one line each.
  summary =
    config:
    lib.mapAttrsToList (
      at: fs:
      "${at} ${fs.device} ${fs.fsType} ${lib.concatStringsSep "," (lib.sort (a: b: a < b) fs.options)}"
    ) config.fileSystems
    ++ map (swap: "swap ${swap.device}") config.swapDevices
    ++ lib.mapAttrsToList (name: luks: "luks ${name} ${luks.device}") config.boot.initrd.luks.devices
    ++ lib.mapAttrsToList (
      _: d: "repart ${d.Type}" + (if d ? SizeMaxBytes then " ${d.SizeMaxBytes}" else "")
    ) config.systemd.repart.partitions
    ++ lib.optional config.boot.initrd.systemd.repart.enable "repart in stage 1"
    ++ lib.optional config.systemd.repart.enable "repart in stage 2"
    ++ lib.optional (config.boot.initrd.systemd.root == "gpt-auto") "root=gpt-auto"
    ++ lib.optional (
      config.boot.loader.efi.efiSysMountPoint != "/boot"
    ) "esp ${config.boot.loader.efi.efiSysMountPoint}"
    ++ lib.optional (
      config.boot.loader.systemd-boot.xbootldrMountPoint != null
    ) "kernels ${config.boot.loader.systemd-boot.xbootldrMountPoint}"
    ++ map (device: "grub ${device}") (
      lib.concatMap (boot: boot.devices) config.boot.loader.grub.mirroredBoots
    );

  same = name: got: want: {
    inherit name got want;
    ok = got == want;
  };
  boots =
    name: modules: want:
    let
      config = of modules;
    in
    same "${name}: what NixOS is told" (
      summary config ++ map (message: "failed: ${message}") (messages config) ++ config.warnings
    ) want;
  # One field of the manifest.
  tells =
    name: modules: field: want:
    same "${name}: the manifest's ${field}" ((of modules).installVia.manifest.${field} or null) want;
  # Exactly one assertion fails, with these words.
  refuses =
    name: modules: words:
    let
      got = messages (of modules);
    in
    {
      name = "refused: ${name}";
      inherit got;
      want = [ words ];
      ok = lib.length got == 1 && lib.hasInfix words (lib.head got);
    };
  warns =
    name: modules: words:
    let
      config = of modules;
    in
    {
      name = "warned of: ${name}";
      got = config.warnings ++ messages config;
      want = [ words ];
      ok =
        lib.length config.warnings == 1
        && messages config == [ ]
        && lib.hasInfix words (lib.head config.warnings);
    };
  # The module system itself refuses it.
  throws = name: modules: {
    name = "no value of the option: ${name}";
    got = "evaluated";
    want = "an error";
    ok = !(builtins.tryEval (builtins.deepSeq (of modules).fileSystems true)).success;
  };

  presetModules = {
    uefi-ext4 = [
      systemdBoot
      (preset "uefi-ext4")
    ];
    uefi-btrfs = [
      systemdBoot
      (preset "uefi-btrfs")
    ];
    uefi-luks = [
      systemdBoot
      (preset "uefi-luks")
    ];
    bios-grub = [
      grub
      (preset "bios-grub")
      onSda
    ];
    hybrid = [
      grub
      {
        boot.loader.grub.efiSupport = true;
      }
      (preset "hybrid")
      onSda
    ];
  };
  labelled = modules: modules ++ [ (identity "label") ];

  grows = "x-systemd.growfs";
in
rec {
  manifests = lib.mapAttrs (_: modules: (of modules).installVia.manifest) (
    presetModules
    // {
      disko-luks-btrfs = diskoLuks;
      own-file-systems = own;
    }
  );

  diskoLuks = disko (diskoDisk {
    ESP = diskoEsp;
    swap = {
      size = "8G";
      content = {
        type = "swap";
        extraArgs = [
          "-L"
          "swap"
        ];
        resumeDevice = true;
      };
    };
    luks = {
      size = "100%";
      content = {
        type = "luks";
        name = "crypted";
        passwordFile = "/tmp/secret";
        settings.allowDiscards = true;
        content = {
          type = "btrfs";
          extraArgs = [ "-f" ];
          subvolumes = {
            "/root".mountpoint = "/";
            "/nix" = {
              mountpoint = "/nix";
              mountOptions = [
                "compress=zstd"
                "noatime"
              ];
            };
            "/snapshots" = { };
          };
        };
      };
    };
  });

  own = [
    systemdBoot
    {
      fileSystems."/" = {
        device = "/dev/disk/by-uuid/44444444-4444-4444-8888-888888888888";
        fsType = "xfs";
      };
      fileSystems."/boot" = {
        label = "EFI";
        fsType = "vfat";
      };
      swapDevices = [ { device = "/dev/disk/by-label/swap"; } ];
      installVia.extraTools."mkfs.f2fs" =
        "/nix/store/00000000000000000000000000000000-f2fs/bin/mkfs.f2fs";
    }
  ];

  results = [
    # --- presets ---
    (boots "uefi-ext4" presetModules.uefi-ext4 [
      "/ /dev/gpt-auto-root ext4 ${grows}"
      "repart root"
      "repart in stage 1"
      "root=gpt-auto"
    ])
    (boots "uefi-ext4 by label" (labelled presetModules.uefi-ext4) [
      "/ /dev/disk/by-label/nixos ext4 ${grows}"
      "/boot /dev/disk/by-label/ESP vfat umask=0077"
      "repart root"
      "repart in stage 1"
    ])
    (boots "uefi-ext4 by partlabel" (presetModules.uefi-ext4 ++ [ (identity "partlabel") ]) [
      "/ /dev/disk/by-partlabel/root ext4 ${grows}"
      "/boot /dev/disk/by-partlabel/ESP vfat umask=0077"
      "repart root"
      "repart in stage 1"
    ])
    (boots "uefi-btrfs" presetModules.uefi-btrfs [
      "/ /dev/gpt-auto-root btrfs compress=zstd,subvol=root,${grows}"
      "/home /dev/gpt-auto-root btrfs compress=zstd,subvol=home"
      "/nix /dev/gpt-auto-root btrfs compress=zstd,noatime,subvol=nix"
      "repart root"
      "repart in stage 1"
      "root=gpt-auto"
    ])
    (boots "uefi-luks" presetModules.uefi-luks [
      "/ /dev/mapper/root ext4 ${grows}"
      "luks root /dev/gpt-auto-root-luks"
      "repart root"
      "repart in stage 1"
      "root=gpt-auto"
    ])
    (boots "uefi-luks by label" (labelled presetModules.uefi-luks) [
      "/ /dev/mapper/root ext4 ${grows}"
      "/boot /dev/disk/by-label/ESP vfat umask=0077"
      "luks root /dev/disk/by-partlabel/root"
      "repart root"
      "repart in stage 1"
    ])
    (boots "bios-grub" presetModules.bios-grub [
      "/ /dev/disk/by-label/nixos ext4 ${grows}"
      "repart root"
      "repart in stage 2"
      "grub /dev/sda"
    ])
    (boots "bios-grub in a NixOS that defines the disks of GRUB as a list" (presetModules.bios-grub ++ [ olderGrub ]) [
      "/ /dev/disk/by-label/nixos ext4 ${grows}"
      "repart root"
      "repart in stage 2"
      "grub /dev/sda"
    ])
    (boots "bios-grub and a disk of its own" (
      presetModules.bios-grub ++ [ { boot.loader.grub.device = "/dev/sdb"; } ]
    ) [
      "/ /dev/disk/by-label/nixos ext4 ${grows}"
      "repart root"
      "repart in stage 2"
      "grub /dev/sdb"
    ])
    (boots "bios-grub and the same disk" (
      presetModules.bios-grub ++ [ { boot.loader.grub.devices = [ "/dev/sda" ]; } ]
    ) [
      "/ /dev/disk/by-label/nixos ext4 ${grows}"
      "repart root"
      "repart in stage 2"
      "grub /dev/sda"
    ])
    (boots "hybrid" presetModules.hybrid [
      "/ /dev/disk/by-label/nixos ext4 ${grows}"
      "/boot/efi /dev/disk/by-label/ESP vfat umask=0077"
      "repart root"
      "repart in stage 2"
      "esp /boot/efi"
      "grub /dev/sda"
    ])
    (boots "growth switched off" (presetModules.uefi-ext4 ++ [ { installVia.grow = false; } ]) [
      "/ /dev/gpt-auto-root ext4 defaults"
      "root=gpt-auto"
    ])
    (boots "a preset of another disk size"
      (
        presetModules.uefi-ext4
        ++ [
          (disk [
            esp
            (with' root "size" "20G")
          ])
        ]
      )
      [
        "/ /dev/gpt-auto-root ext4 defaults"
        "root=gpt-auto"
      ]
    )
    (boots "installVia not enabled" (presetModules.bios-grub ++ [ { installVia.enable = false; } ]) [
      "failed: The ‘fileSystems’ option does not specify your root file system."
    ])

    # --- identity ---
    (tells "uefi-ext4" presetModules.uefi-ext4 "identity" "gpt-auto")
    (tells "uefi-ext4 with a scripted stage 1" (
      presetModules.uefi-ext4 ++ [ { boot.initrd.systemd.enable = lib.mkForce false; } ]
    ) "identity" "label")
    (tells "uefi-ext4 with a root of type linux" (uefi [
      (with' root "type" "linux")
    ]) "identity" "label")
    (tells "uefi-ext4 with GRUB" [
      grub
      { boot.loader.grub.efiSupport = true; }
      (preset "uefi-ext4")
    ] "identity" "label")
    (tells "own file systems" own "identity" "preserve")
    (boots "fixed ids"
      (
        uefi [
          {
            name = "swap space";
            type = "swap";
            size = "2G";
            uuid = "6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80";
            content.type = "swap";
          }
          (with' root "content" (ext4 "/" // { uuid = "44444444-4444-4444-8888-888888888888"; }))
        ]
        ++ [ (identity "preserve") ]
      )
      [
        "/ /dev/disk/by-uuid/44444444-4444-4444-8888-888888888888 ext4 ${grows}"
        "/boot /dev/disk/by-partlabel/ESP vfat defaults"
        "swap /dev/disk/by-partuuid/6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80"
        "repart root"
        "repart in stage 1"
      ]
    )
    (boots "a name with a space is escaped as udev does"
      (uefi [ (with' root "name" "my root") ] ++ [ (identity "partlabel") ])
      [
        "/ /dev/disk/by-partlabel/my\\x20root ext4 ${grows}"
        "/boot /dev/disk/by-partlabel/ESP vfat defaults"
        "repart root"
        "repart in stage 1"
      ]
    )
    (boots "gpt-auto finds swap, home and srv"
      (uefi [
        {
          name = "swap";
          type = "swap";
          size = "2G";
          content.type = "swap";
        }
        (with' root "size" "20G")
        {
          name = "srv";
          type = "srv";
          size = "5G";
          content = {
            type = "filesystem";
            format = "xfs";
            mountpoint = "/srv";
          };
        }
        {
          name = "home";
          type = "home";
          size = "100%";
          content = {
            type = "filesystem";
            format = "ext4";
            mountpoint = "/home";
          };
        }
      ])
      [
        "/ /dev/gpt-auto-root ext4 defaults"
        "repart home"
        "repart in stage 1"
        "root=gpt-auto"
      ]
    )
    (boots "several partitions of one type keep their sizes but the last"
      (uefi [
        {
          name = "root";
          type = "linux";
          size = "20G";
          content = ext4 "/";
        }
        {
          name = "data";
          type = "linux";
          size = "100%";
          content = {
            type = "filesystem";
            format = "xfs";
            label = "data";
            mountpoint = "/data";
          };
        }
      ])
      [
        "/ /dev/disk/by-label/nixos ext4 defaults"
        "/boot /dev/disk/by-label/ESP vfat defaults"
        "/data /dev/disk/by-label/data xfs ${grows}"
        "repart linux-generic 21474836480"
        "repart linux-generic"
        "repart in stage 1"
      ]
    )

    (boots "kernels on an XBOOTLDR partition"
      [
        systemdBoot
        (disk [
          (with' esp "content" (esp.content // { mountpoint = "/efi"; }))
          {
            name = "boot";
            type = "xbootldr";
            size = "1G";
            content = {
              type = "filesystem";
              format = "vfat";
              label = "BOOT";
              mountpoint = "/boot";
            };
          }
          root
        ])
      ]
      [
        "/ /dev/gpt-auto-root ext4 ${grows}"
        "repart root"
        "repart in stage 1"
        "root=gpt-auto"
        "esp /efi"
        "kernels /boot"
      ]
    )
    (boots "a root in memory"
      (
        uefi [ (with' root "content" (ext4 "/nix")) ]
        ++ [
          {
            fileSystems."/" = {
              device = "none";
              fsType = "tmpfs";
            };
          }
        ]
      )
      [
        "/ none tmpfs defaults"
        "/boot /dev/disk/by-label/ESP vfat defaults"
        "/nix /dev/disk/by-label/nixos ext4 ${grows}"
      ]
    )

    (
      let
        others = "mkdir $out/bin # a person's";
        config = of [ { system.systemBuilderCommands = lib.mkAfter "${others}\n"; } ];
        first = lib.head (lib.splitString "install-via" config.system.systemBuilderCommands);
      in
      same "what makes bin with a plain mkdir comes before" (lib.hasInfix others first) true
    )

    # --- what a configuration has of its own is kept ---
    (boots "own file systems" own [
      "/ /dev/disk/by-uuid/44444444-4444-4444-8888-888888888888 xfs defaults"
      "/boot /dev/disk/by-label/EFI vfat defaults"
      "swap /dev/disk/by-label/swap"
    ])
    (tells "own file systems" own "layout" null)
    (throws "a layout beside own file systems" (own ++ [ (preset "uefi-ext4") ]))
    (boots "a container" [ { boot.isContainer = true; } ] [ ])
    (tells "a container" [ { boot.isContainer = true; } ] "bootLoader" "none")
    (tells "a container" [ { boot.isContainer = true; } ] "espMountPoint" null)

    # --- boot loaders ---
    (tells "systemd-boot" own "bootLoader" "systemd-boot")
    (tells "lanzaboote" (
      own
      ++ [
        {
          boot.lanzaboote.enable = true;
          boot.loader.systemd-boot.enable = lib.mkForce false;
        }
      ]
    ) "bootLoader" "lanzaboote")
    (tells "limine" [
      {
        boot.loader.grub.enable = false;
        boot.loader.limine.enable = true;
      }
    ] "bootLoader" "limine")
    (tells "extlinux" [
      {
        boot.loader.grub.enable = false;
        boot.loader.generic-extlinux-compatible.enable = true;
      }
    ] "bootLoader" "extlinux")
    (tells "another loader" [
      {
        boot.loader.grub.enable = false;
        boot.loader.external.enable = true;
      }
    ] "bootLoader" "other")
    (tells "a loader of someone else's" [ { boot.loader.grub.enable = false; } ] "bootLoader" "other")
    (tells "a loader of someone else's" [ { boot.loader.grub.enable = false; } ] "espMountPoint" null)
    (tells "GRUB without disks" [ { boot.loader.grub.device = "nodev"; } ] "grubDevices" [ ])
    (tells "GRUB on two disks"
      [
        {
          boot.loader.grub.devices = [
            "/dev/sda"
            "/dev/sdb"
          ];
        }
      ]
      "grubDevices"
      [
        "/dev/sda"
        "/dev/sdb"
      ]
    )

    # --- disko ---
    (boots "disko sets file systems once" (disko (diskoDisk {
      ESP = diskoEsp;
      root = diskoRoot;
    })) [ "/ /dev/disk/by-partlabel/disk-main-root ext4 defaults" ])
    (tells "disko with ext4"
      (disko (diskoDisk {
        bios = {
          type = "EF02";
          size = "1M";
        };
        ESP = diskoEsp;
        a = {
          type = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709";
          label = "system";
          uuid = "6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80";
          attributes = [ 2 ];
          size = "100%";
          inherit (diskoRoot) content;
        };
      }))
      "layout"
      {
        disks.main = {
          device = "/dev/vda";
          partitions = [
            {
              name = "disk-main-bios";
              type = "bios-boot";
              size = "1M";
            }
            {
              name = "disk-main-ESP";
              type = "esp";
              size = "500M";
              content = {
                type = "filesystem";
                format = "vfat";
                mountpoint = "/boot";
                options = [ "umask=0077" ];
              };
            }
            {
              name = "system";
              type = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
              uuid = "6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80";
              attributes = [ 2 ];
              size = "100%";
              content = {
                type = "filesystem";
                format = "ext4";
                mountpoint = "/";
              };
            }
          ];
        };
      }
    )
    (tells "disko not read" (
      disko { zpool.tank = { }; } ++ [ { installVia.readDisko = false; } ]
    ) "layout" null)
    (tells "disko with nothing on a disk" (disko {
      nodev."/" = {
        fsType = "tmpfs";
      };
    }) "layout" null)
    (refuses "disko with LVM" (disko {
      lvm_vg.pool = { };
      disk = { };
    }) "disko.devices.lvm_vg.pool is nothing")
    (refuses "disko with ZFS" (disko { zpool.tank = { }; }) "disko.devices.zpool.tank is nothing")
    (refuses "disko with RAID" (disko { mdadm.boot = { }; }) "disko.devices.mdadm.boot is nothing")
    (refuses "disko with bcachefs" (disko {
      bcachefs_filesystems.fs = { };
    }) "disko.devices.bcachefs_filesystems.fs is nothing")
    (refuses "disko's old table" (disko {
      disk.main.content = {
        type = "table";
        format = "msdos";
      };
    }) "disko.devices.disk.main.content.type is \"table\"")
    (refuses "disko's physical volume" (disko (diskoDisk {
      root = diskoRoot;
      lvm = {
        size = "1G";
        content = {
          type = "lvm_pv";
          vg = "pool";
        };
      };
    })) "disko.devices.disk.main.content.partitions.lvm.content.type is \"lvm_pv\"")
    (refuses "disko's format" (disko (diskoDisk {
      root = diskoRoot // {
        content = diskoRoot.content // {
          format = "f2fs";
        };
      };
    })) "disko.devices.disk.main.content.partitions.root.content.format is \"f2fs\"")
    (refuses "disko's mkfs words" (disko (diskoDisk {
      root = diskoRoot // {
        content = diskoRoot.content // {
          extraArgs = [
            "-O"
            "casefold"
          ];
        };
      };
    })) "partitions.root.content.extraArgs holds ")
    (refuses "disko's code" (disko (diskoDisk {
      root = with' diskoRoot "type" "BF00";
    })) "partitions.root.type is \"BF00\"")
    (refuses "disko's sectors" (disko (diskoDisk {
      root = with' diskoRoot "size" "4096";
    })) "partitions.root.size is \"4096\"")
    (refuses "disko's start" (disko (diskoDisk {
      root = with' diskoRoot "start" "1G";
    })) "partitions.root.start is \"1G\"; write a size")
    (same "disko's start and end"
      (lib.mapAttrs (_: partition: partition.size) (
        lib.listToAttrs (
          map (partition: lib.nameValuePair partition.name partition)
            (of (
              disko (diskoDisk {
                a = removeAttrs diskoEsp [ "size" ] // {
                  start = "1M";
                  end = "129M";
                };
                b = {
                  start = "1G";
                  end = "3G";
                };
                c = {
                  end = "+512M";
                };
                d = diskoRoot // {
                  priority = 2000;
                  size = "0";
                  end = "-0";
                };
              })
            )).installVia.manifest.layout.disks.main.partitions
        )
      ))
      {
        disk-main-a = "128M";
        disk-main-b = "2G";
        disk-main-c = "512M";
        disk-main-d = "100%";
      }
    )
    (refuses "disko's end from the end of the disk" (disko (diskoDisk {
      root = diskoRoot // {
        size = "0";
        end = "-10G";
      };
    })) "partitions.root.end is \"-10G\"; write a size")
    (refuses "disko's end without a start" (disko (diskoDisk {
      ESP = diskoEsp;
      root = removeAttrs diskoRoot [ "size" ] // {
        end = "20G";
      };
    })) "partitions.root.start is \"0\"; write a size")
    (refuses "disko's hybrid MBR" (disko (diskoDisk {
      root = with' diskoRoot "hybrid" { mbrBootableFlag = true; };
    })) "partitions.root.hybrid asks")
    (refuses "disko's swap file" (disko (diskoDisk {
      root = diskoRoot // {
        content = {
          type = "btrfs";
          subvolumes."/".mountpoint = "/";
          subvolumes."/swap".swap.swapfile.size = "1G";
        };
      };
    })) "partitions.root.content.subvolumes.\"/swap\".swap asks")
    (refuses "disko's random encryption" (disko (diskoDisk {
      root = diskoRoot;
      swap = {
        size = "1G";
        content = {
          type = "swap";
          randomEncryption = true;
        };
      };
    })) "partitions.swap.content.randomEncryption makes")
    (refuses "disko and a layout" (
      disko (diskoDisk {
        root = diskoRoot;
      })
      ++ [ (preset "uefi-ext4") ]
    ) "both describe the disks")

    # --- layouts that are refused ---
    (throws "an unknown preset" [ (preset "uefi-zfs") ])
    (throws "an unknown identity" (presetModules.uefi-ext4 ++ [ (identity "magic") ]))
    (throws "an unknown format" (uefi [ (with' root "content" (ext4 "/" // { format = "zfs"; })) ]))
    (throws "a bit that is none" (uefi [ (with' root "attributes" [ 64 ]) ]))
    (refuses "a disk without partitions" [
      systemdBoot
      { installVia.layout.disks = { }; }
    ] "the layout names no disk")
    (refuses "two disks and one device" (
      uefi [ root ]
      ++ [
        {
          installVia.layout.disks.main.device = "/dev/sda";
          installVia.layout.disks.other.partitions = [
            {
              name = "data";
              size = "1G";
            }
          ];
        }
      ]
    ) "disk \"other\" has no device; say which")
    (refuses "two disks with the same device" (
      uefi [ root ]
      ++ [
        {
          installVia.layout.disks.main.device = "/dev/sda";
          installVia.layout.disks.other = {
            device = "/dev/sda";
            partitions = [
              {
                name = "data";
                size = "1G";
              }
            ];
          };
        }
      ]
    ) "\"/dev/sda\" is given to two disks")
    (refuses "a size that does not parse" (uefi [
      (with' root "size" "10Q")
    ]) "has size \"10Q\"; write a number")
    (refuses "a size of a half" (uefi [ (with' root "size" "50%") ]) "has size \"50%\"; write a number")
    (refuses "a size of nothing" (uefi [ (with' root "size" "0") ]) "has size \"0\"; write a number")
    (refuses "more than 100 %" (uefi [
      (with' (with' root "name" "a") "content" null)
      root
    ]) "add up to more than 100 %")
    (refuses "100% that is not last" (uefi [
      root
      {
        name = "data";
        size = "1G";
      }
    ]) "\"root\" has size 100% and others follow it")
    (refuses "a mount point twice" (uefi [
      (
        with' (with' root "name" "a") "size" "1G"
        // {
          content = ext4 "/" // {
            label = "other";
          };
        }
      )
      root
    ]) "the mount point \"/\" is used twice")
    (refuses "a mount point that is not absolute" (uefi [
      {
        name = "data";
        size = "1G";
        content = ext4 "data" // {
          label = "data";
        };
      }
      root
    ]) "mount point \"data\" is not absolute; start it with /")
    (refuses "a mount point with a slash at its end" (uefi [
      {
        name = "data";
        size = "1G";
        content = ext4 "/data/" // {
          label = "data";
        };
      }
      root
    ]) "\"/data/\" ends with a slash")
    (refuses "a mount point that climbs" (uefi [
      {
        name = "data";
        size = "1G";
        content = ext4 "/data/../x" // {
          label = "data";
        };
      }
      root
    ]) "holds an empty part, . or ..")
    (refuses "a label too long for ext4" (uefi [
      (with' root "content" (ext4 "/" // { label = "seventeen-letters"; }))
    ]) "label \"seventeen-letters\" of 17 bytes and ext4 allows 16")
    (refuses "a label too long for xfs" (uefi [
      (with' root "content" (
        ext4 "/"
        // {
          format = "xfs";
          label = "thirteen-long";
        }
      ))
    ]) "\"thirteen-long\" of 13 bytes and xfs allows 12")
    (refuses "a label too long for vfat" [
      systemdBoot
      (disk [
        (with' esp "content" (esp.content // { label = "EFI-SYSTEM-1"; }))
        root
      ])
    ] "\"EFI-SYSTEM-1\" of 12 bytes and vfat allows 11")
    (refuses "a partition name twice" (uefi [
      {
        name = "root";
        size = "1G";
      }
      root
    ]) "the partition name \"root\" is used twice")
    (refuses "a partition name too long" (uefi [
      (with' root "name" "a-name-that-has-thirty-seven-letters-")
    ]) "of 37 characters and a partition table holds 36")
    (refuses "a label twice" (uefi [
      {
        name = "data";
        size = "1G";
        content = ext4 "/data";
      }
      root
    ]) "the label \"nixos\" is used twice")
    (refuses "a type that is none" (uefi [
      {
        name = "data";
        type = "EF00";
        size = "1G";
      }
      root
    ]) "has type \"EF00\"; choose one of esp, ")
    (refuses "a PARTUUID that is none" (uefi [
      (with' root "uuid" "abc")
    ]) "has uuid \"abc\"; write it as 8-4-4-4-12")
    (refuses "a vfat UUID that is none" [
      systemdBoot
      (disk [
        (with' esp "content" (esp.content // { uuid = "44444444-4444-4444-8888-888888888888"; }))
        root
      ])
    ] "write it as ABCD-1234")
    (refuses "an ESP that is not vfat" [
      systemdBoot
      (disk [
        (with' esp "content" (ext4 "/boot" // { label = "boot"; }))
        root
      ])
    ] "which firmware reads as vfat")
    (refuses "a BIOS boot partition with content" (uefi [
      {
        name = "bios";
        type = "bios-boot";
        size = "1M";
        content.type = "swap";
      }
      root
    ]) "is where GRUB writes its code")
    (refuses "a file system without format" (uefi [
      (with' root "content" {
        type = "filesystem";
        label = "nixos";
        mountpoint = "/";
      })
    ]) "holds a file system without format; write one such as ext4")
    (refuses "swap with a mount point" (uefi [
      {
        name = "swap";
        size = "1G";
        content = {
          type = "swap";
          mountpoint = "/swap";
        };
      }
      root
    ]) "holds swap, which has no mountpoint; leave it out")
    (refuses "a subvolume among the options" (uefi [
      (with' root "content" (ext4 "/" // { options = [ "subvol=x" ]; }))
    ]) "chooses a subvolume by \"subvol=x\"")
    (refuses "two options in one" (uefi [
      (with' root "content" (ext4 "/" // { options = [ "noatime,discard" ]; }))
    ]) "list one option an entry")
    (refuses "no place for the system" (uefi [
      (with' root "content" (ext4 "/data"))
    ]) "nothing in the layout is mounted on /, /nix")
    (refuses "encryption around nothing" (uefi [
      {
        name = "data";
        size = "1G";
        content = {
          type = "luks";
          name = "data";
        };
      }
      root
    ]) "is encrypted and holds nothing")

    # --- an identity or a loader that does not fit ---
    (refuses "gpt-auto with GRUB" (
      presetModules.bios-grub
      ++ [
        (identity "gpt-auto")
        { boot.initrd.systemd.enable = true; }
      ]
    ) "gpt-auto, which needs a boot loader that tells where it was started from, and grub does not")
    (refuses "gpt-auto with a scripted stage 1" (
      presetModules.uefi-ext4
      ++ [
        (identity "gpt-auto")
        { boot.initrd.systemd.enable = lib.mkForce false; }
      ]
    ) "which the scripted stage 1 does not know")
    (refuses "gpt-auto and a root of type linux" (
      uefi [ (with' root "type" "linux") ] ++ [ (identity "gpt-auto") ]
    ) "is not on the first partition of type root")
    (refuses "gpt-auto and an encrypted root of another name" (uefi [
      (with' root "content" {
        type = "luks";
        name = "crypted";
        content = ext4 "/";
      })
    ]) "and the layout calls it \"crypted\"; name it root")
    (refuses "label without labels" (
      uefi [ (with' root "content" (removeAttrs (ext4 "/") [ "label" ])) ] ++ [ (identity "label") ]
    ) "partition \"root\" has no label and installVia.identity is label")
    (refuses "an identity without a layout" (
      own ++ [ (identity "partlabel") ]
    ) "there is no installVia.layout")
    (refuses "no ESP for systemd-boot" [
      systemdBoot
      (disk [ root ])
    ] "systemd-boot needs an EFI system partition")
    (refuses "an ESP elsewhere" (
      presetModules.uefi-ext4 ++ [ { boot.loader.efi.efiSysMountPoint = "/efi"; } ]
    ) "efiSysMountPoint is \"/efi\" and the layout mounts nothing there")
    (refuses "no partition for GRUB" [
      grub
      { boot.loader.grub.device = "/dev/sda"; }
      (disk [ root ])
    ] "add one of size 1M")
    (refuses "a tool that is not in the store" (
      own ++ [ { installVia.extraTools.mkfs = "/usr/bin/mkfs"; } ]
    ) "installVia.extraTools.mkfs is /usr/bin/mkfs, which is not in the store")

    # --- warnings ---
    (warns "an ESP too small for its generations" (
      presetModules.uefi-ext4 ++ [ { boot.loader.systemd-boot.configurationLimit = 30; } ]
    ) "partition \"ESP\" has 1G and 30 generations take up to 1920M")
    (warns "an ESP too small for any generations" [
      systemdBoot
      (disk [
        (with' esp "size" "100M")
        root
      ])
    ] "partition \"ESP\" has 100M and 4 generations take up to 256M")
    (boots "a hundred generations, which are no one's wish"
      (
        presetModules.uefi-ext4
        ++ [
          (identity "label")
          {
            boot.loader.systemd-boot.enable = lib.mkForce false;
            boot.loader.grub.enable = lib.mkForce true;
            boot.loader.grub.efiSupport = true;
          }
        ]
      )
      [
        "/ /dev/disk/by-label/nixos ext4 ${grows}"
        "/boot /dev/disk/by-label/ESP vfat umask=0077"
        "repart root"
        "repart in stage 1"
      ]
    )
    (warns "what gpt-auto does not find" (uefi [
      {
        name = "data";
        size = "1G";
        content = ext4 "/data" // {
          label = "data";
        };
      }
      root
    ]) "does not find partition \"data\"")
    (warns "a var partition under gpt-auto" (uefi [
      {
        name = "var";
        type = "var";
        size = "1G";
        content = ext4 "/var" // {
          label = "var";
        };
      }
      root
    ]) "does not find partition \"var\"")
  ];
}
