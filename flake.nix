{
  description = "A NixOS system that installs itself: onto a disk, an image or into a directory";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forAllSystems = of: nixpkgs.lib.genAttrs systems (system: of nixpkgs.legacyPackages.${system});
      package = pkgs: pkgs.pkgsStatic.callPackage ./module/package.nix { };
      checks =
        pkgs:
        import ./module/checks {
          inherit pkgs;
          module = self.nixosModules.default;
        };
    in
    {
      # A path, so that importing it twice is importing it once, and errors name the file.
      nixosModules.default = ./module;

      overlays.default = final: _: { nixos-install-via = package final; };

      packages = forAllSystems (pkgs: {
        default = package pkgs;
      });

      checks = forAllSystems (pkgs: { package = package pkgs; } // checks pkgs);

      # Clones a system to two disks and boots each with the other beside it.
      apps = forAllSystems (pkgs: {
        demo = {
          type = "app";
          program = "${(checks pkgs).gpt-auto.driver}/bin/nixos-test-driver";
          meta.description = "Clone a system in a virtual machine and boot the clones";
        };
      });

      devShells = forAllSystems (pkgs: {
        default = pkgs.mkShell {
          packages = [
            pkgs.cargo
            pkgs.clippy
            pkgs.jq
            pkgs.rustc
            pkgs.rustfmt
            pkgs.shellcheck
          ];
        };
      });

      formatter = forAllSystems (pkgs: pkgs.nixfmt-tree);
    };
}
