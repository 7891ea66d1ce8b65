# Identity: how the configuration names what is on the disk, so that a clone finds its own.
#
# With gpt-auto the disk is told by the loader: systemd-boot writes the PARTUUID of the ESP it was
# started from into an EFI variable, udev makes /dev/gpt-auto-root of the root partition on that
# very disk, and systemd-gpt-auto-generator mounts the rest by partition type.
{ lib }:
let
  layouts = import ./layout.nix { inherit lib; };

  # Writes a name as udev does in the links below /dev/disk.
  escape =
    lib.replaceStrings
      [
        "\\"
        " "
        "!"
        "\""
        "$"
        "%"
        "&"
        "'"
        "("
        ")"
        "*"
        ","
        "/"
        ";"
        "<"
        ">"
        "?"
        "["
        "]"
        "^"
        "`"
        "{"
        "|"
        "}"
        "~"
      ]
      [
        "\\x5c"
        "\\x20"
        "\\x21"
        "\\x22"
        "\\x24"
        "\\x25"
        "\\x26"
        "\\x27"
        "\\x28"
        "\\x29"
        "\\x2a"
        "\\x2c"
        "\\x2f"
        "\\x3b"
        "\\x3c"
        "\\x3e"
        "\\x3f"
        "\\x5b"
        "\\x5d"
        "\\x5e"
        "\\x60"
        "\\x7b"
        "\\x7c"
        "\\x7d"
        "\\x7e"
      ];

  by = kind: name: "/dev/disk/by-${kind}/${escape name}";
  byPartlabel = place: by "partlabel" place.partition.name;

  # The generator takes the first partition of a type.
  isFirstOfType =
    layout: place:
    let
      first = layouts.firstOfType layout place.partition.type;
    in
    first.diskName == place.diskName && first.index == place.index;

  # Bit 63 tells the generator to leave a partition alone.
  isOffered = place: !lib.elem 63 (place.partition.attributes or [ ]);
in
rec {
  # Whether the root is a partition that systemd finds by its type.
  rootIsFound =
    layout:
    let
      root = layouts.mountAt layout "/";
    in
    root != null && root.partition.type == "root" && isFirstOfType layout root && isOffered root;

  # Whether stage 1 takes a mount from the root partition.
  isOnFoundRoot =
    layout: mount: rootIsFound layout && mount.partition.type == "root" && isFirstOfType layout mount;

  # Whether systemd-gpt-auto-generator mounts it without a word in fstab.
  isFoundMount =
    layout: mount:
    let
      inherit (mount.partition) type;
      hasXbootldr =
        layouts.mountAt layout "/boot" != null
        && (layouts.mountAt layout "/boot").partition.type == "xbootldr";
      # The generator's own options are those of an ESP; options of any other mount would get lost.
      isPlain = mount.luks == null && mount.subvolume == null && (type == "esp" || mount.options == [ ]);
      place =
        {
          # /efi is taken for the ESP only where /boot is an XBOOTLDR partition.
          esp = if hasXbootldr then "/efi" else "/boot";
          xbootldr = "/boot";
          home = "/home";
          srv = "/srv";
          # var is left out: its PARTUUID must follow from the machine-id, which a clone does not share.
        }
        .${type} or null;
    in
    isPlain && place == mount.mountpoint && isFirstOfType layout mount && isOffered mount;

  isFoundSwap =
    layout: place: place.partition.type == "swap" && place.luks == null && isOffered place;

  # Returns the device that holds a file system or swap.
  device =
    identity: layout: place:
    if place.luks != null then
      "/dev/mapper/${place.luks.name}"
    else if identity == "gpt-auto" && isOnFoundRoot layout place then
      "/dev/gpt-auto-root"
    else if identity == "label" && place.content ? label then
      by "label" place.content.label
    else if identity == "preserve" && place.content ? uuid then
      by "uuid" place.content.uuid
    else if identity == "preserve" then
      partition place
    else
      byPartlabel place;

  # Returns the encrypted partition below a device of the mapper.
  luksDevice =
    identity: layout: place:
    if identity == "gpt-auto" && isOnFoundRoot layout place then
      "/dev/gpt-auto-root-luks"
    else if identity == "preserve" then
      partition place
    else
      byPartlabel place;

  partition =
    place: if place.partition ? uuid then by "partuuid" place.partition.uuid else byPartlabel place;
}
