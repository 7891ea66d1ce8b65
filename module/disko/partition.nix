# A partition of disko's gpt: its type, its size, and what is on it.
{ lib }:
let
  inherit (lib) optional;
  inherit (import ./result.nix) good noting;

  contents = import ./content.nix { inherit lib; };
  size = import ../size.nix { inherit lib; };
  types = import ./types.nix { inherit lib; };

  quote = builtins.toJSON;

  # Returns the size that a text means, or null. disko's P is 1024 of our T; a number without a unit
  # counts sectors there, and how large those are is not known here.
  readSize =
    text:
    let
      parts = builtins.match "([+-]?)([0-9]+)([KMGTP])(iB|B)?" text;
      sign = if lib.head parts == "-" then "-" else "";
      number = lib.elemAt parts 1;
      unit = lib.elemAt parts 2;
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
      "${sign}${toString (1024 * lib.toIntBase10 number)}T"
    else
      "${sign}${number}${unit}";

  # disko says where a partition is by size, or by start and end. Its place is the installer's choice.
  readExtent =
    path: isFirst: partition:
    let
      # What it has where nobody gave one.
      defaults = {
        size = "0";
        start = "0";
        end = "+0";
      };
      has = name: partition.${name} or defaults.${name} != defaults.${name};
      isAbsolute = builtins.match "[0-9]+[KMGTP](iB|B)?" partition.end != null;
      length = size.parse (readSize partition.end) - size.parse (readSize partition.start);
      bad = problem: {
        size = null;
        problems = [ "${path}${problem}" ];
      };
      refused =
        name: bad ".${name} is ${quote partition.${name}}; write a size with K, M, G or T, or 100%";
      found = text: {
        size = text;
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
        found (readSize partition.size)
    else if !(has "end") then
      bad " has neither size nor end; write a size with K, M, G or T, or 100%"
    else if readSize partition.end == null then
      refused "end"
    else if isAbsolute && isFirst && !(has "start") then
      found (readSize partition.end)
    else if isAbsolute && !(has "start") then
      bad " has an end and neither start nor size; write its size"
    else if isAbsolute then
      if size.parse (readSize partition.start) == null || length <= 0 then
        refused "start"
      else
        found (size.print length)
    else if !startsAnywhere then
      refused "start"
    else
      found (readSize partition.end);

  # The name that disko gives: what is too long for a partition table goes by its hash.
  labelOf =
    diskName: name:
    let
      label = "disk-${diskName}-${name}";
    in
    if builtins.stringLength label > 36 then
      builtins.substring 0 36 (builtins.hashString "sha256" label)
    else
      label;
in
{
  # Returns a partition of a layout. Where it is the first, its start says nothing.
  read =
    path: isFirst: diskName: name: partition:
    let
      hasContent = partition.content or null != null;
      content = if hasContent then contents.read "${path}.content" partition.content else good null;
      code =
        partition.type or (if hasContent && partition.content.type or "" == "swap" then "8200" else "8300");
      type = types.read code;
      extent = readExtent path isFirst partition;
    in
    noting
      (noting (good {
        name = partition.label or (labelOf diskName name);
        type = if type == null then "linux" else type;
        inherit (extent) size;
        uuid = partition.uuid or null;
        attributes = partition.attributes or [ ];
        content = content.value;
      }) content)
      {
        problems =
          extent.problems
          ++ optional (
            partition.hybrid or null != null
          ) "${path}.hybrid asks for an MBR beside the GPT, which the installer does not write";
        warnings = optional (
          type == null
        ) "${path}.type is ${quote code}, which has no GUID here, so that the installer makes a partition of type 8300";
      };
}
