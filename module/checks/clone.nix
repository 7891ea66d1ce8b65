# A test that installs a system onto empty disks and boots it from them.
#
# The system is not the one that runs: a test machine mounts what the test driver wants, whatever its
# configuration says. It lies in the machine's store, and its own commands install it.
{
  pkgs,
  module,
  name,
  # What is cloned.
  configuration,
  # Whether firmware is UEFI; BIOS otherwise.
  uefi ? true,
  # MiB of each empty disk: /dev/vdb, /dev/vdc and so on.
  disks ? [ 8192 ],
  # Python that has `machine`, `toplevel` and `boot(name, order, passphrase)`, where order lists indexes of disks.
  script,
}:
let
  inherit (pkgs) lib;

  target = pkgs.nixos [
    module
    configuration
    (
      { modulesPath, ... }:
      {
        imports = [
          (modulesPath + "/profiles/qemu-guest.nix")
          (modulesPath + "/testing/test-instrumentation.nix")
        ];
        installVia.enable = true;
        # A passphrase is asked for on the last one, which must be where the test driver types.
        boot.kernelParams = lib.mkAfter [ "console=${qemu.qemuSerialDevice}" ];
        system.stateVersion = lib.trivial.release;
        documentation.enable = false;
      }
    )
  ];
  inherit (target.config.system.build) toplevel;

  qemu = import (pkgs.path + "/nixos/lib/qemu-common.nix") { inherit lib pkgs; };
  firmware = lib.optionals uefi [
    "-drive if=pflash,format=raw,unit=0,readonly=on,file=${pkgs.OVMF.firmware}"
    "-drive if=pflash,format=raw,unit=1,file={variables}"
  ];
in
pkgs.testers.runNixOSTest {
  name = "install-via-${name}";

  nodes.machine = {
    virtualisation = {
      emptyDiskImages = disks;
      additionalPaths = [ toplevel ];
      memorySize = 2048;
      cores = 2;
    };
  };

  testScript = ''
    import shutil

    toplevel = "${toplevel}"


    def boot(name, order, passphrase=None):
        """Starts a machine from the first of these disks, with the others attached, and unlocks it."""
        variables = machine.state_dir / f"{name}.fd"
        if ${if uefi then "True" else "False"}:
            shutil.copy("${pkgs.OVMF.variables}", variables)
            variables.chmod(0o600)
        command = f"${qemu.qemuBinary pkgs.qemu_test} -m 1024 ${lib.concatStringsSep " " firmware}"
        for position, disk in enumerate(order):
            image = machine.state_dir / f"empty{disk}.qcow2"
            command += f" -drive if=none,id=disk{disk},file={image},werror=report"
            command += f" -device virtio-blk-pci,drive=disk{disk},serial=disk{disk},bootindex={position + 1}"
        booted = create_machine(command, name=name)
        booted.start()
        if passphrase is not None:
            booted.wait_for_console_text("enter passphrase for")
            booted.send_console(f"{passphrase}\n")
        booted.wait_for_unit("multi-user.target")
        return booted


    def check_store(booted):
        """What was booted is what was installed, and Nix knows it."""
        assert booted.succeed("readlink -f /run/current-system").strip() == toplevel
        booted.succeed("nix-store --verify --check-contents")
        booted.succeed("readlink -f /nix/var/nix/profiles/system | grep -Fx " + toplevel)


    machine.wait_for_unit("multi-user.target")
    ${script}
  '';
}
