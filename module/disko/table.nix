# A partition of disko's older table, which says in parted's words where partitions start and end.
{ lib }:
let
  inherit (lib) optional;
  inherit (import ./result.nix) good noting;

  contents = import ./content.nix { inherit lib; };
  size = import ../size.nix { inherit lib; };
  types = import ./types.nix { inherit lib; };

  quote = builtins.toJSON;

  power = base: n: if n == 0 then 1 else base * power base (n - 1);
  # Those of one letter count in thousands too, and a number without a unit counts megabytes.
  units = {
    "" = power 1000 2;
    b = 1;
    k = 1000;
    m = power 1000 2;
    g = power 1000 3;
    t = power 1000 4;
    kb = 1000;
    mb = power 1000 2;
    gb = power 1000 3;
    tb = power 1000 4;
    kib = 1024;
    mib = power 1024 2;
    gib = power 1024 3;
    tib = power 1024 4;
  };

  # Returns { fromEnd, bytes } of a place on the disk, or null.
  place =
    text:
    let
      parts = builtins.match "(-?)([0-9]+)([a-zA-Z]*)" text;
      unit = units.${lib.toLower (lib.elemAt parts 2)} or null;
    in
    if text == "0%" then
      {
        fromEnd = false;
        bytes = 0;
      }
    else if text == "100%" then
      {
        fromEnd = true;
        bytes = 0;
      }
    else if parts == null || unit == null then
      null
    else
      {
        fromEnd = lib.head parts == "-";
        bytes = lib.toIntBase10 (lib.elemAt parts 1) * unit;
      };

  # Returns the size between two places, or null.
  between =
    start: end:
    if start == null || end == null then
      null
    else if end.fromEnd && end.bytes == 0 then
      size.rest
    else if end.fromEnd && !start.fromEnd then
      "-${size.print end.bytes}"
    else if end.fromEnd then
      (if start.bytes > end.bytes then size.print (start.bytes - end.bytes) else null)
    else if !start.fromEnd && end.bytes > start.bytes then
      size.print (end.bytes - start.bytes)
    else
      null;
in
{
  # Whether a partition starts before another.
  isBefore =
    a: b:
    let
      first = place (a.start or "0%");
      second = place (b.start or "0%");
    in
    if first == null || second == null then
      false
    else if first.fromEnd != second.fromEnd then
      second.fromEnd
    else if first.fromEnd then
      first.bytes > second.bytes
    else
      first.bytes < second.bytes;

  # Returns a partition of a layout.
  read =
    path: partition:
    let
      start = partition.start or "0%";
      end = partition.end or "100%";
      extent = between (place start) (place end);
      flags = partition.flags or [ ] ++ optional (partition.bootable or false) "boot";
      has = flag: lib.elem flag flags;
      hasContent = partition.content or null != null;
      content = if hasContent then contents.read "${path}.content" partition.content else good null;
      holds = format: hasContent && format == partition.content.format or partition.content.type or "";
      code =
        if has "bios_grub" then
          "EF02"
        # Whatever is to be started is marked so by some; firmware reads vfat.
        else if (has "boot" || has "esp") && holds "vfat" then
          "EF00"
        else if has "bls_boot" then
          "EA00"
        else if holds "swap" || has "swap" then
          "8200"
        else if has "lvm" then
          "8E00"
        else if has "raid" then
          "FD00"
        else
          "8300";
    in
    noting
      (noting (good {
        name = partition.name or null;
        type = types.read code;
        size = extent;
        attributes = optional (has "legacy_boot") 2;
        content = content.value;
      }) content)
      {
        problems =
          optional (partition.name or null == null) "${path} has no name; name it"
          ++
            optional (extent == null)
              "${path} is from ${quote start} to ${quote end}; write both with MiB or GiB, or 100% as its end";
      };
}
