# What is wrong with a layout, each in one sentence that says what to do.
{ lib }:
let
  inherit (lib)
    concatMap
    filter
    hasPrefix
    hasSuffix
    length
    optional
    optionals
    ;

  contents = import ./check/content.nix { inherit lib; };
  layouts = import ./layout.nix { inherit lib; };
  identities = import ./identity.nix { inherit lib; };
  size = import ./size.nix { inherit lib; };

  typeNames = [
    "esp"
    "bios-boot"
    "xbootldr"
    "swap"
    "root"
    "home"
    "srv"
    "var"
    "linux"
  ];

  quote = text: "\"${text}\"";

  # Returns how many of its 16-bit units a partition table needs for a text in UTF-8.
  units =
    text:
    let
      bytes = builtins.genList (n: builtins.substring n 1 text) (builtins.stringLength text);
      # The first bytes that go on with a letter, begin a letter of several bytes, and begin one of two units.
      continues = builtins.substring 1 1 (builtins.fromJSON "\"\\u0080\"");
      begins = builtins.substring 0 1 (builtins.fromJSON "\"\\u0080\"");
      isLong = builtins.substring 0 1 (builtins.fromJSON "\"\\ud83d\\ude00\"");
    in
    lib.count (byte: byte < continues || byte >= begins) bytes
    + lib.count (byte: byte >= isLong) bytes;

  partitionProblems =
    place:
    let
      inherit (place) partition content;
      what = "partition ${quote partition.name} of disk ${quote place.diskName}";
      bytes = size.parse partition.size;
      format = if content == null then null else layouts.formatOf content;
      outer = partition.content or null;
      least = if outer == null then 0 else contents.least outer;
      bits = filter (bit: bit < 0 || bit > 63) (partition.attributes or [ ]);
    in
    optional (partition.name == "") "a partition of disk ${quote place.diskName} has no name; name it"
    ++
      optional (units partition.name > 36)
        "${what} has a name of ${toString (units partition.name)} characters and a partition table holds 36; shorten it"
    ++ optional (lib.hasInfix "/" partition.name) "${what} has a slash in its name; leave it out"
    ++ optional (
      builtins.match "[^[:cntrl:]]*" partition.name == null
    ) "${what} has a control character in its name; leave it out"
    ++
      optional (!(lib.elem partition.type typeNames || contents.isGuid partition.type))
        "${what} has type ${quote partition.type}; choose one of ${lib.concatStringsSep ", " typeNames}, or write a type GUID"
    ++
      optional (partition.size != size.rest && bytes == null && size.left partition.size == null)
        "${what} has size ${quote partition.size}; write a number with K, M, G or T such as 512M, or 100% for what is left"
    ++
      optional (bytes != null && bytes < least)
        "${what} has size ${partition.size} and ${contents.formatOf outer} needs at least ${size.print least}; enlarge it"
    ++ map (bit: "${what} has attribute ${toString bit}; write bits by numbers from 0 to 63") bits
    ++ optional (
      partition ? uuid && !contents.isGuid partition.uuid
    ) "${what} has uuid ${quote partition.uuid}; write it as 8-4-4-4-12 hex digits"
    ++
      optional (partition.type == "esp" && (format != "vfat" || place.luks != null))
        "${what} is the EFI system partition, which firmware reads as vfat; give it content of type filesystem and format vfat"
    ++ optional (
      partition.type == "bios-boot" && partition ? content
    ) "${what} is where GRUB writes its code; leave its content out"
    ++ optional (
      partition.type == "swap" && format != null
    ) "${what} is of type swap and holds ${format}; let type and content agree"
    ++ optional (
      content != null
      && content.type == "swap"
      && lib.elem partition.type [
        "root"
        "home"
        "srv"
        "var"
      ]
    ) "${what} is of type ${partition.type} and holds swap; let type and content agree"
    ++ optionals (partition ? content) (contents.problems what partition.content);

  mountProblems =
    mount:
    let
      at = mount.mountpoint;
      parts = lib.splitString "/" (lib.removePrefix "/" at);
    in
    optional (!hasPrefix "/" at) "mount point ${quote at} is not absolute; start it with /"
    ++ optional (
      builtins.match "[^[:cntrl:]]*" at == null
    ) "mount point ${quote at} holds a control character; leave it out"
    ++ optional (
      at != "/" && hasSuffix "/" at
    ) "mount point ${quote at} ends with a slash; leave it out"
    ++ optional (
      hasPrefix "/" at
      && at != "/"
      && !hasSuffix "/" at
      && lib.any (
        part:
        lib.elem part [
          ""
          "."
          ".."
        ]
      ) parts
    ) "mount point ${quote at} holds an empty part, . or ..; write it without"
    ++ optional (
      mount.format == "vfat"
      && lib.elem at [
        "/"
        "/nix"
        "/nix/store"
      ]
    ) "${at} cannot be vfat, which keeps no owners, modes or links; use ext4, xfs or btrfs";

  # Returns the least that a partition takes of a disk.
  leastOf =
    place:
    let
      bytes = size.parse place.partition.size;
      outer = place.partition.content or null;
      least = if outer == null then 1 else contents.least outer;
    in
    size.roundUp (if bytes == null then least else bytes);

  diskProblems =
    layout: diskName:
    let
      places = filter (place: place.diskName == diskName) (layouts.partitions layout);
      takers = filter (place: place.partition.size == size.rest) places;
      early = filter (place: !place.isLast) takers;
      leaves = place: size.left place.partition.size != null;
      leaving = filter leaves places;
      first = lib.head leaving;
      left = size.roundUp (size.left first.partition.size);
      behind = lib.foldl' (sum: place: sum + leastOf place) 0 (
        filter (place: place.index > first.index) places
      );
    in
    optional (
      places == [ ]
    ) "disk ${quote diskName} has no partitions; write at least the one that holds /"
    ++
      optional (length places > 128)
        "disk ${quote diskName} has ${toString (length places)} partitions and a partition table holds 128"
    ++ map (
      place:
      "partition ${quote place.partition.name} is the second that says what it leaves of the disk; write its own size"
    ) (lib.drop 1 leaving)
    ++
      optional (length leaving == 1 && behind > left)
        "partition ${quote first.partition.name} leaves ${size.print left} of the disk and what follows it takes ${size.print behind}; let it leave more"
    ++ (
      if length takers > 1 then
        [
          "the sizes of disk ${quote diskName} add up to more than 100 %; let only the last partition say 100%"
        ]
      else
        map (
          place:
          "partition ${quote place.partition.name} has size 100% and others follow it; let the last partition take the rest"
        ) early
    );

  # What a person has to tell apart must differ.
  duplicates =
    layout:
    let
      places = layouts.partitions layout;
      layers = concatMap (place: [
        place.luks
        place.content
      ]) places;
      onPartitions = filter (content: content != null) layers;
      say =
        what: values:
        map (value: "the ${what} ${quote value} is used twice; make it unique") (contents.repeated values);
      field = name: sources: map (source: source.${name}) (filter (source: source ? ${name}) sources);
    in
    say "partition name" (map (place: place.partition.name) places)
    ++ say "partition uuid" (map lib.toLower (field "uuid" (map (place: place.partition) places)))
    ++ say "label" (field "label" onPartitions)
    ++ say "uuid" (map lib.toLower (field "uuid" onPartitions))
    ++ say "LUKS name" (field "name" (map (place: place.luks) (layouts.encrypted layout)))
    ++ say "mount point" (map (mount: mount.mountpoint) (layouts.mounts layout));

  severalDisks =
    layout:
    let
      names = lib.attrNames layout.disks;
      devices = map (name: layout.disks.${name}.device or null) names;
      nameless = filter (name: !(layout.disks.${name} ? device)) names;
    in
    optional (names == [ ]) "the layout names no disk; write one below disks"
    ++ optionals (length names > 1) (
      map (
        name:
        "the layout has ${toString (length names)} disks and disk ${quote name} has no device; say which disk it was written for"
      ) nameless
      ++ map (device: "the disk ${quote device} is given to two disks of the layout; give each its own") (
        contents.repeated (filter (device: device != null) devices)
      )
    );
