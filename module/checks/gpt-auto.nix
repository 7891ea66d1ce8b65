# Two clones attached together: each boots from its own disk, and one grows with its disk.
{ pkgs, systemdBoot }:
{
  name = "gpt-auto";
  configuration = {
    imports = [ systemdBoot ];
    installVia.preset = "uefi-ext4";
  };
  disks = [
    8192
    8192
  ];
  script = ''
    import subprocess

    for disk in ["/dev/vdb", "/dev/vdc"]:
        machine.succeed(f"{toplevel}/bin/install-to-disk --yes {disk} >&2")
    machine.shutdown()

    for first, second in [(0, 1), (1, 0)]:
        with subtest(f"disk {first} boots beside disk {second}"):
            clone = boot(f"clone{first}", [first, second])
            check_store(clone)
            for mountpoint in ["/", "/boot"]:
                # The ESP is mounted when somebody looks.
                clone.succeed(f"ls {mountpoint}")
                source = clone.succeed(f"findmnt -no SOURCE -t ext4,vfat {mountpoint}").strip()
                serial = clone.succeed(f"cat /sys/block/$(lsblk -no PKNAME $(readlink -f {source}))/serial")
                assert serial.strip() == f"disk{first}", f"{mountpoint} is on {serial}"
            clone.shutdown()

    with subtest("the root grows with its disk"):
        image = machine.state_dir / "empty0.qcow2"
        subprocess.run(["${pkgs.qemu_test}/bin/qemu-img", "resize", image, "16G"], check=True)
        clone = boot("grown", [0])
        clone.wait_until_succeeds("test $(df --output=size -BG / | tail -n 1 | tr -dc 0-9) -ge 13")
        clone.shutdown()
  '';
}
