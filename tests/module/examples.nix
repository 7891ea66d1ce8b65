# The shapes of disko's own examples, by their names there: which are read, and why the others are not.
{
  nixpkgs ? null,
}:
let
  world = import ./evaluate.nix { inherit nixpkgs; };
  inherit (world) lib;
  inherit (import ./forms.nix { inherit world; }) reads explains;
  inherit (import ./disks.nix { inherit world; })
    disko
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

  onGrub = [
    {
      boot.loader.systemd-boot.enable = lib.mkForce false;
      boot.loader.grub.enable = lib.mkForce true;
    }
  ];
  subvolume = mountpoint: { inherit mountpoint; };
  swapFile = mountpoint: {
    inherit mountpoint;
    swap.swapfile.size = "20M";
  };
  firstEsp = esp // {
    size = "0";
    start = "1M";
    end = "128M";
  };
  table =
    partitions:
    holding "/dev/sda" {
      type = "table";
      format = "gpt";
      inherit partitions;
    };
  part = name: start: end: content: {
    inherit
      name
      start
      end
      content
      ;
    bootable = true;
  };
  pool = mountpoint: {
    type = "zpool";
    inherit mountpoint;
    datasets.data = {
      type = "zfs_fs";
      mountpoint = "/data";
    };
  };
  group = lvs: {
    type = "lvm_vg";
    inherit lvs;
  };
  volume = content: {
    size = "10M";
    inherit content;
  };
  array = content: {
    type = "mdadm";
    level = 1;
    inherit content;
  };
  arrayGpt = array {
    type = "gpt";
    partitions.primary = root;
  };
  ofArray = name: rest (member "mdraid" name);
  zfsDisk = gpt { zfs = rest (member "zfs" "zroot"); };
  twoOf = partitions: {
    one = gpt partitions;
    two = gpt partitions;
  };
  luks = name: content: {
    type = "luks";
    inherit name content;
    settings.allowDiscards = true;
  };

  espLine = "disk-main-ESP esp 500M vfat /boot umask=0077";
  rootLine = "disk-main-root linux 100% ext4 /";
  biosLine = "disk-main-boot bios-boot 1M";
  # A wish that fits few kernels is told, whoever wishes it.
  small =
    name: have:
    "installVia: partition \"${name}\" has ${have} and 4 generations take up to 256M; enlarge it or set a lower configurationLimit";
  swapFileIs =
    at:
    "installVia: disko.devices.disk.main.content.partitions.${at} is a swap file, which a clone has not until it is made there";
