#!/bin/sh
# Makes the store to measure with, once: Debian packages, each unpacked as a store path of real Nix.
#
# usage: tests/bench/store.sh DIR      leaves DIR/root and DIR/toplevel
# shellcheck disable=SC2086,SC2046 # a list of packages is many words
set -eu
dir=$1
mkdir -p "$dir/debs/partial"
dir=$(cd "$dir" && pwd)
[ ! -e "$dir/toplevel" ] || exit 0

export NIX_CONFIG='build-users-group =
substituters =' NIX_REMOTE=

# What a machine may have: compilers, media players, kernel headers, documentation, TeX.
seeds='build-essential cmake git perl-doc linux-headers-amd64 python3-doc ffmpeg gimp mpv evince vim texlive-base'

echo "bench: choosing packages" >&2
: >"$dir/no-packages"
apt-get --print-uris -qq --no-install-recommends -o Dir::State::status="$dir/no-packages" \
    -o Dir::Cache::archives="$dir/debs" install $seeds |
    sed -n "s|^'[^']*' \([^_]*\)_[^ ]* \([0-9]*\) .*|\1|p" >"$dir/wanted"
echo "bench: downloading $(wc -l <"$dir/wanted") packages" >&2
(cd "$dir/debs" && apt-get download -qq -o APT::Sandbox::User=root $(cat "$dir/wanted"))

echo "bench: unpacking and adding them to a store" >&2
rm -rf "$dir/root" "$dir/unpacked"
mkdir "$dir/root" "$dir/unpacked"
store="local?root=$dir/root"
: >"$dir/paths"
for deb in "$dir"/debs/*.deb; do
    name=$(basename "$deb" | sed 's/_[^_]*\.deb$//; s/%3a/./; s/[^A-Za-z0-9+._-]/-/g')
    mkdir "$dir/unpacked/$name"
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$dir/unpacked/$name" --no-same-owner --exclude=./dev
    nix-store --store "$store" --add "$dir/unpacked/$name" >>"$dir/paths"
    rm -r "${dir:?}/unpacked/${name:?}"
done
sort -u -o "$dir/paths" "$dir/paths"

# A system that refers to them all.
name=nixos-system-bench-26.05
path=/nix/store/zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-$name
out=$dir/root$path
mkdir -p "$out/specialisation" "$out/etc"
cp "$dir/paths" "$out/paths"
printf '#!/bin/sh\n' >"$out/init"
printf 26.05 >"$out/nixos-version"
printf x86_64-linux >"$out/system"
printf '/dev/disk/by-label/nixos / ext4 x-initrd.mount 0 1\n' >"$out/etc/fstab"
chmod 555 "$out/init" "$out" "$out/etc" "$out/specialisation"
chmod 444 "$out/nixos-version" "$out/system" "$out/paths" "$out/etc/fstab"
find "$out" -depth -exec touch --date=@1 {} +
{
    echo "$path"
    nix-hash --type sha256 "$out"
    nix-store --dump "$out" | wc -c
    echo
    wc -l <"$dir/paths"
    cat "$dir/paths"
} | nix-store --store "$store" --load-db
rm -rf "$dir/debs" "$dir/unpacked" "$dir/root/nix/store/.links"
echo "$path" >"$dir/toplevel"
