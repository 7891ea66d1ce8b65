# Builds a system whose toplevel has its entry scripts and manifest.
{
  nixpkgs ? null,
  binary ? null,
}:
let
  world = import ./evaluate.nix { inherit nixpkgs binary; };
in
(world.evaluate [
  {
    installVia.enable = true;
    installVia.preset = "uefi-ext4";
    boot.loader.grub.enable = false;
    boot.loader.systemd-boot.enable = true;
    boot.initrd.systemd.enable = true;
  }
]).config.system.build.toplevel
