#!/bin/sh
# Checks that a release binary runs anywhere: static, small, without unwind tables and yet able to say what went wrong,
# and content with an empty chroot.
#
# usage: tests/static.sh BINARY [BYTES]     with READELF=PROGRAM for that of another toolchain
set -eu
binary=$1 limit=${2-}

# What the C runtime's start files may keep of their own.
TABLES=1024

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

wrong() {
    echo "$binary: $1" >&2
    exit 1
}

"${READELF:-readelf}" --segments --sections --dynamic --wide "$binary" > "$work/elf"
! grep -qE '^ +INTERP|\(NEEDED\)' "$work/elf" || wrong "not static"
! grep -q ' \.symtab ' "$work/elf" || wrong "not stripped"

# Of each such section, the size in hexadecimal: "[17] .eh_frame PROGBITS address offset size …".
tables=$(
    sed -nE 's/^ *\[ *[0-9]+\] \.(eh_frame|eh_frame_hdr|gcc_except_table) +[^ ]+ +[^ ]+ [^ ]+ ([0-9a-f]+) .*/\2/p' "$work/elf" | {
        sum=0
        while read -r bytes; do sum=$((sum + 0x$bytes)); done
        echo "$sum"
    }
)
[ "$tables" -le "$TABLES" ] || wrong "$tables bytes of unwind tables"

size=$(stat -c %s "$binary")
[ "$size" -le "${limit:-$size}" ] || wrong "$size bytes, more than $limit"

# A panic aborts, which shall leave no file.
# shellcheck disable=SC3045 # all shells that there are know it
ulimit -c 0
# A backtrace needs the tables: it would abort, an error before anything is said. None is taken, whatever the
# environment asks for.
for environment in A=1 RUST_BACKTRACE=1 RUST_BACKTRACE=full RUST_LIB_BACKTRACE=1; do
    code=0
    env -u RUST_BACKTRACE -u RUST_LIB_BACKTRACE "$environment" \
        "$binary" verify "$work/absent" > "$work/said" 2>&1 || code=$?
    [ "$code $(grep -c '^error: .' "$work/said") $(wc -l < "$work/said")" = "1 1 1" ] ||
        wrong "with $environment, an error ends in exit code $code and says: $(cat "$work/said")"
    # There is no room for the completions, which is one thing that nobody reckoned with.
    env -u RUST_BACKTRACE -u RUST_LIB_BACKTRACE "$environment" \
        "$binary" completions bash 2> "$work/said" > /dev/full || :
    if ! grep -q 'No space left on device' "$work/said" || grep -q 'stack backtrace' "$work/said"; then
        wrong "with $environment, a panic says: $(cat "$work/said")"
    fi
done

# Only root may change its root, or whoever is given a user namespace.
if [ "$(id -u)" = 0 ]; then
    in_chroot=chroot
elif unshare --map-root-user true 2> "$work/said"; then
    in_chroot="unshare --map-root-user chroot"
elif command -v unshare > /dev/null; then
    in_chroot=
else
    wrong "there is no unshare to try it in a chroot"
fi
if [ -n "$in_chroot" ]; then
    mkdir "$work/empty"
    cp "$binary" "$work/empty/program"
    version=$($in_chroot "$work/empty" /program --version) || wrong "does not run in an empty chroot"
    where="runs in an empty chroot"
else
    version=$("$binary" --version)
    where="not tried in a chroot: $(cat "$work/said")"
fi

echo "$binary: $version, static, $size bytes, $where"
