# A clone on btrfs, with its subvolumes and their compression.
{ systemdBoot }:
{
  name = "btrfs";
  configuration = {
    imports = [ systemdBoot ];
    installVia.preset = "uefi-btrfs";
    installVia.identity = "label";
  };
  script = ''
    machine.succeed(f"{toplevel}/bin/install-to-disk --yes /dev/vdb >&2")
    machine.shutdown()

    clone = boot("clone", [0])
    check_store(clone)
    for mountpoint, subvolume in [("/", "/root"), ("/home", "/home"), ("/nix", "/nix")]:
        clone.succeed(f"findmnt -no FSROOT {mountpoint} | grep -Fx {subvolume}")
        clone.succeed(f"findmnt -no OPTIONS {mountpoint} | grep -F compress=zstd")
    clone.shutdown()
  '';
}