in
{
  # Returns what is wrong with the layout by itself.
  problems =
    layout:
    severalDisks layout
    ++ concatMap (diskProblems layout) (lib.attrNames layout.disks)
    ++ concatMap partitionProblems (layouts.partitions layout)
    ++ concatMap mountProblems (layouts.mounts layout)
    ++ duplicates layout
    ++ optional (
      layout.disks != { }
      && lib.all (at: layouts.mountAt layout at == null) [
        "/"
        "/nix"
        "/nix/store"
      ]
    ) "nothing in the layout is mounted on /, /nix or /nix/store; say where the system goes";

  # Returns why the identity cannot be had with this layout and boot loader.
  identityProblems =
    {
      identity,
      layout,
      bootLoader,
      systemdStage1,
    }:
    let
      unlabelled = filter (
        place: place.luks == null && place.content != null && !(place.content ? label)
      ) (layouts.mounts layout ++ layouts.swaps layout);
      root = layouts.mountAt layout "/";
    in
    optionals (identity == "label") (
      map (
        name:
        "partition ${quote name} has no label and installVia.identity is label; set content.label or choose partlabel"
      ) (lib.unique (map (place: place.partition.name) unlabelled))
    )
    ++ optionals (identity == "gpt-auto") (
      optional
        (
          !lib.elem bootLoader [
            "systemd-boot"
            "lanzaboote"
          ]
        )
        "installVia.identity is gpt-auto, which needs a boot loader that tells where it was started from, and ${bootLoader} does not; use systemd-boot or choose the identity label"
      ++
        optional (!systemdStage1)
          "installVia.identity is gpt-auto, which the scripted stage 1 does not know; set boot.initrd.systemd.enable or choose the identity label"
      ++
        optional (!identities.rootIsFound layout)
          "installVia.identity is gpt-auto and / is not on the first partition of type root; give it that type or choose the identity label"
      ++
        optional (root != null && root.luks != null && root.luks.name or "root" != "root")
          "installVia.identity is gpt-auto, under which systemd opens an encrypted root as \"root\", and the layout calls it ${quote root.luks.name}; name it root"
    );

  # Returns what the boot loader misses on the disk.
  loaderProblems =
    {
      layout,
      bootLoader,
      espMountPoint,
      grubDevices,
    }:
    let
      esp = layouts.firstOfType layout "esp";
      isMounted = espMountPoint == null || layouts.mountAt layout espMountPoint != null;
    in
    optional (
      espMountPoint != null && esp == null
    ) "${bootLoader} needs an EFI system partition; add one of type esp, mounted on ${espMountPoint}"
    ++
      optional (esp != null && !isMounted)
        "boot.loader.efi.efiSysMountPoint is ${quote espMountPoint} and the layout mounts nothing there; let both agree"
    ++ optional (
      grubDevices != [ ] && layouts.firstOfType layout "bios-boot" == null
    ) "GRUB for BIOS writes its code to a partition of type bios-boot; add one of size 1M";

  # Returns a sentence where the kernels of all generations will hardly fit.
  spaceWarnings =
    {
      layout,
      kernelMountPoint,
      generations,
    }:
    let
      mount = layouts.mountAt layout kernelMountPoint;
      have = size.parse mount.partition.size;
      # A kernel takes some 15 MiB and an initrd, with its modules and firmware, 20 to 50 MiB.
      need = size.mib (64 * generations);
      small =
        mount != null
        && lib.elem mount.partition.type [
          "esp"
          "xbootldr"
        ]
        && mount.partition.size != size.rest
        && have != null
        && have < need;
    in
    optional (kernelMountPoint != null && small)
      "partition ${quote mount.partition.name} has ${size.print have} and ${toString generations} generations take up to ${size.print need}; enlarge it or set a lower configurationLimit";
}
