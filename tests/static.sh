#!/bin/sh
# Checks that a binary runs anywhere: static, small, and content with an empty chroot.
#
# usage: tests/static.sh BINARY BYTES
set -eu
binary=$1 limit=$2

file --brief "$binary" | grep -qE 'static(ally|-pie) linked' || { file "$binary"; echo "not static" >&2; exit 1; }
file --brief "$binary" | grep -q ', stripped' || { file "$binary"; echo "not stripped" >&2; exit 1; }

size=$(stat --format %s "$binary")
[ "$size" -le "$limit" ] || { echo "$binary has $size bytes, more than $limit" >&2; exit 1; }

empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
cp "$binary" "$empty/program"
in_chroot="chroot"
[ "$(id -u)" = 0 ] || in_chroot="unshare --map-root-user chroot"
version=$($in_chroot "$empty" /program --version) || { echo "$binary does not run in an empty chroot" >&2; exit 1; }

echo "$binary: $version, static, $size bytes, runs in an empty chroot"
