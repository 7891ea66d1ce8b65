# Calls the outputs of the flake with a stand-in for nixpkgs, as deep as that goes.
let
  flake = import ../../flake.nix;
  lib = import ./lib.nix // {
    concatStringsSep = builtins.concatStringsSep;
    optionalString = condition: text: if condition then text else "";
    trivial.release = "26.05";
    getExe = package: "${package}/bin/${package.name}";
  };

  # A package that remembers what it was made of.
  made = name: arguments: {
    type = "derivation";
    inherit name arguments;
    outPath = "/nix/store/00000000000000000000000000000000-${name}";
  };

  pkgsFor =
    system:
    let
      pkgs = {
        inherit lib;
        path = ./stand-in;
        stdenv.hostPlatform = {
          inherit system;
          isx86_64 = system == "x86_64-linux";
        };
        pkgsStatic.callPackage = file: arguments: made "nixos-install-via" { inherit file arguments; };
        testers.runNixOSTest =
          test:
          made "vm-test" test
          // {
            driver = made "driver" test;
          };
        nixos = modules: {
          config.system.build.toplevel = made "nixos-system" { count = lib.length modules; };
        };
        mkShell = made "shell";
        nixfmt-tree = made "nixfmt-tree" { };
      }
      // lib.genAttrs [
        "cargo"
        "clippy"
        "jq"
        "qemu_test"
        "rustc"
        "rustfmt"
        "shellcheck"
      ] (name: made name { })
      // {
        OVMF = {
          firmware = "/OVMF_CODE.fd";
          variables = "/OVMF_VARS.fd";
        };
      };
    in
    pkgs;

  systems = [
    "x86_64-linux"
    "aarch64-linux"
  ];
  nixpkgs = {
    inherit lib;
    legacyPackages = lib.genAttrs systems pkgsFor;
  };

  outputs = flake.outputs {
    self = outputs;
    inherit nixpkgs;
  };

  expect = what: condition: if condition then true else throw what;
  names = set: lib.attrNames set;
  checks = lib.concatMap (system: lib.attrValues outputs.checks.${system}) systems;
in
expect "the only input is nixpkgs" (names flake.inputs == [ "nixpkgs" ])
&& expect "the outputs people look for" (
  names outputs == [
    "apps"
    "checks"
    "devShells"
    "formatter"
    "nixosModules"
    "overlays"
    "packages"
  ]
)
&& expect "each output has both systems" (
  lib.all (output: names outputs.${output} == lib.sort (a: b: a < b) systems) [
    "apps"
    "checks"
    "devShells"
    "formatter"
    "packages"
  ]
)
&& expect "the module is a file" (
  builtins.pathExists (outputs.nixosModules.default + "/default.nix")
)
&& expect "the overlay has the package" (
  ((outputs.overlays.default (pkgsFor "x86_64-linux") { }).nixos-install-via.name)
  == "nixos-install-via"
)
&& expect "GRUB for BIOS is tested where there is BIOS" (
  outputs.checks.x86_64-linux ? grub && !(outputs.checks.aarch64-linux ? grub)
)
&& expect "every check has a script" (
  lib.all (
    check: check.name != "vm-test" || lib.hasInfix "install-to-disk" check.arguments.testScript
  ) checks
)
&& expect "the demo starts" (
  lib.hasSuffix "/bin/nixos-test-driver" outputs.apps.x86_64-linux.demo.program
)
&& expect "the shell has tools" (outputs.devShells.x86_64-linux.default.arguments.packages != [ ])
