# What an element of disko.devices mounts, or opens at boot, wherever in it that is said.
{ lib }:
let
  # The module system keeps its own attributes beside ours.
  withoutInternal = lib.filterAttrs (name: _: !lib.hasPrefix "_" name);
  elementsOf = value: if builtins.isList value then value else lib.attrValues (withoutInternal value);

  # Whether the boot goes on without it.
  isOptional =
    options:
    lib.any
      (
        option:
        lib.elem option [
          "nofail"
          "noauto"
        ]
      )
      (
        lib.concatMap (text: lib.filter builtins.isString (builtins.split "[, \t]+" text)) options
      );

  # Returns { at, required } for each.
  mountsOf =
    element:
    let
      kind = element.type or "";
      entry = at: options: {
        inherit at;
        required = !isOptional options;
      };
      children =
        lib.optional (element.content or null != null) element.content
        ++ lib.concatMap (name: elementsOf (element.${name} or { })) [
          "partitions"
          "subvolumes"
          "lvs"
          "datasets"
        ];
    in
    lib.optional (element.mountpoint or null != null) (
      entry element.mountpoint (element.mountOptions or [ ])
    )
    ++ lib.optional (kind == "swap") (entry "swap" (element.mountOptions or [ ]))
    ++ lib.optional (kind == "luks" && element.initrdUnlock or true) (
      entry "/dev/mapper/${element.name}" (element.settings.crypttabExtraOpts or [ ])
    )
    ++ lib.concatMap mountsOf children;
in
{
  inherit mountsOf withoutInternal;
}
