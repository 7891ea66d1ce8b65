# The forms of a case: each is a row of a table, { name, ok, got, want }.
{ world }:
let
  inherit (world) lib;
in
rec {
  of = modules: (world.evaluate ([ { installVia.enable = lib.mkDefault true; } ] ++ modules)).config;
  messages = config: map (a: a.message) (lib.filter (a: !a.assertion) config.assertions);

  # What fstab and the initrd are told, in one line each.
  summary =
    config:
    lib.mapAttrsToList (
      at: fs:
      "${at} ${fs.device} ${fs.fsType} ${lib.concatStringsSep "," (lib.sort (a: b: a < b) fs.options)}"
    ) config.fileSystems
    ++ map (swap: "swap ${swap.device}") config.swapDevices
    ++ lib.mapAttrsToList (name: luks: "luks ${name} ${luks.device}") config.boot.initrd.luks.devices
    ++ lib.mapAttrsToList (
      _: d: "repart ${d.Type}" + (if d ? SizeMaxBytes then " ${d.SizeMaxBytes}" else "")
    ) config.systemd.repart.partitions
    ++ lib.optional config.boot.initrd.systemd.repart.enable "repart in stage 1"
    ++ lib.optional config.systemd.repart.enable "repart in stage 2"
    ++ lib.optional (config.boot.initrd.systemd.root == "gpt-auto") "root=gpt-auto"
    ++ lib.optional (
      config.boot.loader.efi.efiSysMountPoint != "/boot"
    ) "esp ${config.boot.loader.efi.efiSysMountPoint}"
    ++ lib.optional (
      config.boot.loader.systemd-boot.xbootldrMountPoint != null
    ) "kernels ${config.boot.loader.systemd-boot.xbootldrMountPoint}"
    ++ map (device: "grub ${device}") (
      lib.concatMap (boot: boot.devices) config.boot.loader.grub.mirroredBoots
    );

  same = name: got: want: {
    inherit name got want;
    ok = got == want;
  };
  boots =
    name: modules: want:
    let
      config = of modules;
    in
    same "${name}: what NixOS is told" (
      summary config ++ map (message: "failed: ${message}") (messages config) ++ config.warnings
    ) want;
  # One field of the manifest.
  tells =
    name: modules: field: want:
    same "${name}: the manifest's ${field}" ((of modules).installVia.manifest.${field} or null) want;
  # Exactly one assertion fails, with these words.
  refuses =
    name: modules: words:
    let
      got = messages (of modules);
    in
    {
      name = "refused: ${name}";
      inherit got;
      want = [ words ];
      ok = lib.length got == 1 && lib.hasInfix words (lib.head got);
    };
  warns =
    name: modules: words:
    let
      config = of modules;
    in
    {
      name = "warned of: ${name}";
      got = config.warnings ++ messages config;
      want = [ words ];
      ok =
        lib.length config.warnings == 1
        && messages config == [ ]
        && lib.hasInfix words (lib.head config.warnings);
    };
  # The partitions of a layout, in one line each: name, type, size, and what is on it.
  partitions =
    layout:
    lib.concatMap (disk: map (p: "${p.name} ${p.type} ${p.size}${holds p}") disk.partitions) (
      lib.attrValues layout.disks
    );
  holds =
    outer:
    let
      content = outer.content or null;
      options = mount: if mount ? options then " ${lib.concatStringsSep "," mount.options}" else "";
      on = mount: (if mount ? mountpoint then " ${mount.mountpoint}" else "") + options mount;
      names = lib.concatMap (name: lib.optional (content ? ${name}) " ${content.${name}}") [
        "name"
        "label"
        "uuid"
      ];
      volumes = map (volume: " [${volume.path}${on volume}]") (content.subvolumes or [ ]);
    in
    if content == null then
      ""
    else
      lib.concatStringsSep "" (
        [
          " ${content.format or content.type}"
        ]
        ++ names
        ++ [ (on content) ]
        ++ volumes
        ++ lib.optional (content ? content) (holds content)
      );
  # What is read of disko, and what of it is told.
  reads =
    name: modules: want:
    let
      config = of modules;
      inherit (config.installVia) manifest;
    in
    same "read: ${name}" (
      partitions (manifest.layout or { disks = { }; })
      ++ lib.optional (manifest ? layoutReason) "reason: ${manifest.layoutReason}"
      ++ map (message: "failed: ${message}") (messages config)
      ++ config.warnings
    ) want;
  # There is no layout for this reason, of which one warning tells, and nothing fails.
  explains =
    name: modules: words:
    let
      config = of modules;
      inherit (config.installVia) manifest;
      reason = manifest.layoutReason or "none";
    in
    {
      name = "not read: ${name}";
      got = [ reason ] ++ config.warnings ++ messages config;
      want = [ words ];
      ok =
        builtins.deepSeq manifest (!(manifest ? layout))
        && lib.hasInfix words reason
        && messages config == [ ]
        && lib.length config.warnings == 1
        && lib.hasInfix reason (lib.head config.warnings);
    };
  # The module system itself refuses it.
  throws = name: modules: {
    name = "no value of the option: ${name}";
    got = "evaluated";
    want = "an error";
    ok = !(builtins.tryEval (builtins.deepSeq (of modules).fileSystems true)).success;
  };
}
