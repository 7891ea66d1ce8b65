# Layouts as plain data: the JSON of docs/layout.md, and what follows from it.
{ lib }:
let
  inherit (lib)
    concatLists
    filter
    filterAttrs
    imap0
    mapAttrs
    mapAttrsToList
    optional
    removePrefix
    removeSuffix
    ;

  # The installer reads what is absent, and never null.
  present = filterAttrs (_: value: value != null && value != [ ] && value != { });

  cleanContent =
    content:
    present content
    // lib.optionalAttrs (content.subvolumes or [ ] != [ ]) {
      subvolumes = map present content.subvolumes;
    }
    // lib.optionalAttrs (content.content or null != null) {
      content = cleanContent content.content;
    };

  cleanPartition =
    partition:
    present partition
    // lib.optionalAttrs (partition.content or null != null) {
      content = cleanContent partition.content;
    };
in
rec {
  # Returns the layout without the values that nobody gave.
  clean = layout: {
    disks = mapAttrs (
      _: disk:
      present (removeAttrs disk [ "partitions" ])
      // {
        partitions = map cleanPartition disk.partitions;
      }
    ) layout.disks;
  };

  # Returns every partition with the name of its disk, its place there, and what is on it below any encryption.
  partitions =
    layout:
    concatLists (
      mapAttrsToList (
        diskName: disk:
        imap0 (
          index: partition:
          let
            outer = partition.content or null;
            encrypted = outer != null && outer.type == "luks";
          in
          {
            inherit diskName index partition;
            disk = disk;
            isLast = index + 1 == lib.length disk.partitions;
            luks = if encrypted then outer else null;
            content = if encrypted then outer.content or null else outer;
          }
        ) disk.partitions
      ) layout.disks
    );

  # Returns the name of the file system that a content is, or null.
  formatOf =
    content:
    if content == null then
      null
    else if content.type == "btrfs" then
      "btrfs"
    else if content.type == "filesystem" then
      content.format or null
    else
      null;

  # Returns what is mounted where; each has its partition's attributes beside its own.
  mounts =
    layout:
    lib.concatMap (
      place:
      let
        inherit (place) content;
        format = formatOf content;
        entry =
          subvolume: source:
          place
          // {
            inherit format subvolume;
            inherit (source) mountpoint;
            options = source.options or [ ];
          };
        volumes = lib.optionals (content.type == "btrfs") (content.subvolumes or [ ]);
      in
      lib.optionals (content != null && content.type != "swap") (
        optional (content ? mountpoint) (entry null content)
        ++ map (volume: entry (removePrefix "/" (removeSuffix "/" volume.path)) volume) (
          filter (volume: volume ? mountpoint) volumes
        )
      )
    ) (partitions layout);

  swaps =
    layout: filter (place: place.content != null && place.content.type == "swap") (partitions layout);

  encrypted = layout: filter (place: place.luks != null) (partitions layout);

  # Returns the first mount at a mount point, or null.
  mountAt =
    layout: mountpoint: lib.findFirst (mount: mount.mountpoint == mountpoint) null (mounts layout);

  # Returns the first partition of a type, or null.
  firstOfType =
    layout: type: lib.findFirst (place: place.partition.type == type) null (partitions layout);

  # Returns the formats of the file systems, each once.
  formats =
    layout:
    lib.unique (
      filter (format: format != null) (map (place: formatOf place.content) (partitions layout))
    );
}
