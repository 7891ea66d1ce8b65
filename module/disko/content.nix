# What is on a partition of disko: from its content to that of a layout.
{ lib }:
let
  inherit (lib) filter optional;
  inherit (import ./result.nix) good bad noting;

  mkfs = import ./mkfs.nix { inherit lib; };

  formats = [
    "ext2"
    "ext3"
    "ext4"
    "xfs"
    "vfat"
    "btrfs"
  ];

  quote = builtins.toJSON;

  # What is part of something larger, and made with that.
  members = {
    lvm_pv = "a part of LVM";
    mdraid = "a part of a RAID array";
    zfs = "a part of a ZFS pool";
    bcachefs = "a part of a bcachefs file system";
  };

  trimmed = path: lib.removeSuffix "/" (lib.removePrefix "/" path);

  # Returns the options that say something: fstab joins them by commas, so that one entry may hold several.
  # An option that chooses the very subvolume is none.
  mountOptions =
    subvolume: options:
    let
      words = lib.concatMap (text: filter builtins.isString (builtins.split "[, \t]+" text)) options;
      chooses = option: builtins.match "subvol=.*" option != null;
      isSame = option: trimmed (lib.removePrefix "subvol=" option) == subvolume;
    in
    filter (
      option: option != "" && option != "defaults" && !(chooses option && isSame option)
    ) words;

  # The options where something is mounted.
  optionsOf =
    subvolume: content:
    if content.mountpoint or null == null then
      [ ]
    else
      mountOptions subvolume (content.mountOptions or [ ]);

  # Says what of the arguments for mkfs is not passed on.
  argumentNotes = path: arguments: {
    problems = map (
      device: "${path} names ${device}, and the installer makes a file system of one device"
    ) arguments.devices;
    warnings = optional (
      arguments.unknown != [ ]
    ) "${path} holds ${quote (lib.concatStringsSep " " arguments.unknown)}, which the installer does not pass on";
  };

  filesystem =
    path: content:
    let
      arguments = mkfs.read content.format (content.extraArgs or [ ]);
    in
    if !lib.elem content.format formats then
      bad "${path}.format" "is ${quote content.format}, which the installer does not make"
    else
      noting (good (
        {
          type = "filesystem";
          inherit (content) format;
          mountpoint = content.mountpoint or null;
          options = optionsOf "" content;
        }
        // arguments.names
      )) (argumentNotes "${path}.extraArgs" arguments);

  btrfs =
    path: content:
    let
      arguments = mkfs.read "btrfs" (content.extraArgs or [ ]);
      volumes = content.subvolumes or { };
      at = name: "${path}.subvolumes.${quote name}";
      pathOf = name: volumes.${name}.name or name;
      isTop = name: trimmed (pathOf name) == "";
      # disko also writes the top level as a subvolume.
      top = lib.findFirst isTop null (lib.attrNames volumes);
      isAbove = content.mountpoint or null == null && top != null;
      topLevel = if isAbove then volumes.${top} else content;
      swapFiles =
        optional (content.swap or { } != { }) "${path}.swap"
        ++ map (name: "${at name}.swap") (
          filter (name: volumes.${name}.swap or { } != { }) (lib.attrNames volumes)
        );
      withArguments = filter (name: volumes.${name}.extraArgs or [ ] != [ ]) (lib.attrNames volumes);
    in
    noting
      (noting (good (
        {
          type = "btrfs";
          mountpoint = topLevel.mountpoint or null;
          options = optionsOf "" topLevel;
          subvolumes = map (name: {
            path = lib.removeSuffix "/" (pathOf name);
            mountpoint = volumes.${name}.mountpoint or null;
            options = optionsOf (trimmed (pathOf name)) volumes.${name};
          }) (filter (name: !(isAbove && isTop name)) (lib.attrNames volumes));
        }
        // arguments.names
      )) (argumentNotes "${path}.extraArgs" arguments))
      {
        warnings =
          map (file: "${file} is a swap file, which a clone has not until it is made there") swapFiles
          ++ map (name: "${at name}.extraArgs is not passed on by the installer") withArguments;
      };

  # With a random key the swap is made anew at each boot, and its partition is empty before.
  swap =
    path: content:
    let
      arguments = mkfs.read "swap" (content.extraArgs or [ ]);
    in
    if content.randomEncryption or false then
      good null
    else
      noting (good ({ type = "swap"; } // arguments.names)) (
        argumentNotes "${path}.extraArgs" arguments
      );

  luks =
    path: content:
    let
      arguments = mkfs.read "luks" (content.extraFormatArgs or [ ]);
      kind = content.content.type or null;
      inner =
        if kind == null then
          bad "${path}.content" "is missing, and the installer makes no encrypted partition that holds nothing"
        else if members ? ${kind} then
          bad "${path}.content" "is ${members.${kind}}, which the installer does not make"
        else
          read "${path}.content" content.content;
      isDetached = content.settings.header or null != null;
    in
    noting
      (noting (good (
        {
          type = "luks";
          inherit (content) name;
          settings = content.settings or { };
          content = inner.value;
        }
        // arguments.names
      )) inner)
      {
        problems =
          optional (inner.problems == [ ] && inner.value == null)
            "${path}.content is made anew at each boot, and the installer makes no encrypted partition that holds nothing"
          ++ optional isDetached "${path}.settings.header is elsewhere, and the installer writes it onto the partition";
        inherit (argumentNotes "${path}.extraFormatArgs" (arguments // { devices = [ ]; })) warnings;
      };

  # What is no part of this disk alone is left empty.
  read =
    path: content:
    let
      kind = content.type or "nothing";
    in
    if members ? ${kind} then
      noting (good null) {
        warnings = [
          "${path} is ${members.${kind}}, which the installer does not make; the partition stays empty"
        ];
      }
    else
      ({
        inherit
          filesystem
          btrfs
          swap
          luks
          ;
      }.${kind} or (path: _: bad "${path}.type" "is ${quote kind}, which the installer does not make")
      )
        path
        content;
in
{
  inherit read;
}
