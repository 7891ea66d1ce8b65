# Virtual machines that clone a system and boot the clone.
{ pkgs, module }:
let
  inherit (pkgs) lib;

  clone = arguments: import ./clone.nix ({ inherit pkgs module; } // arguments);

  systemdBoot = {
    boot.loader.systemd-boot.enable = true;
    boot.initrd.systemd.enable = true;
  };
in
{
  ext4 = clone (import ./ext4.nix { inherit systemdBoot; });
  gpt-auto = clone (import ./gpt-auto.nix { inherit pkgs systemdBoot; });
  btrfs = clone (import ./btrfs.nix { inherit systemdBoot; });
  luks = clone (import ./luks.nix { inherit systemdBoot; });
}
# BIOS is of PCs alone.
// lib.optionalAttrs pkgs.stdenv.hostPlatform.isx86_64 {
  grub = clone (import ./grub.nix);
}
