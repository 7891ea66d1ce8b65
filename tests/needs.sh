#!/bin/sh
# Installs, through apt, the Debian packages named in the given lists that this machine lacks.
#
# usage: tests/needs.sh LIST...     a list holds package names; # starts a comment
# shellcheck disable=SC2086 # a list of packages is many words
set -eu
# The scripts of packages make files that everybody reads.
umask 022

wanted=$(sed 's/#.*//' "$@" | tr -s ' \t\n' '\n' | sort -u)

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "needs: no apt here; going on, hoping for what Debian calls:" $wanted >&2
    exit 0
fi

installed=$(dpkg-query --show --showformat '${db:Status-Status} ${Package}\n' $wanted 2>/dev/null |
    sed -n 's/^installed //p' | sort -u)
missing=$(printf '%s\n' "$wanted" | grep -vxF -e "$installed" || [ $? = 1 ])
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "needs: missing" $missing "- run this as root, or install sudo" >&2
        exit 1
    fi
    as_root=sudo
fi

echo "needs: installing with apt:" $missing >&2
$as_root apt-get -qq update
$as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq install --no-install-recommends --yes $missing >/dev/null
