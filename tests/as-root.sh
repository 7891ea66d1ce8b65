#!/bin/sh
# Runs a test binary as root, the same wherever the checkout is and whoever runs it: as-root.sh PROGRAM [WORD...].
# Cargo's runner in `make test`.
#
# Tests write into the directory SCRATCH. With OWN_SCRATCH set, it gets a file system of its own for this program: a
# sparse file, gone with the last process.
set -eu
[ "$(id -u)" = 0 ] || exec sudo -E -H "$0" "$@"
unset CDPATH LANGUAGE
export LC_ALL=C.UTF-8
# Accounts other than root read some of what is made.
umask 022
# A test may run its own binary as another account, whatever the umask was that it was built with.
chmod a+rx "$1"

[ "${OWN_SCRATCH-}" ] || exec "$@"
mkdir -p "$SCRATCH"
image=$(mktemp "$SCRATCH-XXXXXX")
truncate -s 64G "$image"
mkfs.ext4 -q -F -E nodiscard -O ^has_journal "$image"
# shellcheck disable=SC2016 # for the other shell
exec unshare --mount sh -euc 'mount -o loop,discard "$1" "$SCRATCH"; rm "$1"; shift; exec "$@"' sh "$image" "$@"
