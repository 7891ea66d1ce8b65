# Reads disko.devices: to a layout of the disk that holds the system, or to the reason why there is none.
#
# Hooks, attributes that start with an underscore, and what only matters while disko formats are
# passed over. What the installer makes otherwise than disko is told in a warning by its path.
{ lib }:
let
  inherit (lib) concatMap filter optional;
  inherit (import ./disko/mounts.nix { inherit lib; }) mountsOf withoutInternal;
  inherit (import ./disko/result.nix) good bad noting;

  checks = import ./check.nix { inherit lib; };
  layouts = import ./layout.nix { inherit lib; };
  partitions = import ./disko/partition.nix { inherit lib; };
  tables = import ./disko/table.nix { inherit lib; };

  quote = builtins.toJSON;

  # The maps of disko.devices that lie on partitions or span disks, and what an element is.
  spanning = {
    lvm_vg = "an LVM volume group";
    mdadm = "a RAID array";
    zpool = "a ZFS pool";
    bcachefs_filesystems = "a bcachefs file system";
  };

  # Where the system can be, the likeliest first: / is in memory on some.
  homes = [
    "/"
    "/nix"
    "/nix/store"
  ];

  elementsOf =
    kind: devices:
    lib.mapAttrsToList (name: element: {
      inherit kind name element;
      path = "disko.devices.${kind}.${name}";
      what = spanning.${kind} or "a disk";
      mounts = mountsOf element;
    }) (withoutInternal (devices.${kind} or { }));

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
    path: name: disk:
    let
      inherit (disk) content;
      kind = content.type or "nothing";
      names = inOrder (withoutInternal (content.partitions or { }));
      ofGpt = map (
        partition:
        partitions.read "${path}.partitions.${partition}" (partition == lib.head names) name partition
          content.partitions.${partition}
      ) names;
      # In a layout they follow each other, whatever order they are written in.
      ofTable = map (numbered: tables.read numbered.path numbered.partition) (
        lib.sort (a: b: tables.isBefore a.partition b.partition) (
          lib.imap1 (index: partition: {
            path = "${path}.partitions.${toString index}";
            inherit partition;
          }) (content.partitions or [ ])
        )
      );
      whole =
        read:
        lib.foldl' noting (good {
          device = disk.device or null;
          partitions = map (result: result.value) read;
        }) read;
    in
    if kind == "gpt" then
      whole ofGpt
    else if kind == "table" && content.format or "gpt" == "gpt" then
      whole ofTable
    else if kind == "table" then
      bad "${path}.format" "is ${quote content.format}, and the installer writes GPT"
    else
      bad "${path}.type" "is ${quote kind}, and the installer writes a GPT";

  # Returns why the system does not boot from its disk alone, if so.
  neededElsewhere =
    home: other:
    let
      # Without these no boot gets far; what else is mounted from there may be told by nofail.
      early = at: lib.any (start: at == start || lib.hasPrefix "${start}/" at) [
        "/boot"
        "/efi"
        "/etc"
        "/nix"
        "/usr"
        "/var"
      ];
      needed = filter (mount: mount.required && (other.kind == "disk" || early mount.at)) other.mounts;
    in
    optional (needed != [ ])
      "${other.path} is ${other.what} beside ${home.path}, and the system needs its ${(lib.head needed).at} to boot; the installer makes one disk";
in
{
  # Whether disko describes anything that is on a disk.
  describes =
    devices:
    lib.any (kind: withoutInternal (devices.${kind} or { }) != { }) (
      [ "disk" ] ++ lib.attrNames spanning
    );

  # Returns { layout, reason, warnings }. Either layout or reason is null.
  read =
    devices:
    let
      elements = concatMap (kind: elementsOf kind devices) ([ "disk" ] ++ lib.attrNames spanning);
      holding =
        at: filter (element: lib.any (mount: mount.at == at) element.mounts) elements;
      home = lib.findFirst (_: true) null (concatMap holding homes);
      others = filter (element: element.path != home.path) elements;
      homeAt = lib.findFirst (at: holding at != [ ]) null homes;

      found = readDisk "${home.path}.content" (home.element.name or home.name) home.element;
      layout = layouts.clean { disks.${home.name} = found.value; };
      problems =
        found.problems
        ++ concatMap (neededElsewhere home) others
        # What the layout means can only be asked of one that is whole.
        ++ lib.optionals (found.problems == [ ]) (
          map (problem: "${home.path}: ${problem}") (checks.problems layout)
        );
      left = map (other: lib.removePrefix "disko.devices." other.path) others;
      without = reason: {
        layout = null;
        inherit reason;
        warnings = [ ];
      };
    in
    if home == null then
      without "disko.devices mounts nothing on /, /nix or /nix/store, so that the place of the system is not known"
    else if home.kind != "disk" then
      without "${home.path}, which holds ${homeAt}, is ${home.what}, and the installer makes none"
    else if problems != [ ] then
      without (lib.head problems)
    else
      {
        inherit layout;
        reason = null;
        warnings =
          found.warnings
          ++
            optional (left != [ ])
              "the layout is that of ${home.path} alone, and a clone has no ${lib.concatStringsSep ", " left} of its own; what they mount needs nofail for it to boot without them";
      };
}