in
{
  results = [
    (reads "btrfs-only-root-subvolume"
      (disko {
        disk.main = gpt {
          ESP = firstEsp // {
            priority = 1;
          };
          root = rest {
            type = "btrfs";
            extraArgs = [ "-f" ];
            mountpoint = "/";
            mountOptions = [
              "compress=zstd"
              "noatime"
            ];
          };
        };
      })
      [
        "disk-main-ESP esp 127M vfat /boot umask=0077"
        "disk-main-root linux 100% btrfs / compress=zstd,noatime"
        (small "disk-main-ESP" "127M")
      ]
    )
    (reads "gpt-bios-compat"
      (
        disko {
          disk.main = gpt {
            boot = bios // {
              attributes = [ 0 ];
            };
            inherit root;
          };
        }
        ++ onGrub
      )
      [
        biosLine
        rootLine
      ]
    )
    (reads "gpt-name-with-whitespace"
      (disko {
        disk.main = gpt {
          ESP = esp;
          "name with spaces" = sized "100M" (vfat "/name with spaces");
          "name^with\\some@special#chars" = sized "100M" (vfat "/name^with\\some@special#chars");
          inherit root;
        };
      })
      [
        espLine
        "disk-main-name with spaces linux 100M vfat /name with spaces umask=0077"
        # Of 38 characters, so that it goes by its hash.
        "856a4094aa3d2029294ec84a1a36e0537ffa linux 100M vfat /name^with\\some@special#chars umask=0077"
        rootLine
      ]
    )
    (reads "gpt-unformatted"
      (disko {
        disk.main = gpt {
          ESP = esp;
          empty.size = "1G";
          inherit root;
        };
      })
      [
        espLine
        "disk-main-empty linux 1G"
        rootLine
      ]
    )
    (reads "hybrid, whose hundred generations are no one's wish"
      (
        disko {
          disk.main = gpt {
            boot = bios;
            ESP = esp // {
              size = "512M";
            };
            inherit root;
          };
        }
        ++ onGrub
        ++ [ { boot.loader.grub.efiSupport = true; } ]
      )
      [
        biosLine
        "disk-main-ESP esp 512M vfat /boot umask=0077"
        rootLine
      ]
    )
    (reads "hybrid-tmpfs-on-root"
      (disko {
        disk.main = gpt {
          boot = bios;
          ESP = esp;
          nix = rest (ext4 "/nix");
        };
        nodev."/" = {
          fsType = "tmpfs";
          mountOptions = [ "size=2G" ];
        };
      })
      [
        biosLine
        espLine
        "disk-main-nix linux 100% ext4 /nix"
      ]
    )
    (reads "long-device-name"
      (disko {
        disk.main =
          gpt {
            ESP = esp;
            inherit root;
          }
          // {
            name = "a-name-of-which-a-partition-table-cannot-hold-the-whole";
          };
      })
      [
        "b94228c6d32889010cf18f2f06804f64fca2 esp 500M vfat /boot umask=0077"
        "ddf768151dd8b3c6c5d8015a7ea6112c870d linux 100% ext4 /"
      ]
    )
    (reads "luks-interactive-login"
      (disko {
        disk.main = gpt {
          ESP = esp;
          luks = rest (luks "crypted" (ext4 "/") // { passwordFile = "/tmp/secret.key"; });
        };
      })
      [
        espLine
        "disk-main-luks linux 100% luks crypted ext4 /"
      ]
    )
    (reads "simple-efi"
      (disko {
        disk.main = gpt {
          ESP = esp;
          inherit root;
        };
      })
      [
        espLine
        rootLine
      ]
    )
    (reads "tmpfs"
      (disko {
        disk.main = gpt {
          ESP = esp;
          inherit root;
        };
        nodev."/tmp" = {
          fsType = "tmpfs";
          mountOptions = [ "size=200M" ];
        };
      })
      [
        espLine
        rootLine
      ]
    )
    (reads "with-lib"
      (
        disko {
          disk."/dev/vdb" =
            gpt {
              boot = bios;
              inherit root;
            }
            // {
              name = "_dev_vdb";
            };
        }
        ++ onGrub
      )
      [
        "disk-_dev_vdb-boot bios-boot 1M"
        "disk-_dev_vdb-root linux 100% ext4 /"
      ]
    )
    (reads "xfs-with-quota"
      (disko {
        disk.main = gpt {
          ESP = esp;
          root = rest (
            filesystem "xfs" "/"
            // {
              mountOptions = [
                "defaults"
                "pquota"
              ];
            }
          );
        };
      })
      [
        espLine
        "disk-main-root linux 100% xfs / pquota"
      ]
    )
    (reads "btrfs-subvolumes"
      (disko {
        disk.main = gpt {
          ESP = esp // {
            priority = 1;
          };
          root = rest {
            type = "btrfs";
            extraArgs = [ "-f" ];
            mountpoint = "/partition-root";
            swap.swapfile.size = "20M";
            subvolumes = {
              "/rootfs" = subvolume "/";
              "/home" = subvolume "/home";
              "/home/user" = { };
              "/swap" = swapFile "/.swapvol";
            };
          };
        };
      })
      [
        espLine
        "disk-main-root linux 100% btrfs /partition-root [/home /home] [/home/user] [/rootfs /] [/swap /.swapvol]"
        (swapFileIs "root.content.swap")
        (swapFileIs "root.content.subvolumes.\"/swap\".swap")
      ]
    )
    (reads "luks-btrfs-subvolumes"
      (disko {
        disk.main = gpt {
          ESP = esp;
          luks = rest (
            luks "crypted" {
              type = "btrfs";
              subvolumes = {
                "/root" = subvolume "/";
                "/nix" = subvolume "/nix";
                "/swap" = swapFile "/.swapvol";
              };
            }
          );
        };
      })
      [
        espLine
        "disk-main-luks linux 100% luks crypted btrfs [/nix /nix] [/root /] [/swap /.swapvol]"
        (swapFileIs "luks.content.content.subvolumes.\"/swap\".swap")
      ]
    )
    (reads "negative-size" (disko {
      disk.main = gpt {
        nix = {
          end = "-10M";
          content = ext4 "/";
        };
      };
    }) [ "disk-main-nix linux -10M ext4 /" ])
    (reads "swap"
      (disko {
        disk.main = gpt {
          ESP = esp;
          root = {
            end = "-1G";
            content = ext4 "/";
          };
          encryptedSwap = sized "10M" {
            type = "swap";
            randomEncryption = true;
            priority = 100;
          };
          plainSwap = rest {
            type = "swap";
            discardPolicy = "both";
            resumeDevice = true;
          };
        };
      })
      [
        espLine
        "disk-main-encryptedSwap swap 10M"
        "disk-main-root linux -1G ext4 /"
        "disk-main-plainSwap swap 100% swap"
      ]
    )
    (explains "f2fs" (disko {
      disk.main = gpt {
        ESP = esp // {
          size = "0";
          end = "500M";
        };
        root = {
          end = "-0";
          content = filesystem "f2fs" "/";
        };
      };
    }) "disko.devices.disk.main.content.partitions.root.content.format is \"f2fs\"")
    (explains "hybrid-mbr" (disko {
      disk.main = gpt {
        firmware = sized "32M" (vfat null) // {
          priority = 1;
          type = "EF00";
          hybrid.mbrPartitionType = "0x0c";
        };
        ESP = esp;
        inherit root;
      };
    }) "disko.devices.disk.main.content.partitions.firmware.hybrid asks for an MBR beside the GPT")
    (reads "legacy-table"
      (disko {
        disk.main = table [
          (part "ESP" "1M" "500M" (vfat "/boot"))
          (part "root" "500M" "100%" (ext4 "/"))
        ];
      })
      [
        "ESP esp 499000000 vfat /boot umask=0077"
        "root linux 100% ext4 /"
      ]
    )
    (reads "legacy-table-with-whitespace"
      (disko {
        disk.main = table [
          (part "ESP" "1MiB" "301MiB" (vfat "/boot"))
          (part "name with spaces" "301MiB" "401MiB" (ext4 "/name_with_spaces"))
          (part "root" "401MiB" "100%" (ext4 "/"))
        ];
      })
      [
        "ESP esp 300M vfat /boot umask=0077"
        "name with spaces linux 100M ext4 /name_with_spaces"
        "root linux 100% ext4 /"
      ]
    )
    (explains "luks-btrfs-raid" (disko {
      disk.disk1 = gpt {
        ESP = esp;
        crypt_p1 = rest (luks "p1" null);
      };
      disk.disk2 = gpt {
        crypt_p2 = rest (
          luks "p2" {
            type = "btrfs";
            extraArgs = [
              "-d raid1"
              "/dev/mapper/p1"
            ];
            subvolumes."/root" = subvolume "/";
          }
        );
      };
    }) "partitions.crypt_p2.content.content.extraArgs names /dev/mapper/p1, and the installer makes")
    (explains "bcachefs" (disko {
      disk.vdb = gpt {
        boot = esp;
        data = rest (member "bcachefs" "fs");
      };
      disk.vdc = gpt { data = rest (member "bcachefs" "fs"); };
      bcachefs_filesystems.fs = {
        type = "bcachefs_filesystem";
        subvolumes.root.mountpoint = "/";
      };
    }) "disko.devices.bcachefs_filesystems.fs, which holds /, is a bcachefs file system")
    (explains "boot-raid1" (disko {
      disk = twoOf {
        boot = bios;
        ESP = sized "500M" (member "mdraid" "boot");
        mdadm = ofArray "raid1";
      };
      mdadm.boot = array (vfat "/boot");
      mdadm.raid1 = arrayGpt;
    }) "disko.devices.mdadm.raid1, which holds /, is a RAID array")
    (explains "mdadm" (disko {
      disk = twoOf {
        boot = bios;
        mdadm = ofArray "raid1";
      };
      mdadm.raid1 = arrayGpt;
    }) "disko.devices.mdadm.raid1, which holds /, is a RAID array")
    (explains "mdadm-raid0" (disko {
      disk = twoOf { mdadm = ofArray "raid0"; };
      mdadm.raid0 = arrayGpt // {
        level = 0;
      };
    }) "disko.devices.mdadm.raid0, which holds /, is a RAID array")
    (explains "mdadm-raid5-args" (disko {
      disk = twoOf { mdadm = ofArray "raid5"; };
      mdadm.raid5 = arrayGpt // {
        level = 5;
        extraArgs = [ "--assume-clean" ];
      };
    }) "disko.devices.mdadm.raid5, which holds /, is a RAID array")
    (explains "luks-on-mdadm" (disko {
      disk = twoOf {
        ESP = sized "500M" (member "mdraid" "boot");
        mdadm = ofArray "raid1";
      };
      mdadm.boot = array (vfat "/boot");
      mdadm.raid1 = array (luks "crypted" (ext4 "/"));
    }) "disko.devices.mdadm.raid1, which holds /, is a RAID array")
    (explains "complex" (disko {
      disk.disk0 = gpt { ESP = firstEsp; };
      disk.disk1 = gpt { luks = rest (luks "crypted1" (member "lvm_pv" "pool")); };
      disk.disk2 = gpt { luks = rest (luks "crypted2" (member "lvm_pv" "pool")); };
      mdadm.raid1 = array {
        type = "gpt";
        partitions.bla = rest (ext4 "/ext4_mdadm_lvm");
      };
      lvm_vg.pool = group {
        root = volume (ext4 "/ext4_on_lvm");
        raid1 = volume (member "mdraid" "raid1");
        zfs1 = volume (member "zfs" "zroot");
      };
      zpool.zroot = pool "/";
    }) "disko.devices.zpool.zroot, which holds /, is a ZFS pool")
    (explains "luks-lvm" (disko {
      disk.main = gpt {
        ESP = esp;
        luks = rest (luks "crypted" (member "lvm_pv" "pool"));
      };
      lvm_vg.pool = group {
        root = volume (ext4 "/");
        home = volume (ext4 "/home");
        raw.size = "10M";
      };
    }) "disko.devices.lvm_vg.pool, which holds /, is an LVM volume group")
    (explains "lvm-raid" (disko {
      disk = twoOf {
        boot = sized "500M" (member "mdraid" "boot");
        primary = rest (member "lvm_pv" "pool");
      };
      mdadm.boot = array (vfat "/boot");
      lvm_vg.pool = group { root = volume (ext4 "/") // { lvm_type = "mirror"; }; };
    }) "disko.devices.lvm_vg.pool, which holds /, is an LVM volume group")
    (explains "lvm-sizes-sort" (disko {
      disk.one = gpt {
        boot = esp;
        primary = rest (member "lvm_pv" "pool");
      };
      lvm_vg.pool = group {
        aaa.size = "1M";
        root = volume (ext4 "/");
        home = volume (ext4 "/home") // {
          size = "100%FREE";
        };
      };
    }) "disko.devices.lvm_vg.pool, which holds /, is an LVM volume group")
    (explains "lvm-thin" (disko {
      disk.main = gpt {
        ESP = esp;
        primary = rest (member "lvm_pv" "mainpool");
      };
      lvm_vg.mainpool = group {
        thinpool = {
          size = "100M";
          lvm_type = "thin-pool";
        };
        root = volume (ext4 "/") // {
          lvm_type = "thinlv";
          pool = "thinpool";
        };
      };
    }) "disko.devices.lvm_vg.mainpool, which holds /, is an LVM volume group")
    (reads "non-root-zfs"
      (disko {
        disk.main = gpt {
          ESP = esp;
          inherit root;
        };
        disk.y = gpt { zfs = rest (member "zfs" "storage"); };
        disk.z = gpt { zfs = rest (member "zfs" "storage"); };
        zpool.storage = pool "/storage";
      })
      [
        espLine
        rootLine
        "installVia: the layout is that of disko.devices.disk.main alone, and a clone has no disk.y, disk.z, zpool.storage of its own; what they mount needs nofail for it to boot without them"
      ]
    )
    (explains "zfs" (disko {
      disk.x = gpt {
        ESP = esp;
        zfs = rest (member "zfs" "zroot");
      };
      disk.y = zfsDisk;
      zpool.zroot = pool "/";
    }) "disko.devices.zpool.zroot, which holds /, is a ZFS pool")
    (explains "zfs-encrypted-root" (disko {
      disk.root = gpt {
        ESP = esp;
        zfs = rest (member "zfs" "zroot");
      };
      zpool.zroot = {
        type = "zpool";
        datasets.root = {
          type = "zfs_fs";
          options.encryption = "aes-256-gcm";
          mountpoint = "/";
        };
        datasets."root/swap" = {
          type = "zfs_volume";
          size = "10M";
          content.type = "swap";
        };
      };
    }) "disko.devices.zpool.zroot, which holds /, is a ZFS pool")
    (reads "zfs-over-legacy"
      (disko {
        disk.main = gpt {
          ESP = esp;
          inherit root;
        };
        disk.disk2 = holding "/dev/vdc" (member "zfs" "zroot");
        zpool.zroot.datasets = {
          root.options.mountpoint = "none";
          "root/zfs_fs".mountpoint = "/zfs_fs";
        };
      })
      [
        espLine
        rootLine
        "installVia: the layout is that of disko.devices.disk.main alone, and a clone has no disk.disk2, zpool.zroot of its own; what they mount needs nofail for it to boot without them"
      ]
    )
    (explains "zfs-with-vdevs" (disko {
      disk.data1 = gpt {
        ESP = esp;
        zfs = rest (member "zfs" "zroot");
      };
      disk.data2 = zfsDisk;
      disk.spare = zfsDisk;
      zpool.zroot = pool "/" // {
        mode.topology = {
          type = "topology";
          vdev = [
            { members = [ "data1" ]; }
            { members = [ "data2" ]; }
          ];
          spare = [ "spare" ];
        };
      };
    }) "disko.devices.zpool.zroot, which holds /, is a ZFS pool")
    (explains "multi-device-no-deps" (disko {
      disk.disk0 = gpt { nix = rest (ext4 "/a"); };
      disk.disk1 = gpt { nix = rest (ext4 "/b"); };
    }) "disko.devices mounts nothing on /, /nix or /nix/store")
  ];
}
