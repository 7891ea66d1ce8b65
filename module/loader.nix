# Which boot loader a configuration has, and what an installer needs to know of it.
{ lib, config }:
let
  loader = config.boot.loader;
  # Not every loader is in every release, and lanzaboote is a module of its own.
  on = name: (loader.${name} or { }).enable or false;
  lanzaboote = config.boot.lanzaboote or { };
  esp = loader.efi.efiSysMountPoint;
  # systemd-boot keeps all generations where no limit is given, and GRUB a hundred, which is NixOS's number
  # and no one's wish; warn where not even a few fit.
  unlimited = 4;
  limit = value: if value == null || value == 0 || value >= 100 then unlimited else value;
in
rec {
  kind =
    if config.boot.isContainer or false then
      "none"
    else if lanzaboote.enable or false then
      "lanzaboote"
    else if on "systemd-boot" then
      "systemd-boot"
    else if on "limine" then
      "limine"
    else if on "grub" then
      "grub"
    else if on "generic-extlinux-compatible" then
      "extlinux"
    # There are more loaders than NixOS has, and the program that installs one tells more than its options.
    else
      "other";

  espMountPoint =
    {
      systemd-boot = esp;
      lanzaboote = esp;
      limine = if loader.limine.efiSupport or true then esp else null;
      grub = if loader.grub.efiSupport then esp else null;
      other = if on "refind" then esp else null;
    }
    .${kind} or null;

  # NixOS collects device and devices in mirroredBoots; "nodev" means none.
  grubDevices = lib.optionals (kind == "grub") (
    lib.unique (
      lib.filter (device: device != "nodev") (
        lib.concatMap (boot: boot.devices) loader.grub.mirroredBoots ++ loader.grub.devices
      )
    )
  );

  canTouchEfiVariables = loader.efi.canTouchEfiVariables;

  # Where kernels are copied to, or null where they stay on the root.
  kernelMountPoint =
    let
      xbootldr = loader.systemd-boot.xbootldrMountPoint or null;
    in
    {
      systemd-boot = if xbootldr != null then xbootldr else esp;
      lanzaboote = esp;
      limine = esp;
      # Elsewhere GRUB reads them from the store.
      grub = "/boot";
    }
    .${kind} or null;

  generations = limit (
    {
      systemd-boot = loader.systemd-boot.configurationLimit;
      lanzaboote = lanzaboote.configurationLimit or null;
      limine = loader.limine.maxGenerations or null;
      grub = loader.grub.configurationLimit;
    }
    .${kind} or null
  );
}
