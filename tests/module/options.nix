# Renders docs/options.md: each option of installVia with its type, default, example and description.
let
  world = import ./evaluate.nix { };
  inherit (world) lib;

  # Markdown as the NixOS manual has it, with roles that plain Markdown does not know.
  plain =
    text:
    lib.replaceStrings
      [
        "{option}"
        "{file}"
        "{command}"
      ]
      [
        ""
        ""
        ""
      ]
      text;

  # Prints a value as Nix; indentation is two spaces a level.
  print =
    indent: value:
    let
      inner = "${indent}  ";
      key =
        name: if builtins.match "[a-zA-Z_][a-zA-Z0-9_-]*" name != null then name else builtins.toJSON name;
    in
    if value._type or "" == "literalExpression" then
      lib.removeSuffix "\n" value.text
    else if builtins.isAttrs value && value != { } then
      "{\n"
      + lib.concatStringsSep "" (
        lib.mapAttrsToList (name: v: "${inner}${key name} = ${print inner v};\n") value
      )
      + "${indent}}"
    else if builtins.isList value && value != [ ] then
      "[ ${lib.concatStringsSep " " (map (print inner) value)} ]"
    else if value == { } then
      "{ }"
    else if value == [ ] then
      "[ ]"
    else
      builtins.toJSON value;

  line = title: value: "*${title}:* `${value}`\n";
  isLong = text: lib.hasInfix "\n" text;
  shown =
    title: value:
    let
      text = print "" value;
    in
    if isLong text then "*${title}:*\n\n```nix\n${text}\n```\n" else line title text;

  section =
    loc: option:
    lib.concatStringsSep "\n" (
      [
        "## `${lib.concatStringsSep "." loc}`\n"
        "${lib.removeSuffix "\n" (plain option.description)}\n"
        (line "Type" option.type.description)
      ]
      ++ lib.optional (option ? defaultText || option ? default) (
        shown "Default" (option.defaultText or option.default)
      )
      ++ lib.optional (option ? example) (shown "Example" option.example)
    );

  walk =
    loc: tree:
    lib.concatMap (
      name:
      let
        value = tree.${name};
        at = loc ++ [ name ];
      in
      if !lib.isOption value then
        walk at value
      else if value.internal or false then
        [ ]
      else
        [ (section at value) ] ++ walk (below at value.type) (value.type.getSubOptions at)
    ) (lib.attrNames tree);

  # Where the options of one element are.
  below =
    at: type:
    if lib.hasInfix "attribute set of submodule" type.description then
      at ++ [ "<name>" ]
    else if lib.hasInfix "list of submodule" type.description then
      at ++ [ "*" ]
    else
      at;
in
''
  # Options

  The options of the NixOS module. This text is made of them by `tests/module/run.sh --update`.

''
+ lib.concatStringsSep "\n" (walk [ "installVia" ] (world.evaluate [ ]).options.installVia)
