# A clone that GRUB starts on BIOS, made on a disk other than the one in the configuration.
{
  name = "grub";
  uefi = false;
  configuration = {
    boot.loader.grub.enable = true;
    installVia.preset = "bios-grub";
    installVia.layout.disks.main.device = "/dev/vda";
  };
  script = ''
    before = machine.succeed("head -c 1M /dev/vda | sha256sum")
    machine.succeed(f"{toplevel}/bin/install-to-disk --yes /dev/vdb >&2")
    assert machine.succeed("head -c 1M /dev/vda | sha256sum") == before, "the other disk was written to"
    machine.shutdown()

    clone = boot("clone", [0])
    check_store(clone)
    clone.shutdown()
  '';
}
