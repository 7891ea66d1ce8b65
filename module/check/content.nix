# What is wrong with the content of a partition, each in one sentence that says what to do.
{ lib }:
let
  inherit (lib)
    concatMap
    filter
    hasPrefix
    optional
    optionals
    ;

  size = import ../size.nix { inherit lib; };

  labelLimits = {
    vfat = 11;
    xfs = 12;
    ext2 = 16;
    ext3 = 16;
    ext4 = 16;
    swap = 16;
    btrfs = 255;
    luks = 47;
  };

  # What mkfs.vfat does not take in a label, or other code pages read as other letters.
  vfatLabel = "[]A-Za-z0-9 !#$%&'()@^_`{}~-]*";

  hex = n: "[0-9a-fA-F]{${toString n}}";
  isGuid =
    text:
    builtins.match "${hex 8}-${hex 4}-${hex 4}-${hex 4}-${hex 12}" text != null
    && builtins.match "[0-]*" text == null;
  isVfatUuid = text: builtins.match "${hex 4}-${hex 4}" text != null;

  # What each kind of content says of itself, beside its type.
  fieldsOf = {
    filesystem = [
      "format"
      "label"
      "uuid"
      "mountpoint"
      "options"
    ];
    btrfs = [
      "label"
      "uuid"
      "mountpoint"
      "options"
      "subvolumes"
    ];
    swap = [
      "label"
      "uuid"
    ];
    luks = [
      "name"
      "label"
      "uuid"
      "content"
      "settings"
    ];
  };

  quote = text: "\"${text}\"";

  # Returns the values that occur more than once.
  repeated = values: lib.unique (filter (value: lib.count (other: other == value) values > 1) values);

  formatOf =
    content: if content.type == "filesystem" then content.format or "ext4" else content.type;

  subvolumeProblems =
    what: content:
    let
      paths = map (volume: lib.removePrefix "/" volume.path) (content.subvolumes or [ ]);
      isBad =
        path:
        builtins.match ".*(,|[[:cntrl:]]).*" path != null
        || lib.any (
          part:
          lib.elem part [
            ""
            "."
            ".."
          ]
          || builtins.stringLength part > 255
        ) (lib.splitString "/" path);
    in
    map (
      path:
      "${what} has a subvolume with the path ${quote path}; write names of at most 255 bytes, without commas, between single slashes"
    ) (filter isBad paths)
    ++ map (path: "${what} lists the subvolume ${quote path} twice; keep one") (repeated paths);

  luksProblems =
    what: content:
    let
      name = content.name or "root";
      isTaken = lib.elem name [
        "control"
        "."
        ".."
      ];
    in
    optional (
      !(content ? name)
    ) "${what} is encrypted without a name; name what is opened, such as root"
    ++
      optional (builtins.match "[A-Za-z0-9#+.:=@_-]{1,127}" name == null || isTaken)
        "${what} is opened as ${quote name}; write at most 127 letters, digits and #+-.:=@_ other than control"
    ++ optional (!(content ? content)) "${what} is encrypted and holds nothing; give it content"
    ++ optionals (content ? content) (problems what content.content);

  problems =
    what: content:
    let
      known = [ "type" ] ++ fieldsOf.${content.type};
      foreign = filter (field: !lib.elem field known) (lib.attrNames content);
      format = formatOf content;
      limit = labelLimits.${format} or null;
      label = content.label or "";
      bytes = builtins.stringLength label;
      isPlain =
        builtins.match (if format == "vfat" then vfatLabel else "[^[:cntrl:]]*") label != null;
      uuidIsGood = (if format == "vfat" then isVfatUuid else isGuid) content.uuid;
      allOptions = content.options or [ ] ++ concatMap (v: v.options or [ ]) (content.subvolumes or [ ]);
    in
    map (field: "${what} holds ${content.type}, which has no ${field}; leave it out") foreign
    ++ optional (
      content.type == "filesystem" && !(content ? format)
    ) "${what} holds a file system without format; write one such as ext4"
    ++ optional (content ? label && label == "") "${what} has an empty label; leave it out"
    ++
      optional (limit != null && bytes > limit)
        "${what} has label ${quote label} of ${toString bytes} bytes and ${format} allows ${toString limit}; shorten it"
    ++ optional (lib.hasInfix "/" label) "${what} has a slash in label ${quote label}; leave it out"
    ++
      optional (!lib.hasInfix "/" label && !isPlain)
        "${what} has label ${quote label} with a character that ${format} does not take; leave it out"
    ++
      optional (content ? uuid && !uuidIsGood)
        "${what} has ${format} with uuid ${quote content.uuid}; write it as ${
          if format == "vfat" then "ABCD-1234" else "8-4-4-4-12 hex digits"
        }"
    ++ map (option: "${what} has mount option ${quote option}; list one option an entry") (
      filter (option: option == "" || builtins.match ".*(,|[[:space:][:cntrl:]]).*" option != null) allOptions
    )
    ++ map (
      option: "${what} chooses a subvolume by ${quote option}; list it below subvolumes instead"
    ) (filter (option: hasPrefix "subvol=" option || hasPrefix "subvolid=" option) allOptions)
    ++ subvolumeProblems what content
    ++ optionals (content.type == "luks") (luksProblems what content);

  # The least that tools make, as the installer has it.
  least =
    content:
    if content.type == "luks" then
      size.mib 16 + (if content ? content then least content.content else 0)
    else
      {
        xfs = size.mib 300;
        btrfs = size.mib 115;
        ext3 = size.mib 16;
        ext4 = size.mib 16;
        ext2 = size.mib 2;
        vfat = size.mib 2;
      }
      .${formatOf content} or (64 * 1024);
in
{
  inherit
    problems
    formatOf
    least
    isGuid
    repeated
    ;
}
