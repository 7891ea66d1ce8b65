# What is read of disko.devices, word by word, and what of it is told.
{
  nixpkgs ? null,
}:
let
  world = import ./evaluate.nix { inherit nixpkgs; };
  inherit (import ./forms.nix { inherit world; })
    boots
    tells
    reads
    refuses
    explains
    ;
  disks = import ./disks.nix { inherit world; };
  inherit (disks)
    disko
    diskoDisk
    gpt
    holding
    filesystem
    ext4
    vfat
    member
    rest
    sized
    bios
    esp
    root
    ;

  # A root of which one thing is different.
  rootWith = change: { root = root // change; };
  rootOf = format: change: { root = rest (filesystem format "/" // change); };
  btrfs = change: { root = rest ({ type = "btrfs"; } // change); };
  btrfsWith = arguments: btrfs {
    extraArgs = arguments;
    mountpoint = "/";
  };
  swapWith = change: {
    inherit root;
    swap = sized "1G" ({ type = "swap"; } // change);
  };
  luksWith = change: {
    root = rest (
      {
        type = "luks";
        name = "crypted";
        content = ext4 "/";
      }
      // change
    );
  };
  table =
    partitions:
    disko {
      disk.main = holding "/dev/sda" {
        type = "table";
        inherit partitions;
      };
    };
  part = start: end: content: {
    inherit start end content;
    name = content.format or content.type;
  };
  beside =
    others:
    disko (
      {
        disk = {
          main = gpt { inherit root; };
        }
        // others.disk or { };
      }
      // removeAttrs others [ "disk" ]
    );

  at = "installVia: disko.devices.disk.main.content.partitions";
  rootLine = "disk-main-root linux 100% ext4 /";
  notPassedOn =
    place: words:
    "${at}.${place} holds ${builtins.toJSON words}, which the installer does not pass on";
  alone =
    names:
    "installVia: the layout is that of disko.devices.disk.main alone, and a clone has no ${names} of its own; what they mount needs nofail for it to boot without them";
in
{
  manifests = {
    disko-luks-btrfs = disko {
      disk.main = gpt {
        ESP = esp;
        swap = sized "8G" {
          type = "swap";
          extraArgs = [
            "-L"
            "swap"
          ];
          resumeDevice = true;
        };
        luks = rest {
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
    };
    disko-swap = diskoDisk {
      ESP = esp;
      root = {
        end = "-1G";
        content = ext4 "/";
      };
      encryptedSwap = sized "10M" {
        type = "swap";
        randomEncryption = true;
      };
      plainSwap = rest { type = "swap"; };
    };
    disko-zfs = disko {
      disk.main = gpt {
        ESP = esp;
        zfs = rest (member "zfs" "tank");
      };
      zpool.tank.datasets.root.mountpoint = "/";
    };
  };

  results = [
    (boots "disko sets file systems once" (diskoDisk {
      ESP = esp;
      inherit root;
    }) [ "/ /dev/disk/by-partlabel/disk-main-root ext4 defaults" ])
    (tells "disko with ext4"
      (diskoDisk {
        inherit bios;
        ESP = esp;
        a = rest (ext4 "/") // {
          type = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709";
          label = "system";
          uuid = "6e0a3c5e-0f4a-4f5a-9f0b-0a4c5d6e7f80";
          attributes = [ 2 ];
        };
      })
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
      disko { zpool.tank.mountpoint = "/"; } ++ [ { installVia.readDisko = false; } ]
    ) "layoutReason" null)
    (boots "disko not read" (
      disko { zpool.tank.mountpoint = "/"; } ++ [ { installVia.readDisko = false; } ]
    ) [ "/ /dev/disk/by-partlabel/disk-main-root ext4 defaults" ])
    (tells "disko with nothing on a disk" (disko {
      nodev."/" = {
        fsType = "tmpfs";
      };
    }) "layoutReason" null)
    (boots "disko that cannot be laid out"
      (disko { zpool.tank.mountpoint = "/"; })
      [
        "/ /dev/disk/by-partlabel/disk-main-root ext4 defaults"
        "installVia: disko.devices.zpool.tank, which holds /, is a ZFS pool, and the installer makes none; the layout of a clone is derived from fstab instead, and installVia.readDisko = false asks for that without a warning"
      ]
    )
    (refuses "disko and a layout" (diskoDisk { inherit root; } ++ [ { installVia.preset = "uefi-ext4"; } ])
      "both describe the disks"
    )

    # --- which disk ---
    (reads "a second disk that boot does without"
      (beside {
        disk.data = gpt {
          data = rest (ext4 "/data" // { mountOptions = [ "defaults,nofail" ]; });
        };
      })
      [
        rootLine
        (alone "disk.data")
      ]
    )
    (explains "a second disk that is mounted" (beside {
      disk.data = gpt { data = rest (ext4 "/data"); };
    }) "disko.devices.disk.data is a disk beside disko.devices.disk.main, and the system needs its /data to boot")
    (explains "a second disk that is opened" (beside {
      disk.data = gpt {
        data = rest {
          type = "luks";
          name = "data";
          content = member "zfs" "tank";
        };
      };
    }) "the system needs its /dev/mapper/data to boot")
    (explains "the ESP on another disk" (beside {
      disk.boot = gpt { ESP = esp; };
    }) "the system needs its /boot to boot")
    (explains "/nix in LVM beside the root" (beside {
      lvm_vg.pool.lvs.nix = sized "10G" (ext4 "/nix");
    }) "disko.devices.lvm_vg.pool is an LVM volume group beside disko.devices.disk.main, and the system needs its /nix")
    (reads "a volume group on the disk of the root"
      (disko {
        disk.main = gpt {
          data = sized "8G" (member "lvm_pv" "pool") // {
            type = "8E00";
          };
          inherit root;
        };
        lvm_vg.pool.lvs.data = sized "1G" (ext4 "/data");
      })
      [
        "disk-main-data e6d6d379-f507-44c2-a23c-238f2a3df928 8G"
        rootLine
        "${at}.data.content is a part of LVM, which the installer does not make; the partition stays empty"
        (alone "lvm_vg.pool")
      ]
    )
    (explains "a disk without partitions" (disko {
      disk.main = holding "/dev/vda" (ext4 "/");
    }) "disko.devices.disk.main.content.type is \"filesystem\", and the installer writes a GPT")
    (explains "disko's MBR" (disko {
      disk.main = holding "/dev/vda" {
        type = "table";
        format = "msdos";
        partitions = [ (part "1MiB" "100%" (ext4 "/")) ];
      };
    }) "disko.devices.disk.main.content.format is \"msdos\", and the installer writes GPT")

    # --- content ---
    (explains "disko's format" (diskoDisk (rootOf "f2fs" { })) "partitions.root.content.format is \"f2fs\"")
    (explains "a content of another kind" (diskoDisk {
      inherit root;
      other = sized "1G" { type = "bcache"; };
    }) "partitions.other.content.type is \"bcache\"")
    (explains "LVM in LUKS" (diskoDisk (
      luksWith { content = member "lvm_pv" "pool"; }
      // {
        other = sized "1G" (ext4 "/nix");
      }
    )) "partitions.root.content.content is a part of LVM, which the installer does not make")
    (explains "LUKS around nothing" (diskoDisk {
      inherit root;
      other = sized "1G" {
        type = "luks";
        name = "other";
      };
    }) "partitions.other.content.content is missing")
    (explains "a random key in LUKS" (diskoDisk (luksWith { } // {
      other = sized "1G" {
        type = "luks";
        name = "other";
        content = {
          type = "swap";
          randomEncryption = true;
        };
      };
    })) "partitions.other.content.content is made anew at each boot")
    (explains "a LUKS header elsewhere" (diskoDisk (luksWith {
      settings.header = "/dev/disk/by-partlabel/header";
    })) "partitions.root.content.settings.header is elsewhere")
    (reads "the arguments of cryptsetup"
      (diskoDisk (luksWith {
        extraFormatArgs = [
          "--label crypt"
          "--iter-time 1"
          "--pbkdf argon2id"
        ];
      }))
      [
        "disk-main-root linux 100% luks crypted crypt ext4 /"
        (notPassedOn "root.content.extraFormatArgs" "--iter-time 1 --pbkdf argon2id")
      ]
    )
    (reads "swap with a random key" (diskoDisk (swapWith {
      randomEncryption = true;
    })) [
      "disk-main-swap swap 1G"
      rootLine
    ])
    (reads "the arguments of mkswap" (diskoDisk (swapWith {
      extraArgs = [
        "--label=swap"
        "-U 44444444-4444-4444-8888-888888888888"
      ];
    })) [
      "disk-main-swap swap 1G swap swap 44444444-4444-4444-8888-888888888888"
      rootLine
    ])

    # --- the arguments of mkfs ---
    (reads "several words in one" (diskoDisk (btrfsWith [
      "-L nixos"
      "-f"
    ])) [ "disk-main-root linux 100% btrfs nixos /" ])
    (reads "a quoted label" (diskoDisk (btrfsWith [ "-f -L 'my disk'" ])) [
      "disk-main-root linux 100% btrfs my disk /"
    ])
    (reads "a label of several words" (diskoDisk (rootOf "ext4" {
      extraArgs = [
        "-L"
        "my disk"
      ];
    })) [ "disk-main-root linux 100% ext4 my disk /" ])
    (reads "long flags"
      (diskoDisk (btrfsWith [
        "--force"
        "--label=nixos"
        "--csum xxhash"
        "-R"
        "free-space-tree"
      ]))
      [
        "disk-main-root linux 100% btrfs nixos /"
        (notPassedOn "root.content.extraArgs" "--csum xxhash -R free-space-tree")
      ]
    )
    (reads "what is kept for root" (diskoDisk (rootOf "ext4" {
      extraArgs = [
        "-F"
        "-m 1"
        "-Lnixos"
      ];
    })) [ "disk-main-root linux 100% ext4 nixos /" ])
    (reads "features" (diskoDisk (rootOf "ext4" {
      extraArgs = [
        "-O"
        "casefold"
        "-U"
        "random"
      ];
    })) [
      rootLine
      (notPassedOn "root.content.extraArgs" "-O casefold -U random")
    ])
    (reads "ids of xfs and vfat"
      (diskoDisk (
        rootOf "xfs" {
          extraArgs = [
            "-m uuid=44444444-4444-4444-8888-888888888888"
            "-m crc=1"
          ];
        }
        // {
          ESP = esp // {
            content = vfat "/boot" // {
              extraArgs = [
                "-F"
                "32"
                "-n"
                "BOOT"
                "-i"
                "ABCD1234"
              ];
            };
          };
        }
      ))
      [
        "disk-main-ESP esp 500M vfat BOOT ABCD-1234 /boot umask=0077"
        "disk-main-root linux 100% xfs 44444444-4444-4444-8888-888888888888 /"
        (notPassedOn "root.content.extraArgs" "-m crc=1")
      ]
    )
    (explains "a file system of two devices" (diskoDisk (btrfsWith [
      "-d raid1 -m raid1"
      "/dev/disk/by-partlabel/other"
    ])) "partitions.root.content.extraArgs names /dev/disk/by-partlabel/other, and the installer")
    (explains "a label that is too long" (diskoDisk (btrfsWith [
      "-L"
      (builtins.concatStringsSep "" (builtins.genList (_: "x") 256))
    ])) "of 256 bytes and btrfs allows 255")

    # --- mount options and subvolumes ---
    (reads "options joined by commas" (diskoDisk (rootOf "ext4" {
      mountOptions = [
        "defaults,noatime"
        "discard, commit=60"
      ];
    })) [ "disk-main-root linux 100% ext4 / noatime,discard,commit=60" ])
    (reads "a subvolume that is chosen once more"
      (diskoDisk (btrfs {
        subvolumes = {
          nix = {
            mountpoint = "/nix";
            mountOptions = [
              "subvol=nix"
              "noatime"
            ];
          };
          "/root/" = {
            mountpoint = "/";
            mountOptions = [ "subvol=/root" ];
          };
        };
      }))
      [ "disk-main-root linux 100% btrfs [/root /] [nix /nix noatime]" ]
    )
    (explains "another subvolume than that" (diskoDisk (btrfs {
      subvolumes.nix = {
        mountpoint = "/";
        mountOptions = [ "subvol=root" ];
      };
    })) "disko.devices.disk.main: partition \"disk-main-root\" of disk \"main\" chooses a subvolume by \"subvol=root\"")
    (reads "the top level as a subvolume"
      (diskoDisk (btrfs {
        subvolumes."/" = {
          mountpoint = "/";
          mountOptions = [ "noatime" ];
          extraArgs = [ "-i 0/5" ];
        };
        subvolumes."/swap".swap.swapfile.size = "1G";
      }))
      [
        "disk-main-root linux 100% btrfs / noatime [/swap]"
        "${at}.root.content.subvolumes.\"/swap\".swap is a swap file, which a clone has not until it is made there"
        "${at}.root.content.subvolumes.\"/\".extraArgs is not passed on by the installer"
      ]
    )

    # --- types and sizes ---
    (reads "codes and GUIDs"
      (diskoDisk {
        a = {
          type = "bf01";
          size = "1G";
        };
        b = {
          type = "c001";
          size = "1G";
        };
        ESP = esp // {
          type = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
        };
        inherit root;
      })
      [
        "disk-main-ESP esp 500M vfat /boot umask=0077"
        "disk-main-a 6a898cc3-1dd2-11b2-99a6-080020736631 1G"
        "disk-main-b linux 1G"
        rootLine
        "${at}.b.type is \"c001\", which has no GUID here, so that the installer makes a partition of type 8300"
      ]
    )
    (explains "disko's sectors" (diskoDisk (rootWith { size = "4096"; }))
      "partitions.root.size is \"4096\"; write a size"
    )
    (explains "disko's start" (diskoDisk (rootWith { start = "1G"; }))
      "partitions.root.start is \"1G\"; write a size"
    )
    (explains "no size" (diskoDisk {
      root.content = ext4 "/";
    }) "partitions.root has neither size nor end; write a size")
    (explains "a size that nobody wrote" (diskoDisk (rootWith {
      size = "0";
      end = "+0";
    })) "partitions.root has neither size nor end; write a size")
    (explains "an end without a start" (diskoDisk {
      ESP = esp;
      root = {
        end = "20G";
        content = ext4 "/";
      };
    }) "partitions.root has an end and neither start nor size; write its size")
    (reads "starts and ends"
      (diskoDisk {
        a = {
          start = "1M";
          end = "129M";
        };
        b = {
          start = "1G";
          end = "3G";
        };
        c.end = "+512M";
        root = {
          priority = 2000;
          size = "0";
          end = "-0";
          content = ext4 "/";
        };
      })
      [
        "disk-main-a linux 128M"
        "disk-main-b linux 2G"
        "disk-main-c linux 512M"
        rootLine
      ]
    )
    (reads "an end before that of the disk" (diskoDisk (swapWith { priority = 1; } // {
      root = {
        end = "-8GiB";
        content = ext4 "/";
      };
      swap = rest { type = "swap"; };
    })) [
      "disk-main-root linux -8G ext4 /"
      "disk-main-swap swap 100% swap"
    ])
    (explains "two ends before that of the disk" (diskoDisk {
      a.end = "-8G";
      root = {
        end = "-4G";
        content = ext4 "/";
      };
    }) "partition \"disk-main-root\" is the second that says what it leaves of the disk")
    (explains "more than is left" (diskoDisk {
      root = {
        end = "-1G";
        content = ext4 "/";
      };
      swap = sized "2G" { type = "swap"; };
    }) "partition \"disk-main-root\" leaves 1G of the disk and what follows it takes 2G")
    (explains "100% that is not last" (diskoDisk {
      root = root // {
        priority = 1;
      };
      swap = sized "2G" { type = "swap"; };
    }) "has size 100% and others follow it")
    (explains "a partition too small" (diskoDisk {
      inherit root;
      log = sized "100M" (filesystem "xfs" "/var/log");
    }) "partition \"disk-main-log\" of disk \"main\" has size 100M and xfs needs at least 300M")

    # --- the older table ---
    (reads "a table as the manual of NixOS has it"
      (table [
        (part "512MiB" "-8GiB" (ext4 "/"))
        (part "-8GiB" "100%" { type = "swap"; })
        (part "1MiB" "512MiB" (vfat "/boot") // { flags = [ "esp" ]; })
      ])
      [
        "vfat esp 511M vfat /boot umask=0077"
        "ext4 linux -8G ext4 /"
        "swap swap 100% swap"
      ]
    )
    (explains "a table in sectors" (table [
      (part "2048s" "100%" (ext4 "/"))
    ]) "disko.devices.disk.main.content.partitions.1 is from \"2048s\" to \"100%\"; write both with MiB")
  ];
}
