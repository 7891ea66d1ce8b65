# The little of nixpkgs' lib that the module uses, so that it is evaluated where there is no nixpkgs.
#
# It has the module system's rules that matter here: laziness by option, mkIf and mkMerge pushed down
# into attributes, priorities, order, and an error for what is no option. Types say no more than they must.
let
  inherit (builtins)
    attrNames
    concatLists
    concatStringsSep
    elem
    elemAt
    filter
    foldl'
    genList
    head
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isString
    length
    listToAttrs
    mapAttrs
    stringLength
    substring
    toJSON
    ;

  concatMap = builtins.concatMap;
  attrValues = builtins.attrValues;
  last = list: elemAt list (length list - 1);
  path = concatStringsSep ".";
  isType = type: value: isAttrs value && value._type or "" == type;

  # --- lists, strings and sets ---

  letters = text: genList (n: substring n 1 text) (stringLength text);
  lower = letters "abcdefghijklmnopqrstuvwxyz";
  upper = letters "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
  escapeRegex =
    let
      special = letters "\\[{()^$?*+|.";
    in
    builtins.replaceStrings special (map (letter: "\\${letter}") special);
  unique = foldl' (seen: value: if elem value seen then seen else seen ++ [ value ]) [ ];
  filterAttrs =
    keep: set:
    listToAttrs (
      concatMap (
        name:
        if keep name set.${name} then
          [
            {
              inherit name;
              value = set.${name};
            }
          ]
        else
          [ ]
      ) (attrNames set)
    );
  isDerivation = value: isAttrs value && value.type or "" == "derivation";
  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
  hasSuffix =
    suffix: text:
    stringLength text >= stringLength suffix
    && substring (stringLength text - stringLength suffix) (stringLength suffix) text == suffix;
  optionals = condition: list: if condition then list else [ ];
  findFirst =
    found: otherwise: list:
    let
      hits = filter found list;
    in
    if hits == [ ] then otherwise else head hits;

  # --- definitions and their properties ---

  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };
  mkOrder = priority: content: {
    _type = "order";
    inherit priority content;
  };

  # Moves the properties of a set of definitions to its attributes; conditions are not looked at.
  pushDown =
    definition:
    if isType "merge" definition then
      concatMap pushDown definition.contents
    else if isType "if" definition || isType "override" definition then
      map (mapAttrs (_: content: definition // { inherit content; })) (pushDown definition.content)
    else
      [ definition ];

  discharge =
    definition:
    if isType "merge" definition then
      concatMap discharge definition.contents
    else if isType "if" definition then
      optionals definition.condition (discharge definition.content)
    else if isType "override" definition then
      map (inner: inner // { inherit (definition) priority; }) (discharge definition.content)
    else if isType "order" definition then
      map (inner: inner // { order = definition.priority; }) (discharge definition.content)
    else
      [
        {
          priority = 100;
          order = 1000;
          value = definition;
        }
      ];

  merge =
    loc: type: definitions:
    let
      all = concatMap discharge definitions;
      highest = foldl' (a: b: if a < b.priority then a else b.priority) 10000 all;
      chosen = builtins.sort (a: b: a.order < b.order) (filter (d: d.priority == highest) all);
      values = map (d: d.value) chosen;
      wrong = filter (value: !type.check value) values;
    in
    if values == [ ] then
      throw "The option `${path loc}' was accessed but has no value defined. Try setting the option."
    else if wrong != [ ] then
      throw "A definition for option `${path loc}' is not of type `${type.description}'."
    else
      type.merge loc values;

  # --- types ---

  equal =
    loc: values:
    if filter (value: value != head values) values == [ ] then
      head values
    else
      throw "The option `${path loc}' has conflicting definition values.";

  mkType =
    {
      merge ? equal,
      getSubOptions ? _: { },
      ...
    }@type:
    type // { inherit merge getSubOptions; };

  scalar = description: check: mkType { inherit description check; };

  types = rec {
    str = scalar "string" isString;
    bool = scalar "boolean" isBool;
    raw = scalar "raw value" (_: true);
    package = scalar "package" (value: isDerivation value || value ? outPath);
    path = scalar "absolute path" (
      value: builtins.isPath value || value ? outPath || (isString value && hasPrefix "/" value)
    );
    ints.between =
      low: high:
      scalar "integer between ${toString low} and ${toString high} (both inclusive)" (
        value: isInt value && low <= value && value <= high
      );
    enum =
      values: scalar "one of ${concatStringsSep ", " (map toJSON values)}" (value: elem value values);
    lines = mkType {
      description = "strings concatenated with \"\\n\"";
      check = isString;
      merge = _: concatStringsSep "\n";
    };
    anything = mkType {
      description = "anything";
      check = _: true;
      merge =
        loc: values:
        if length values > 1 && builtins.all (value: isAttrs value && !isDerivation value) values then
          (attrsOf anything).merge loc values
        else
          equal loc values;
    };
    nullOr =
      inner:
      mkType {
        description = "null or ${inner.description}";
        check = value: value == null || inner.check value;
        merge =
          loc: values:
          if builtins.all (value: value == null) values then
            null
          else if elem null values then
            throw "The option `${path loc}' is defined both null and not null."
          else
            inner.merge loc values;
        inherit (inner) getSubOptions;
      };
    listOf =
      inner:
      mkType {
        description = "list of ${inner.description}";
        check = isList;
        merge =
          loc: values:
          concatLists (
            genList (
              n:
              imap (
                m: value: merge (loc ++ [ "[definition ${toString n}-entry ${toString m}]" ]) inner [ value ]
              ) (elemAt values n)
            ) (length values)
          );
        getSubOptions = loc: inner.getSubOptions (loc ++ [ "*" ]);
      };
    attrsOf =
      inner:
      mkType {
        description = "attribute set of ${inner.description}";
        check = value: isAttrs value && !(value ? _type);
        merge =
          loc: values:
          let
            sets = concatMap pushDown values;
            names = unique (concatMap attrNames sets);
            of = name: map (set: set.${name}) (filter (set: set ? ${name}) sets);
            # A definition under mkIf false is none, and its attribute is not there.
            defined = filter (name: concatMap discharge (of name) != [ ]) names;
          in
          genAttrs defined (name: merge (loc ++ [ name ]) inner (of name));
        getSubOptions = loc: inner.getSubOptions (loc ++ [ "<name>" ]);
      };
    submodule =
      module:
      mkType {
        description = "submodule";
        check = isAttrs;
        merge =
          loc: values:
          let
            args = {
              name = last loc;
              inherit config;
            };
            declared = normalise (if isFunction module then module args else module);
            config = evaluate loc declared.options ([ declared.config ] ++ values);
          in
          config;
        # Only options are asked for, so that the arguments are never looked at.
        getSubOptions =
          _:
          (normalise (
            if isFunction module then
              module {
                name = "<name>";
                config = { };
              }
            else
              module
          )).options;
      };
  };

  # --- modules ---

  normalise =
    module:
    if module ? options || module ? config then
      {
        imports = module.imports or [ ];
        options = module.options or { };
        config = module.config or { };
      }
    else
      {
        imports = module.imports or [ ];
        options = { };
        config = removeAttrs module [ "imports" ];
      };

  collect =
    args: module:
    let
      loaded = if builtins.isPath module then import module else module;
      normal = normalise (if isFunction loaded then loaded args else loaded);
    in
    concatMap (collect args) normal.imports ++ [ normal ];

  isOption = isType "option";

  # Joins declarations; an option is declared once.
  join =
    trees:
    genAttrs (unique (concatMap attrNames trees)) (
      name:
      let
        found = map (tree: tree.${name}) (filter (tree: tree ? ${name}) trees);
      in
      if isOption (head found) then head found else join found
    );

  # Returns the values of a tree of options.
  evaluate =
    loc: tree: definitions:
    let
      sets = concatMap pushDown definitions;
      unknown = filter (name: !(tree ? ${name})) (concatMap attrNames sets);
      value =
        name: declaration:
        let
          at = loc ++ [ name ];
          given = map (set: set.${name}) (filter (set: set ? ${name}) sets);
          default = optionals (declaration ? default) [ (mkOverride 1500 declaration.default) ];
        in
        if !isOption declaration then
          evaluate at declaration given
        else if declaration.readOnly or false && length given > 1 then
          throw "The option `${path at}' is read-only, but it's set multiple times."
        else
          (declaration.apply or (value: value)) (merge at declaration.type (default ++ given));
    in
    if unknown != [ ] then
      throw "The option `${path (loc ++ [ (head unknown) ])}' does not exist."
    else
      mapAttrs value tree;

  imap = f: list: genList (n: f (n + 1) (elemAt list n)) (length list);
  genAttrs =
    names: f:
    listToAttrs (
      map (name: {
        inherit name;
        value = f name;
      }) names
    );
in
{
  inherit
    attrNames
    attrValues
    concatLists
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    filterAttrs
    findFirst
    foldl'
    genAttrs
    hasPrefix
    hasSuffix
    head
    isFunction
    isOption
    last
    length
    listToAttrs
    mapAttrs
    mkIf
    mkMerge
    mkOrder
    mkOverride
    optionals
    types
    unique
    ;
  inherit (builtins) all any sort;

  evalModules =
    {
      modules,
      specialArgs ? { },
    }:
    let
      args = specialArgs // {
        inherit config options;
      };
      collected = concatMap (collect args) modules;
      options = join (map (module: module.options) collected);
      config = evaluate [ ] options (map (module: module.config) collected);
    in
    {
      inherit config options;
    };

  mkDefault = mkOverride 1000;
  mkOptionDefault = mkOverride 1500;
  mkForce = mkOverride 50;
  mkBefore = mkOrder 500;
  mkAfter = mkOrder 1500;

  mkOption = declaration: declaration // { _type = "option"; };
  mkEnableOption = what: {
    _type = "option";
    type = types.bool;
    default = false;
    example = true;
    description = "Whether to enable ${what}.";
  };
  literalExpression = text: {
    _type = "literalExpression";
    inherit text;
  };

  imap0 = f: imap (n: f (n - 1));
  imap1 = imap;
  drop = n: list: genList (m: elemAt list (n + m)) (if length list > n then length list - n else 0);
  count = found: list: length (filter found list);
  optional = condition: value: optionals condition [ value ];
  optionalAttrs = condition: set: if condition then set else { };
  nameValuePair = name: value: { inherit name value; };
  mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
  getBin = package: package.bin or package;

  hasInfix = infix: text: length (builtins.split (escapeRegex infix) text) > 1;
  removePrefix =
    prefix: text:
    if hasPrefix prefix text then substring (stringLength prefix) (stringLength text) text else text;
  removeSuffix =
    suffix: text:
    if hasSuffix suffix text then substring 0 (stringLength text - stringLength suffix) text else text;
  splitString = separator: text: filter isString (builtins.split (escapeRegex separator) text);
  replaceStrings = builtins.replaceStrings;
  toUpper = builtins.replaceStrings lower upper;
  toLower = builtins.replaceStrings upper lower;
  toIntBase10 =
    text:
    let
      digits = builtins.match "0*([0-9]+)" text;
    in
    builtins.fromJSON (head digits);
  fixedWidthNumber =
    width: n:
    let
      text = toString n;
      zeros = concatStringsSep "" (genList (_: "0") (width - stringLength text));
    in
    zeros + text;
}
