# Evaluates the module in a configuration, with our own lib or that of a nixpkgs.
{
  nixpkgs ? null,
  binary ? null,
}:
rec {
  lib = import (if nixpkgs == null then ./lib.nix else nixpkgs + "/lib");
  pkgs = import ./pkgs.nix { inherit binary; };

  # disko's own module, as far as it is read.
  disko.options.disko.devices = lib.mkOption {
    type = lib.types.raw;
    default = { };
  };

  evaluate =
    modules:
    lib.evalModules {
      modules = [
        ./nixos.nix
        ../../module
      ]
      ++ modules;
      specialArgs = {
        inherit lib pkgs;
      };
    };
}
