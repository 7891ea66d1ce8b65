#!/bin/sh
# Whether an overlay that can be written to can lie in a directory: takes-overlay.sh DIR. On another overlay, as a
# container has one, it cannot.
set -eu
mkdir -p "$1"
trial=$(mktemp -d "$1/overlay-XXXXXX")
trap 'rm -rf "$trial"' EXIT
mkdir "$trial/lower" "$trial/upper" "$trial/work"
# By plain names, for in a path there may be what separates options.
# shellcheck disable=SC2016 # for the other shell
unshare --mount sh -euc \
    'cd "$1"; mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay lower' sh "$trial" 2> /dev/null
