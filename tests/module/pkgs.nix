# The packages the module names. Their store paths are made up, so that manifests are the same everywhere.
{
  # The program to build a system with, or null for one that only records how it was called.
  binary ? null,
}:
let
  # Fits the checks of a store path, and exists nowhere.
  fake = name: {
    type = "derivation";
    inherit name;
    outPath = "/nix/store/00000000000000000000000000000000-${name}";
  };

  # Where Debian and NixOS have their tools.
  path = "/usr/bin:/bin:/run/current-system/sw/bin";

  run =
    name: text:
    derivation {
      inherit name;
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [
        "-euc"
        text
      ];
      PATH = path;
    };

  stub = builtins.toFile "nixos-install-via" ''
    #!/bin/sh
    # Takes the options of generate, writes the manifest and one script as it does.
    set -eu
    [ "$1" = generate ]
    shift
    while [ $# -gt 0 ]; do
      case $1 in
        --toplevel) toplevel=$2 ;;
        --manifest) manifest=$2 ;;
        --shell) shell=$2 ;;
        --binary) binary=$2 ;;
        *) exit 2 ;;
      esac
      shift 2
    done
    cp "$manifest" "$toplevel/install-via/manifest.json"
    printf '#!%s\nexec %s install-to-disk --system %s "$@"\n' "$shell" "$binary" "$toplevel" > "$toplevel/bin/install-to-disk"
    chmod 755 "$toplevel/bin/install-to-disk"
  '';
in
rec {
  inherit run;
  runtimeShell = "/bin/sh";
  stdenv = {
    buildPlatform.canExecute = _: true;
    hostPlatform.system = builtins.currentSystem;
  };
  writeText =
    name: text:
    derivation {
      inherit name text;
      system = builtins.currentSystem;
      builder = "/bin/sh";
      args = [
        "-euc"
        ''cp "$textPath" "$out"''
      ];
      passAsFile = [ "text" ];
      PATH = path;
    };

  nixos-install-via = run "nixos-install-via-0" ''
    mkdir -p $out/bin
    cp ${if binary == null then stub else binary} $out/bin/nixos-install-via
    chmod 755 $out/bin/nixos-install-via
  '';

  e2fsprogs = fake "e2fsprogs-1.47.0";
  xfsprogs = fake "xfsprogs-6.8.0";
  dosfstools = fake "dosfstools-4.2";
  btrfs-progs = fake "btrfs-progs-6.8";
  util-linux = fake "util-linux-2.39";
  cryptsetup = fake "cryptsetup-2.7.0";
  openssh = fake "openssh-9.7p1";
}
