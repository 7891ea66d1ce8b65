# A clone on a second disk, found by its labels.
{ systemdBoot }:
{
  name = "ext4";
  configuration = {
    imports = [ systemdBoot ];
    installVia.preset = "uefi-ext4";
    installVia.identity = "label";
  };
  script = ''
    with subtest("a dry run leaves the disk alone"):
        machine.succeed(f"{toplevel}/bin/install-to-disk --dry-run /dev/vdb")
        machine.fail("blkid /dev/vdb")

    machine.succeed(f"{toplevel}/bin/install-to-disk --yes /dev/vdb >&2")
    machine.shutdown()

    clone = boot("clone", [0])
    check_store(clone)
    clone.succeed("test -x /run/current-system/bin/install-to-disk")
    clone.succeed("findmnt -no FSTYPE /boot | grep -x vfat")
    clone.shutdown()
  '';
}
