# A layout with encryption, which this version refuses before anything is written.
{ systemdBoot }:
{
  name = "luks";
  configuration = {
    imports = [ systemdBoot ];
    installVia.preset = "uefi-luks";
  };
  script = ''
    said = machine.fail(f"{toplevel}/bin/install-to-disk --yes /dev/vdb 2>&1")
    assert "luks" in said.lower(), said
    machine.fail("blkid /dev/vdb")
  '';
}
