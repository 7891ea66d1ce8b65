# An encrypted clone: its passphrase is asked for at boot, and stands nowhere on the disk.
{ systemdBoot }:
{
  name = "luks";
  configuration = {
    imports = [ systemdBoot ];
    installVia.preset = "uefi-luks";
  };
  script = ''
    secret = "correct horse battery staple"
    install = f"{toplevel}/bin/install-to-disk --yes"

    with subtest("without a passphrase nothing is written"):
        said = machine.fail(f"{install} /dev/vdb </dev/null 2>&1")
        assert "--disk-encryption-key root=FILE" in said, said
        machine.fail("blkid /dev/vdb")

    with subtest("the clone is encrypted"):
        machine.succeed(f"printf %s '{secret}' > /run/key")
        machine.succeed(f"{install} --disk-encryption-key root=/run/key /dev/vdb")
        machine.succeed("blkid --match-tag TYPE --output value /dev/vdb2 | grep -Fx crypto_LUKS")
        machine.fail("ls /dev/mapper | grep install-via")
        machine.fail(f"grep --quiet --text --fixed-strings '{secret}' /dev/vdb")

    machine.shutdown()
    clone = boot("clone", [0], passphrase=secret)
    assert clone.succeed("findmnt --noheadings --output SOURCE /").strip() == "/dev/mapper/root"
    check_store(clone)
  '';
}
