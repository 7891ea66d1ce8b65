# The table: configurations, and what the module makes of them. Each case becomes { name, ok, got }.
{
  nixpkgs ? null,
}:
let
  world = import ./evaluate.nix { inherit nixpkgs; };
  inherit (world) lib;

  inherit (import ./forms.nix { inherit world; })
    of
    same
    boots
    tells
    refuses
    warns
    throws
    ;

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

  disko = import ./disko.nix { inherit nixpkgs; };
  examples = import ./examples.nix { inherit nixpkgs; };
in
rec {
  manifests = lib.mapAttrs (_: modules: (of modules).installVia.manifest) (
    presetModules // disko.manifests // { own-file-systems = own; }
  );

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

  results = rows ++ disko.results ++ examples.results;

  rows = [
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

    (boots "swap at the end of the disk"
      (uefi [
        (with' root "size" "-8G")
        {
          name = "swap";
          type = "swap";
          size = "100%";
          content.type = "swap";
        }
      ])
      [
        "/ /dev/gpt-auto-root ext4 defaults"
        "repart swap"
        "repart in stage 1"
        "root=gpt-auto"
      ]
    )
    (boots "a root before one of its type that grows"
      (
        uefi [
          (with' root "size" "-8G")
          {
            name = "other";
            type = "root";
            size = "100%";
            content = ext4 "/data" // {
              label = "data";
            };
          }
        ]
        ++ [ (identity "label") ]
      )
      [
        "/ /dev/disk/by-label/nixos ext4 defaults"
        "/boot /dev/disk/by-label/ESP vfat defaults"
        "/data /dev/disk/by-label/data ext4 ${grows}"
        "repart root"
        "repart root"
        "repart in stage 1"
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
    (refuses "two partitions that leave the end of the disk" (uefi [
      {
        name = "data";
        size = "-8G";
      }
      (with' root "size" "-4G")
    ]) "partition \"root\" is the second that says what it leaves of the disk")
    (refuses "less left than follows" (uefi [
      (with' root "size" "-1G")
      {
        name = "data";
        size = "2G";
      }
    ]) "partition \"root\" leaves 1G of the disk and what follows it takes 2G")
    (refuses "a partition too small for its format" (uefi [
      {
        name = "data";
        size = "15M";
        content = ext4 "/data" // {
          label = "data";
        };
      }
      root
    ]) "has size 15M and ext4 needs at least 16M")
    (refuses "an empty label" (uefi [
      (with' root "content" (ext4 "/" // { label = ""; }))
    ]) "has an empty label; leave it out")
    (refuses "a letter that vfat does not take" [
      systemdBoot
      (disk [
        (with' esp "content" (esp.content // { label = "E+F"; }))
        root
      ])
    ] "label \"E+F\" with a character that vfat does not take")
    (refuses "a subvolume that climbs" (uefi [
      (with' root "content" {
        type = "btrfs";
        label = "nixos";
        mountpoint = "/";
        subvolumes = [ { path = "a/../b"; } ];
      })
    ]) "a subvolume with the path \"a/../b\"")
    (refuses "a subvolume twice" (uefi [
      (with' root "content" {
        type = "btrfs";
        label = "nixos";
        mountpoint = "/";
        subvolumes = [
          { path = "a"; }
          { path = "/a"; }
        ];
      })
    ]) "lists the subvolume \"a\" twice")
    (refuses "a name that the device mapper does not take" (uefi [
      {
        name = "data";
        size = "1G";
        content = {
          type = "luks";
          name = "my data";
          content.type = "swap";
        };
      }
      root
    ]) "is opened as \"my data\"; write at most 127")
    (boots "a name of 36 letters that take 72 bytes"
      (uefi [ (with' root "name" (lib.concatStringsSep "" (builtins.genList (_: "ä") 36))) ])
      [
        "/ /dev/gpt-auto-root ext4 ${grows}"
        "repart root"
        "repart in stage 1"
        "root=gpt-auto"
      ]
    )
    (refuses "a name of letters that take two units" (uefi [
      (with' root "name" (lib.concatStringsSep "" (builtins.genList (_: "😀") 19)))
    ]) "has a name of 38 characters and a partition table holds 36")
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
