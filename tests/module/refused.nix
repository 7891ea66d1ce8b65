# What Nix itself says of configurations that cannot be built.
{
  nixpkgs ? null,
}:
let
  world = import ./evaluate.nix { inherit nixpkgs; };
  toplevel =
    settings:
    let
      inherit
        (world.evaluate [
          {
            installVia.enable = true;
            boot.loader.grub.enable = false;
            boot.loader.systemd-boot.enable = true;
            boot.initrd.systemd.enable = true;
          }
          settings
        ])
        config
        ;
    in
    # fstab is made of all file systems; the stand-in's toplevel has none.
    builtins.deepSeq config.fileSystems config.system.build.toplevel.drvPath;
in
{
  unknown-preset = toplevel { installVia.preset = "uefi-zfs"; };
  failed-assertion = toplevel {
    installVia.preset = "uefi-ext4";
    boot.loader.efi.efiSysMountPoint = "/efi";
  };
  own-file-systems-beside-a-layout = toplevel {
    installVia.preset = "uefi-ext4";
    fileSystems."/".device = "/dev/sda2";
  };
}
