# Sizes of partitions: from "512M" to a number of bytes.
{ lib }:
let
  units = {
    "" = 1;
    K = 1024;
    M = 1024 * 1024;
    G = 1024 * 1024 * 1024;
    T = 1024 * 1024 * 1024 * 1024;
  };
in
rec {
  # What is left of the disk.
  rest = "100%";

  mib = n: n * units.M;

  # Returns the bytes that a size means, or null where it is no size. "100%" is none here: it depends on the disk.
  parse =
    text:
    let
      parts = builtins.match "([0-9]+)([.][0-9]+)? ?([KMGT]?)(iB|B)?" text;
      whole = lib.toIntBase10 (builtins.elemAt parts 0);
      fraction = builtins.elemAt parts 1;
      unit = builtins.elemAt parts 2;
      suffix = builtins.elemAt parts 3;
      bytes =
        whole * units.${unit}
        + (
          if fraction == null then 0 else builtins.floor (builtins.fromJSON "0${fraction}" * units.${unit})
        );
      # "1.5" is no number of bytes, "5iB" and "5KB" are no units of the installer.
      wellFormed =
        (fraction == null || unit != "") && (suffix == null || (suffix == "iB") == (unit != ""));
    in
    if parts != null && wellFormed && bytes > 0 then bytes else null;

  # Returns the bytes that a size such as "-8G" leaves at the end of the disk, or null where it is none.
  left = text: if lib.hasPrefix "-" text then parse (lib.removePrefix "-" text) else null;

  # Returns whole units of what partitions are aligned to.
  roundUp = bytes: (bytes + units.M - 1) / units.M * units.M;

  # Prints bytes in the largest unit that leaves a whole number.
  print =
    bytes:
    let
      fits = unit: bytes / units.${unit} * units.${unit} == bytes;
      unit = lib.findFirst fits "" [
        "T"
        "G"
        "M"
        "K"
      ];
    in
    "${toString (bytes / units.${unit})}${unit}";
}
