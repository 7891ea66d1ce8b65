#!/bin/sh
# Evaluates the NixOS module and builds a system with it. One line a case; fails when any does.
#
#   tests/module/run.sh             with our own stand-in for nixpkgs' lib
#   NIXPKGS=DIR tests/module/run.sh with DIR/lib
#   BINARY=FILE tests/module/run.sh with this nixos-install-via to generate the entry scripts
#   tests/module/run.sh --update    writes golden/ and docs/options.md anew
set -eu
unset CDPATH

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

# Builds use the tools of this machine and nothing from the network. Root needs no daemon for them.
export NIX_CONFIG='sandbox = false
substituters ='
if [ "$(id -u)" = 0 ]; then
  export NIX_REMOTE=
  export NIX_CONFIG="$NIX_CONFIG
build-users-group ="
fi

# Prints a path as Nix reads it: a literal one takes few characters.
nix_path() {
  printf '(/. + "%s")' "$(printf %s "$1" | sed 's/[\\"$]/\\&/g')"
}

nixpkgs=null
[ -z "${NIXPKGS-}" ] || nixpkgs=$(nix_path "$(realpath "$NIXPKGS")")
binary=null
[ -z "${BINARY-}" ] || binary=$(nix_path "$(realpath "$BINARY")")

evaluate() {
  nix-instantiate --eval --strict --json "$@"
}

passed() {
  echo "ok    $1"
}

failed() {
  echo "FAIL  $1"
  [ ! -s "${2-/dev/null}" ] || sed 's/^/      /' "$2"
  failures=$((failures + 1))
}

# Compares a made file with a kept one, or keeps it.
golden() {
  if [ "$update" = yes ]; then
    cp "$3" "$2"
    passed "$1: written"
  elif diff -u "$2" "$3" > "$work/diff"; then
    passed "$1"
  else
    failed "$1; run tests/module/run.sh --update and read the difference" "$work/diff"
  fi
}

update=no
case ${1-} in
  --update) update=yes ;;
  '') ;;
  *)
    echo "usage: tests/module/run.sh [--update]" >&2
    exit 2
    ;;
esac

for tool in nix-instantiate nix-build jq; do
  command -v "$tool" > /dev/null || {
    echo "$tool is missing; install Nix and jq" >&2
    exit 1
  }
done

# Every file of Nix, also those that only users of the flake evaluate.
for file in "$root"/flake.nix "$root"/module/*.nix "$root"/module/*/*.nix "$here"/*.nix; do
  if nix-instantiate --parse "$file" > /dev/null 2> "$work/error"; then
    passed "parsed: ${file#"$root/"}"
  else
    failed "parsed: ${file#"$root/"}" "$work/error"
  fi
done

# The table of cases.
if evaluate "$here/cases.nix" --arg nixpkgs "$nixpkgs" -A results > "$work/results" 2> "$work/error"; then
  jq -r '.[] | select(.ok) | "ok    \(.name)"' "$work/results"
  jq -r '.[] | select(.ok | not) | "FAIL  \(.name)\n      got  \(.got | tojson)\n      want \(.want | tojson)"' \
    "$work/results"
  failures=$((failures + $(jq 'map(select(.ok | not)) | length' "$work/results")))
else
  failed 'the table of cases' "$work/error"
fi

# What Nix says of what it refuses.
refused() {
  if evaluate "$here/refused.nix" --arg nixpkgs "$nixpkgs" -A "$1" > /dev/null 2> "$work/error"; then
    failed "said: $1 is not refused"
  elif grep -qF "$2" "$work/error"; then
    passed "said: $1"
  else
    failed "said: $1" "$work/error"
  fi
}
refused unknown-preset 'installVia.preset'
refused failed-assertion 'installVia.layout: boot.loader.efi.efiSysMountPoint is "/efi"'
refused own-file-systems-beside-a-layout 'conflicting definition values'

# The manifests that src/manifest.rs is tested with.
evaluate "$here/cases.nix" --arg nixpkgs "$nixpkgs" -A manifests > "$work/manifests"
for name in $(jq -r 'keys[]' "$work/manifests"); do
  jq --arg name "$name" '.[$name]' "$work/manifests" > "$work/$name.json"
  golden "golden manifest: $name" "$here/golden/$name.json" "$work/$name.json"
done

evaluate "$here/flake.nix" > "$work/flake" 2> "$work/error" || : > "$work/flake"
if [ "$(cat "$work/flake")" = true ]; then
  passed 'the outputs of the flake'
else
  failed 'the outputs of the flake' "$work/error"
fi

# The types are described in the words of our own lib, whichever is tested.
evaluate "$here/options.nix" | jq -j . > "$work/options.md"
golden 'docs/options.md is current' "$root/docs/options.md" "$work/options.md"

# A system is built for real.
if toplevel=$(nix-build --no-out-link "$here/build.nix" --arg nixpkgs "$nixpkgs" --arg binary "$binary" 2> "$work/error"); then
  passed 'a system is built, its commands after those of NixOS'
  jq . "$toplevel/install-via/manifest.json" > "$work/built.json"
  if cmp -s "$work/built.json" "$here/golden/uefi-ext4.json"; then
    passed 'the manifest is in the system'
  else
    failed 'the manifest is in the system'
  fi
  # The real binary writes all five; its own tests look into them.
  for script in install-to-disk ${BINARY:+install-to-dir install-via-ssh deploy-to-dir deploy-via-ssh}; do
    if [ -x "$toplevel/bin/$script" ] && grep -qF "$toplevel" "$toplevel/bin/$script"; then
      passed "the system has bin/$script, which knows its system"
    else
      failed "the system has bin/$script, which knows its system"
    fi
  done
else
  failed 'a system is built' "$work/error"
fi

if [ "$failures" -gt 0 ]; then
  echo "$failures failed" >&2
  exit 1
fi
