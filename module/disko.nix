# Reads a configuration of disko: from disko.devices to a layout, and what keeps it from being one.
#
# Hooks, attributes that start with an underscore, and what only matters while disko formats are
# passed over. What would make another disk than the installer makes is named by its path.
{ lib }:
let
  inherit (lib)
    concatMap
    filter
    mapAttrsToList
    optional
    ;

  size = import ./size.nix { inherit lib; };

  # The codes of sgdisk that have a name or a GUID here.
  types = {
    EF00 = "esp";
    EF02 = "bios-boot";
    EA00 = "xbootldr";
    "8200" = "swap";
    "8300" = "linux";
    "8302" = "home";
    "8303" = "44479540-f297-41b2-9af7-d131d5f0458a";
    "8304" = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
    "8305" = "b921b045-1df0-41c3-af44-4c6f280d3fae";
    "8306" = "3b8f8425-20e0-4f3b-907f-1a25a76f98e8";
    "8309" = "ca7d7ccb-63ed-4c53-861c-1742536059cc";
  };

  formats = [
    "ext2"
    "ext3"
    "ext4"
    "xfs"
    "vfat"
    "btrfs"
  ];

  # Maps of disko that hold disks other than a table with file systems.
  otherMaps = [
    "lvm_vg"
    "mdadm"
    "zpool"
    "bcachefs_filesystems"
  ];

  # Words of mkfs that say nothing an installer would do otherwise: force, and quiet.
  ignoredWords = [
    "-f"
    "-F"
    "-q"
    "-K"
  ];

  # Returns label and uuid from the words for mkfs, and the first word that is neither.
  mkfsWords =
    format: words:
    let
      labelFlags =
        if format == "vfat" then
          [ "-n" ]
        else
          [
            "-L"
            "--label"
          ];
      uuidFlags =
        if format == "vfat" then
          [ "-i" ]
        else
          [
            "-U"
            "--uuid"
          ];
      first = lib.head words;
      value = lib.elemAt words 1;
      after = n: mkfsWords format (lib.drop n words);
      hasValue = lib.length words > 1;
    in
    if words == [ ] then
      { }
    else if lib.elem first labelFlags && hasValue then
      { label = value; } // after 2
    else if lib.elem first uuidFlags && hasValue then
      { uuid = if format == "vfat" then vfatUuid value else value; } // after 2
    else if format == "vfat" && first == "-F" && hasValue && value == "32" then
      after 2
    else if lib.elem first ignoredWords then
      after 1
    else
      after 1 // { unknown = first; };

  # mkfs.vfat takes the eight digits without a dash.
  vfatUuid =
    text:
    if builtins.stringLength text == 8 then
      "${builtins.substring 0 4 text}-${builtins.substring 4 4 text}"
    else
      text;

  mountOptions = options: filter (option: option != "defaults") options;

  good = value: {
    inherit value;
    problems = [ ];
  };
  bad = path: why: {
    value = null;
    problems = [ "${path} ${why}" ];
  };
  withProblems = result: problems: result // { problems = result.problems ++ problems; };

  extraArgs =
    path: content: words:
    optional (words ? unknown)
      "${path}.extraArgs holds ${builtins.toJSON words.unknown}, which the installer does not pass on; leave it out or describe the disk in installVia.layout";

  readContent =
    path: content:
    let
      kind = content.type or "nothing";
    in
    {
      filesystem = readFilesystem path content;
      btrfs = readBtrfs path content;
      swap = readSwap path content;
      luks = readLuks path content;
    }
    .${kind}
      or (bad "${path}.type" "is ${builtins.toJSON kind}, which the installer does not make; use filesystem, btrfs, swap or luks, or set installVia.readDisko to false to go without a layout");

  readFilesystem =
    path: content:
    let
      words = mkfsWords content.format (content.extraArgs or [ ]);
    in
    if !lib.elem content.format formats then
      bad "${path}.format" "is ${builtins.toJSON content.format}, which the installer does not make; use one of ${lib.concatStringsSep ", " formats}"
    else
      withProblems (good (
        {
          type = "filesystem";
          inherit (content) format;
          mountpoint = content.mountpoint or null;
          options = mountOptions (content.mountOptions or [ ]);
        }
        // removeAttrs words [ "unknown" ]
      )) (extraArgs path content words);

  readBtrfs =
    path: content:
    let
      words = mkfsWords "btrfs" (content.extraArgs or [ ]);
      subvolumes = content.subvolumes or { };
      swapFiles =
        optional (content.swap or { } != { }) "${path}.swap"
        ++ concatMap (
          name:
          optional (subvolumes.${name}.swap or { } != { }) "${path}.subvolumes.${builtins.toJSON name}.swap"
        ) (lib.attrNames subvolumes);
    in
    withProblems
      (good (
        {
          type = "btrfs";
          mountpoint = content.mountpoint or null;
          options =
            if content.mountpoint or null == null then [ ] else mountOptions (content.mountOptions or [ ]);
          subvolumes = mapAttrsToList (name: volume: {
            path = volume.name or name;
            mountpoint = volume.mountpoint or null;
            options =
              if volume.mountpoint or null == null then [ ] else mountOptions (volume.mountOptions or [ ]);
          }) subvolumes;
        }
        // removeAttrs words [ "unknown" ]
      ))
      (
        extraArgs path content words
        ++ map (
          at: "${at} asks for a swap file, which the installer does not make; use a swap partition"
        ) swapFiles
      );

  readSwap =
    path: content:
    let
      words = mkfsWords "swap" (content.extraArgs or [ ]);
    in
    if content.randomEncryption or false then
      bad "${path}.randomEncryption" "makes the swap anew at each boot, which the installer does not know; leave it out or set installVia.readDisko to false"
    else
      withProblems (good ({ type = "swap"; } // removeAttrs words [ "unknown" ])) (
        extraArgs path content words
      );

  readLuks =
    path: content:
    let
      inner =
        if content.content or null == null then
          bad "${path}.content" "is missing; say what the encrypted partition holds"
        else
          readContent "${path}.content" content.content;
    in
    withProblems
      (good {
        type = "luks";
        inherit (content) name;
        settings = content.settings or { };
        content = inner.value;
      })
      (
        inner.problems
        ++
          optional (content.extraFormatArgs or [ ] != [ ])
            "${path}.extraFormatArgs is not passed on by the installer; leave it out or describe the disk in installVia.layout"
      );

  # disko's P is 1024 of our T; a number without a unit counts sectors there.
  readSize =
    text:
    let
      parts = builtins.match "[+]?([0-9]+)([KMGTP])(iB|B)?" text;
      number = lib.head parts;
      unit = lib.elemAt parts 1;
    in
    if
      lib.elem text [
        "100%"
        "-0"
      ]
    then
      size.rest
    else if parts == null then
      null
    else if unit == "P" then
      "${toString (1024 * lib.toIntBase10 number)}T"
    else
      "${number}${unit}";

  # disko says where a partition is by size, or by start and end. Its place is the installer's choice.
  readExtent =
    path: isFirst: partition:
    let
      has = name: partition.${name} or "0" != "0";
      bytes = name: size.parse (readSize partition.${name});
      isAbsolute = builtins.match "[0-9]+[KMGT](iB|B)?" partition.end != null;
      length = bytes "end" - bytes "start";
      refused = name: {
        size = null;
        problems = [
          "${path}.${name} is ${
            builtins.toJSON (partition.${name} or "0")
          }; write a size with K, M, G or T, or 100%"
        ];
      };
      found = name: {
        size = readSize partition.${name};
        problems = [ ];
      };
      # Where a first partition starts in any case.
      startsAnywhere =
        !(has "start")
        ||
          isFirst
          && lib.elem partition.start [
            "1M"
            "1MiB"
          ];
    in
    if has "size" then
      if readSize partition.size == null then
        refused "size"
      else if !startsAnywhere then
        refused "start"
      else
        found "size"
    else if !(has "end") then
      refused "size"
    else if readSize partition.end == null then
      refused "end"
    else if !isAbsolute || isFirst && !(has "start") then
      found "end"
    else if !(has "start") || readSize partition.start == null || length <= 0 then
      refused "start"
    else
      {
        size = size.print length;
        problems = [ ];
      };

  isGuid = text: builtins.match "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}" text != null;

  readPartition =
    path: isFirst: diskName: name: partition:
    let
      hasContent = partition.content or null != null;
      content = if hasContent then readContent "${path}.content" partition.content else good null;
      code =
        partition.type or (if hasContent && partition.content.type or "" == "swap" then "8200" else "8300");
      type = types.${lib.toUpper code} or (if isGuid code then lib.toLower code else null);
      extent = readExtent path isFirst partition;
    in
    withProblems
      (good {
        name = partition.label or "disk-${diskName}-${name}";
        inherit type;
        inherit (extent) size;
        uuid = partition.uuid or null;
        attributes = partition.attributes or [ ];
        content = content.value;
      })
      (
        content.problems
        ++
          optional (type == null)
            "${path}.type is ${builtins.toJSON code}, which has no GUID here; write EF00, EF02, 8200, 8300 or a type GUID"
        ++ extent.problems
        ++ optional (
          partition.hybrid or null != null
        ) "${path}.hybrid asks for an MBR beside the GPT, which the installer does not write; leave it out"
      );

  # disko writes partitions by priority, then by name.
  priorityOf =
    partition:
    partition.priority or (
      if partition.size or "" == "100%" then
        9001
      else if partition.type or "" == "EF02" then
        100
      else
        1000
    );

  inOrder =
    partitions:
    lib.sort (
      a: b:
      let
        first = priorityOf partitions.${a};
        second = priorityOf partitions.${b};
      in
      if first == second then a < b else first < second
    ) (lib.attrNames partitions);

  readDisk =
    diskName: disk:
    let
      path = "disko.devices.disk.${diskName}.content";
      kind = disk.content.type or "nothing";
      names = inOrder (disk.content.partitions or { });
      read = map (
        name:
        readPartition "${path}.partitions.${name}" (name == lib.head names) (disk.name or diskName
        ) name disk.content.partitions.${name}
      ) names;
    in
    if disk.content or null == null then
      bad path "is missing; say what the disk holds"
    else if kind != "gpt" then
      bad "${path}.type" "is ${builtins.toJSON kind}, and the installer writes gpt; use that, or set installVia.readDisko to false to go without a layout"
    else
      {
        value = {
          device = disk.device or null;
          partitions = map (result: result.value) read;
        };
        problems = concatMap (result: result.problems) read;
      };

  # The module system keeps its own attributes beside ours.
  withoutInternal = lib.filterAttrs (name: _: !lib.hasPrefix "_" name);
in
{
  # Whether disko describes anything that is on a disk.
  describes =
    devices: lib.any (map: withoutInternal (devices.${map} or { }) != { }) ([ "disk" ] ++ otherMaps);

  # Returns { layout, problems }; the layout is whole where there are no problems.
  read =
    devices:
    let
      disks = lib.mapAttrs readDisk (withoutInternal (devices.disk or { }));
      others = concatMap (
        kind:
        map (
          name:
          "disko.devices.${kind}.${name} is nothing the installer makes; set installVia.readDisko to false to go without a layout"
        ) (lib.attrNames (withoutInternal (devices.${kind} or { })))
      ) otherMaps;
    in
    {
      layout.disks = lib.mapAttrs (_: disk: disk.value) disks;
      problems = others ++ concatMap (disk: disk.problems) (lib.attrValues disks);
    };
}
