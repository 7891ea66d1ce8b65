# The manifest: what an installer cannot see in a built system. src/manifest.rs reads it.
{ lib, pkgs }:
let
  layouts = import ./layout.nix { inherit lib; };

  # The package that makes each kind of content.
  makers = {
    "mkfs.ext2" = pkgs.e2fsprogs;
    "mkfs.ext3" = pkgs.e2fsprogs;
    "mkfs.ext4" = pkgs.e2fsprogs;
    "mkfs.xfs" = pkgs.xfsprogs;
    "mkfs.vfat" = pkgs.dosfstools;
    "mkfs.btrfs" = pkgs.btrfs-progs;
    "mkswap" = pkgs.util-linux;
    "cryptsetup" = pkgs.cryptsetup;
  };

  program = name: "${lib.getBin makers.${name}}/bin/${name}";
in
{
  # Returns the tools that make these contents. Nothing else gets into the closure for their sake.
  tools =
    {
      formats,
      swap,
      encryption,
    }:
    let
      wanted =
        lib.filter (name: makers ? ${name}) (map (format: "mkfs.${format}") formats)
        ++ lib.optional swap "mkswap"
        ++ lib.optional encryption "cryptsetup";
    in
    lib.genAttrs (lib.unique wanted) program;

  # Returns what tools has to make for a layout.
  contentsOf = layout: {
    formats = layouts.formats layout;
    swap = layouts.swaps layout != [ ];
    encryption = layouts.encrypted layout != [ ];
  };

  # Returns the manifest. A value that is null is left out.
  render = fields: lib.filterAttrs (_: value: value != null) ({ version = 1; } // fields);
}
