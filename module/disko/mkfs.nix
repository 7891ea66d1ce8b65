# The arguments that disko gives to mkfs, mkswap and cryptsetup: the label and the UUID among them, and
# what the installer does not pass on.
{ lib }:
let
  # They say nothing that the installer does otherwise: force, be quiet, do not discard.
  plainFlags =
    format:
    [
      "-f"
      "--force"
      "-q"
      "--quiet"
      "-v"
      "--verbose"
      "-K"
      "--nodiscard"
    ]
    ++ {
      vfat = [ "-I" ];
      luks = [
        "--batch-mode"
        "--verify-passphrase"
      ];
    }
    .${format} or [ "-F" ];

  labelFlags =
    format:
    {
      vfat = [ "-n" ];
      luks = [ "--label" ];
    }
    .${format} or [
      "-L"
      "--label"
    ];

  uuidFlags =
    format:
    {
      vfat = [ "-i" ];
      luks = [ "--uuid" ];
      xfs = [ ];
    }
    .${format} or [
      "-U"
      "--uuid"
    ];

  # What another value makes is no other file system to those who use it.
  isHarmless =
    format: option:
    format == "vfat" && option.flag == "-F" && option.value == "32"
    # How much is kept for root.
    || lib.hasPrefix "ext" format && option.flag == "-m";

  hex = n: "[0-9a-fA-F]{${toString n}}";
  isGuid = text: builtins.match "${hex 8}(-${hex 4}){3}-${hex 12}" text != null;

  # Returns the UUID that a flag asks for, or null. mkfs.vfat takes the eight digits without a dash.
  uuidOf =
    format: option:
    let
      vfat = builtins.match "(${hex 4})-?(${hex 4})" option.value;
      xfs = builtins.match "uuid=(.*)" option.value;
      text = if format == "xfs" && xfs != null then lib.head xfs else option.value;
      isFlag = lib.elem option.flag (uuidFlags format) || format == "xfs" && option.flag == "-m";
    in
    if option.value == null || !isFlag then
      null
    else if format == "vfat" then
      (if vfat == null then null else lib.concatStringsSep "-" vfat)
    else if isGuid text then
      text
    else
      null;

  # Returns the words of one argument. Some of disko's mkfs are called through a shell, which parts them.
  wordsOf =
    argument:
    let
      found = builtins.split "(([^\"' \t\n]|\"[^\"]*\"|'[^']*')+)" argument;
    in
    if lib.hasPrefix "-" argument then
      map (match: lib.replaceStrings [ "\"" "'" ] [ "" "" ] (lib.head match)) (
        lib.filter builtins.isList found
      )
    else
      [ argument ];

  # Groups the words into options, each with its value or null; what is none has no flag.
  optionsOf =
    plain: words:
    let
      first = lib.head words;
      rest = lib.drop 1 words;
      long = builtins.match "(--[^=]+)=(.*)" first;
      short = builtins.match "(-[^-])(.+)" first;
      isApart = rest != [ ] && !lib.hasPrefix "-" (lib.head rest);
      option = flag: value: {
        inherit flag value;
        text = if value == null then first else "${flag} ${value}";
      };
      parts = if long != null then long else short;
    in
    if words == [ ] then
      [ ]
    else if !lib.hasPrefix "-" first || lib.elem first plain then
      [ (option (if lib.hasPrefix "-" first then first else null) null) ] ++ optionsOf plain rest
    else if parts != null && lib.elem (lib.head parts) plain then
      [ (option (lib.head parts) null) ] ++ optionsOf plain rest
    else if parts != null then
      [ (option (lib.head parts) (lib.elemAt parts 1) // { text = first; }) ] ++ optionsOf plain rest
    else if isApart then
      [ (option first (lib.head rest)) ] ++ optionsOf plain (lib.drop 1 rest)
    else
      [ (option first null) ] ++ optionsOf plain rest;
in
{
  # Returns { names, devices, unknown }: the label and the UUID, the devices that the arguments name, and
  # the options that are not passed on.
  read =
    format: arguments:
    let
      plain = plainFlags format;
      options = optionsOf plain (lib.concatMap wordsOf arguments);
      isLabel = option: lib.elem option.flag (labelFlags format) && option.value != null;
      labels = map (option: option.value) (lib.filter isLabel options);
      uuids = lib.filter (uuid: uuid != null) (map (uuidOf format) options);
      isDevice = option: option.flag == null && lib.hasPrefix "/dev/" option.text;
      isKnown =
        option:
        lib.elem option.flag plain
        || isLabel option
        || isHarmless format option
        || uuidOf format option != null
        || isDevice option;
    in
    {
      names =
        lib.optionalAttrs (labels != [ ] && lib.last labels != "") { label = lib.last labels; }
        // lib.optionalAttrs (uuids != [ ]) { uuid = lib.last uuids; };
      devices = map (option: option.text) (lib.filter isDevice options);
      unknown = map (option: option.text) (lib.filter (option: !isKnown option) options);
    };
}
