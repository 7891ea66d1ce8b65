#!/bin/sh
# Runs a test binary as root, the same wherever the checkout is and whoever runs it: as-root.sh PROGRAM [WORD...].
# Cargo's runner in `make test`.
#
# SCRATCH is the directory that tests write into. Where no overlay can lie on its file system (it is one itself, as
# in many containers), it gets one of its own for this program: a sparse file, gone with the last process.
set -eu
[ "$(id -u)" = 0 ] || exec sudo -E -H "$0" "$@"
unset CDPATH LANGUAGE
export LC_ALL=C.UTF-8
# Accounts other than root read some of what is made.
umask 022

# Tells whether an overlay that can be written to can lie in a directory. Its own are named by plain names, for in a path
# there may be what separates options.
# shellcheck disable=SC2016 # for the other shell
takes_overlay() {
    trial=$(mktemp -d "$1/overlay-XXXXXX")
    mkdir "$trial/lower" "$trial/upper" "$trial/work"
    status=0
    unshare --mount sh -euc \
        'cd "$1"; mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay lower' sh "$trial" || status=1
    rm -rf "$trial"
    return $status
}

if [ ! -d "${SCRATCH-}" ] || takes_overlay "$SCRATCH" 2> /dev/null; then
    exec "$@"
fi
echo "as-root.sh: no overlay can lie on the file system of $SCRATCH; it gets another one for this program" >&2
image=$(mktemp "$SCRATCH-XXXXXX")
truncate -s 64G "$image"
mkfs.ext4 -q -F -E nodiscard -O ^has_journal "$image"
# shellcheck disable=SC2016 # for the other shell
exec unshare --mount sh -euc 'mount -o loop,discard "$1" "$SCRATCH"; rm "$1"; shift; exec "$@"' sh "$image" "$@"
