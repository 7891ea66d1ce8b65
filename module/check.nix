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

  layouts = import ./layout.nix { inherit lib; };
  identities = import ./identity.nix { inherit lib; };
  size = import ./size.nix { inherit lib; };

  labelLimits = {
    vfat = 11;
    xfs = 12;
    ext2 = 16;
    ext3 = 16;
    ext4 = 16;
    swap = 16;
    btrfs = 255;
  };

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

  hex = n: "[0-9a-fA-F]{${toString n}}";
  isGuid = text: builtins.match "${hex 8}-${hex 4}-${hex 4}-${hex 4}-${hex 12}" text != null;
  isVfatUuid = text: builtins.match "${hex 4}-${hex 4}" text != null;

  # What each kind of content says of itself, beside its type.
  fieldsOf = {
    filesystem = [
      "format"
      "label"
      "uuid"
      "mountpoint"
      "options"
    ];
    btrfs = [
      "label"
      "uuid"
      "mountpoint"
      "options"
      "subvolumes"
    ];
    swap = [
      "label"
      "uuid"
    ];
    luks = [
      "name"
      "content"
      "settings"
    ];
  };

  quote = text: "\"${text}\"";

  # Returns the values that occur more than once.
  repeated = values: lib.unique (filter (value: lib.count (other: other == value) values > 1) values);

  partitionProblems =
    place:
    let
      inherit (place) partition content;
      what = "partition ${quote partition.name} of disk ${quote place.diskName}";
      bytes = size.parse partition.size;
      isAscii = builtins.match "[ -~]*" partition.name != null;
      format = if content == null then null else layouts.formatOf content;
    in
    optional (partition.name == "") "a partition of disk ${quote place.diskName} has no name; name it"
    ++
      optional (isAscii && builtins.stringLength partition.name > 36)
        "${what} has a name of ${toString (builtins.stringLength partition.name)} characters and a partition table holds 36; shorten it"
    ++ optional (lib.hasInfix "/" partition.name) "${what} has a slash in its name; leave it out"
    ++
      optional (!(lib.elem partition.type typeNames || isGuid partition.type))
        "${what} has type ${quote partition.type}; choose one of ${lib.concatStringsSep ", " typeNames}, or write a type GUID"
    ++
      optional (partition.size != size.rest && bytes == null)
        "${what} has size ${quote partition.size}; write a number with K, M, G or T such as 512M, or 100% for what is left"
    ++ optional (
      partition ? uuid && !isGuid partition.uuid
    ) "${what} has uuid ${quote partition.uuid}; write it as 8-4-4-4-12 hex digits"
    ++
      optional (partition.type == "esp" && format != "vfat")
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
    ++ optionals (partition ? content) (contentProblems what partition.content);

  contentProblems =
    what: content:
    let
      known = [ "type" ] ++ fieldsOf.${content.type};
      foreign = filter (field: !lib.elem field known) (lib.attrNames content);
      format = if content.type == "filesystem" then content.format or "ext4" else content.type;
      limit = labelLimits.${format} or null;
      label = content.label or "";
      bytes = builtins.stringLength label;
      uuidIsGood = (if format == "vfat" then isVfatUuid else isGuid) content.uuid;
      allOptions = content.options or [ ] ++ concatMap (v: v.options or [ ]) (content.subvolumes or [ ]);
    in
    map (field: "${what} holds ${content.type}, which has no ${field}; leave it out") foreign
    ++ optional (
      content.type == "filesystem" && !(content ? format)
    ) "${what} holds a file system without format; write one such as ext4"
    ++
      optional (limit != null && bytes > limit)
        "${what} has label ${quote label} of ${toString bytes} bytes and ${format} allows ${toString limit}; shorten it"
    ++ optional (lib.hasInfix "/" label) "${what} has a slash in label ${quote label}; leave it out"
    ++
      optional (content ? uuid && !uuidIsGood)
        "${what} has ${format} with uuid ${quote content.uuid}; write it as ${
          if format == "vfat" then "ABCD-1234" else "8-4-4-4-12 hex digits"
        }"
    ++ map (option: "${what} has mount option ${quote option}; list one option an entry") (
      filter (option: option == "" || builtins.match ".*[, \t\n].*" option != null) allOptions
    )
    ++ map (
      option: "${what} chooses a subvolume by ${quote option}; list it below subvolumes instead"
    ) (filter (option: hasPrefix "subvol=" option || hasPrefix "subvolid=" option) allOptions)
    ++ optionals (content.type == "luks") (
      optional (
        !(content ? name)
      ) "${what} is encrypted without a name; name what is opened, such as root"
      ++ optional (!(content ? content)) "${what} is encrypted and holds nothing; give it content"
      ++ optionals (content ? content) (contentProblems what content.content)
    );

  mountProblems =
    mount:
    let
      at = mount.mountpoint;
      parts = lib.splitString "/" (lib.removePrefix "/" at);
    in
    optional (!hasPrefix "/" at) "mount point ${quote at} is not absolute; start it with /"
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

  diskProblems =
    layout: diskName:
    let
      places = filter (place: place.diskName == diskName) (layouts.partitions layout);
      takers = filter (place: place.partition.size == size.rest) places;
      early = filter (place: !place.isLast) takers;
    in
    optional (
      places == [ ]
    ) "disk ${quote diskName} has no partitions; write at least the one that holds /"
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
      contents = filter (content: content != null) (map (place: place.content) places);
      say =
        what: values:
        map (value: "the ${what} ${quote value} is used twice; make it unique") (repeated values);
      field = name: sources: map (source: source.${name}) (filter (source: source ? ${name}) sources);
    in
    say "partition name" (map (place: place.partition.name) places)
    ++ say "partition uuid" (map lib.toLower (field "uuid" (map (place: place.partition) places)))
    ++ say "label" (field "label" contents)
    ++ say "uuid" (map lib.toLower (field "uuid" contents))
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
        repeated (filter (device: device != null) devices)
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
