# From a layout to the options of NixOS that mount it, open it and let it grow.
{ lib }:
let
  layouts = import ./layout.nix { inherit lib; };
  identities = import ./identity.nix { inherit lib; };
  size = import ./size.nix { inherit lib; };

  growable = [
    "ext3"
    "ext4"
    "xfs"
    "btrfs"
  ];

  takesRest = place: place.isLast && place.partition.size == size.rest;

  # A file system with many subvolumes grows once.
  isFirstMount =
    layout: mount:
    let
      isBeside = other: other.diskName == mount.diskName && other.index == mount.index;
    in
    (lib.findFirst isBeside null (layouts.mounts layout)).mountpoint == mount.mountpoint;

  # The names of repart.d for our types; a GUID is a name there too.
  repartType =
    type:
    {
      linux = "linux-generic";
      bios-boot = "21686148-6449-6e6f-744e-656564454649";
    }
    .${type} or type;

  # A table holds 128 partitions, so three digits keep the order of the file names.
  repartName = index: "install-via-${lib.fixedWidthNumber 3 index}";
in
rec {
  # Returns the mounts that go into fstab.
  namedMounts =
    identity: layout:
    lib.filter (mount: identity != "gpt-auto" || !identities.isFoundMount layout mount) (
      layouts.mounts layout
    );

  namedSwaps =
    identity: layout:
    lib.filter (swap: identity != "gpt-auto" || !identities.isFoundSwap layout swap) (
      layouts.swaps layout
    );

  # Returns a sentence for each thing that gpt-auto was asked to find and cannot.
  warnings =
    identity: layout:
    lib.optionals (identity == "gpt-auto") (
      map
        (
          place:
          "installVia: systemd does not find partition \"${place.partition.name}\" by its type and place, so it is named by its "
          + "PARTLABEL; detach the original before a clone boots, or give the partition a type and mount point that gpt-auto knows"
        )
        (
          lib.filter (mount: !identities.isOnFoundRoot layout mount) (namedMounts identity layout)
          ++ namedSwaps identity layout
        )
    );

  # Returns fileSystems.
  fileSystems =
    {
      identity,
      layout,
      grow,
    }:
    lib.listToAttrs (
      map (
        mount:
        lib.nameValuePair mount.mountpoint (
          {
            device = identities.device identity layout mount;
            fsType = mount.format;
          }
          // lib.optionalAttrs (mount.options != [ ] || mount.subvolume != null) {
            options = lib.optional (mount.subvolume != null) "subvol=${mount.subvolume}" ++ mount.options;
          }
          //
            lib.optionalAttrs
              (grow && takesRest mount && isFirstMount layout mount && lib.elem mount.format growable)
              {
                autoResize = true;
              }
        )
      ) (namedMounts identity layout)
    );

  # Returns swapDevices.
  swapDevices =
    { identity, layout, ... }:
    map (swap: { device = identities.device identity layout swap; }) (namedSwaps identity layout);

  # Returns boot.initrd.luks.devices.
  luksDevices =
    { identity, layout, ... }:
    lib.listToAttrs (
      map (
        place:
        lib.nameValuePair place.luks.name (
          { device = identities.luksDevice identity layout place; } // place.luks.settings or { }
        )
      ) (layouts.encrypted layout)
    );

  # Returns the layout with bit 59 on what the generator mounts: it grows the file system, as
  # autoResize does for what fstab mounts.
  marked =
    { layout, grow, ... }:
    layout
    // {
      disks = lib.mapAttrs (
        _: disk:
        disk
        // {
          partitions = lib.imap1 (
            index: partition:
            if
              grow && index == lib.length disk.partitions && partition.size == size.rest && partition ? content
            then
              partition // { attributes = lib.unique (partition.attributes or [ ] ++ [ 59 ]); }
            else
              partition
          ) disk.partitions;
        }
      ) layout.disks;
    };

  # Returns systemd.repart.partitions: what follows the root on its disk grows into the space behind it.
  #
  # systemd-repart matches definitions and partitions of one type in their order, so those before the
  # last are listed too and keep their size. Types without a definition are left alone.
  repartPartitions =
    { layout, grow, ... }:
    let
      root = layouts.mountAt layout "/";
      onDisk = lib.filter (place: place.diskName == root.diskName) (layouts.partitions layout);
      last = lib.last onDisk;
      ofType = lib.filter (place: place.partition.type == last.partition.type) onDisk;
      definition =
        place:
        {
          Type = repartType place.partition.type;
        }
        # One that leaves the end of the disk is followed by what is there, or ends before it.
        // lib.optionalAttrs (size.parse place.partition.size != null) {
          SizeMaxBytes = toString (size.parse place.partition.size);
        };
    in
    lib.optionalAttrs (grow && root != null && takesRest last && last.content != null) (
      lib.listToAttrs (map (place: lib.nameValuePair (repartName place.index) (definition place)) ofType)
    );

}
