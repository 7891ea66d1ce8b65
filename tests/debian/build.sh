#!/bin/sh
# Makes the disks of the Debian 12 that tests replace, and the keys to it. See ../README.md.
#
# Needs root, but neither mounts nor partition devices: file systems are made inside the images.
set -eu
unset CDPATH
export LC_ALL=C
umask 022

here=$(cd "$(dirname "$0")" && pwd)
fixture=$here/../fixture/guest
project=$(cd "$here/../.." && pwd)
result=$project/build/debian
cache=$result/packages
work=$result/work
root=$work/root

release=bookworm
# The tests know these passwords.
root_password='correct horse'
person_password='battery staple'

# In MiB. The partitions begin after one, which also holds GRUB, and end before one.
root_size=960
esp_size=64

set -- "$result/uefi.img" "$result/bios.img"
mkdir -p "$cache"
exec 8> "$result/lock"
flock 8

# Times say nothing in a fresh checkout, so that contents decide.
sources=$(cd "$here" && find . ../fixture/guest/agent.sh ../fixture/guest/units/tests-agent.service -type f \
    -exec sha256sum {} + | sort)
if [ "$(cat "$result/sources" 2> /dev/null)" = "$sources" ] && ls "$@" > /dev/null 2>&1; then
    touch "$@"
    exit 0
fi
rm -rf "$work" "$result/sources"
mkdir "$work"

[ -e "$result/key" ] || ssh-keygen -q -t ed25519 -N "" -C tests -f "$result/key"
for type in ed25519 ecdsa rsa; do
    [ -e "$result/ssh_host_${type}_key" ] ||
        ssh-keygen -q -t $type -N "" -C root@debian -f "$result/ssh_host_${type}_key"
done

# The mirror this machine uses itself, if it is a Debian that knows one.
# shellcheck disable=SC2016 # apt's own words
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Label: Debian' 2> /dev/null | head -n 1)

# With hooks: packages come from the cache and go there, and what they find is not overwritten. Hooks find paths in the
# environment, and modes are this script's, whatever they are in the checkout.
export here result cache
# shellcheck disable=SC2016 # for the shells of the hooks
mmdebstrap --quiet --mode=root --variant=minbase --skip=download/empty,essential/unlink \
    --include="$(sed 's/#.*//' "$here/guest-packages" | xargs | tr ' ' ,)" \
    --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io --dpkgopt=force-confold \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --setup-hook='mkdir -p "$1/etc/ssh" "$1/var/cache/apt/archives"
        cp "$result"/ssh_host_* "$1/etc/ssh"
        cp -r --no-preserve=mode "$here/guest/etc/initramfs-tools" "$1/etc"
        find "$cache" -name "*.deb" -exec cp {} "$1/var/cache/apt/archives" \;' \
    --customize-hook='rm -f "$cache"/*.deb; cp "$1"/var/cache/apt/archives/*.deb "$cache"' \
    "$release" "$root" "${mirror:-http://deb.debian.org/debian}"

cp -r --no-preserve=mode "$here/guest/." "$root"
chroot "$root" useradd --create-home --shell /bin/bash --groups sudo person
printf 'root:%s\nperson:%s\n' "$root_password" "$person_password" | chroot "$root" chpasswd
install -d -m 700 "$root/root/.ssh"
install -m 600 "$result/key.pub" "$root/root/.ssh/authorized_keys"
# The fixture's way in.
sed 's|@sw@/bin/bash|/bin/bash|' "$fixture/agent.sh" > "$root/usr/local/sbin/tests-agent"
chmod 755 "$root/usr/local/sbin/tests-agent"
sed 's|@agent@|/usr/local/sbin/tests-agent|; /^Environment=/s| PATH=[^ ]*||' "$fixture/units/tests-agent.service" \
    > "$root/etc/systemd/system/tests-agent.service"
chroot "$root" systemctl --quiet enable systemd-networkd tests-agent announce
# The machine's care for itself would only slow it down.
chroot "$root" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer e2scrub_reap \
    systemd-update-utmp systemd-update-utmp-runlevel modprobe@configfs modprobe@drm modprobe@fuse dev-hugepages.mount \
    dev-mqueue.mount sys-fs-fuse-connections.mount sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount
# Not its first boot: that asks questions and makes what is here.
tr -d - < /proc/sys/kernel/random/uuid > "$root/etc/machine-id"
touch "$root/etc/.updated" "$root/var/.updated"

kernel=$(cd "$root/boot" && echo vmlinuz-*)
initrd=initrd.img-${kernel#vmlinuz-}
root_id=$(cat /proc/sys/kernel/random/uuid)
# Beside other machines it is slow, and nothing of that is a fault: systemd's 90 s decide nothing.
patience="systemd.default_timeout_start_sec=900 systemd.default_device_timeout_sec=900"
parameters="root=UUID=$root_id ro console=ttyS0 quiet $patience"

# Makes an empty disk of so many MiB; the table's lines are read.
disk() {
    rm -f "$1"
    truncate -s "${2}M" "$1"
    sfdisk --quiet "$1"
}

# Makes the root, which begins after so many MiB, with what GRUB 2.06 can read.
format_root() {
    mkfs.ext4 -q -F -L root -U "$root_id" -O ^metadata_csum_seed,^orphan_file \
        -E "root_owner=0:0,nodiscard,offset=$(($2 << 20))" -d "$root" "$1" "${root_size}M"
}

# BIOS: GRUB before the only partition of an MBR, as grub-install puts it there.
image=$work/bios.img
disk "$image" $((1 + root_size + 1)) << END
label: dos
start=1MiB, size=${root_size}MiB, type=83, bootable
END
echo "UUID=$root_id / ext4 errors=remount-ro 0 1" > "$root/etc/fstab"
chroot "$root" grub-mkimage -O i386-pc -o /tmp/core.img -p '(,msdos1)/boot/grub' \
    biosdisk part_msdos ext2 normal linux
mv "$root/tmp/core.img" "$work"
dd status=none conv=notrunc if="$root/usr/lib/grub/i386-pc/boot.img" of="$image" bs=440 count=1
dd status=none conv=notrunc if="$work/core.img" of="$image" bs=512 seek=1
mkdir -p "$root/boot/grub"
cat > "$root/boot/grub/grub.cfg" << END
set timeout=0
menuentry Debian {
    linux /boot/$kernel $parameters
    initrd /boot/$initrd
}
END
format_root "$image" 1
rm -r "$root/boot/grub"

# UEFI: systemd-boot, on an ESP that has a kernel of its own.
image=$work/uefi.img
disk "$image" $((1 + esp_size + root_size + 1)) << END
label: gpt
start=1MiB, size=${esp_size}MiB, type=uefi
size=${root_size}MiB, type=linux
END
esp=$work/esp.img
truncate -s "${esp_size}M" "$esp"
mkfs.vfat -F 32 -s 1 -n ESP "$esp" > /dev/null
esp_id=$(minfo -i "$esp" | sed -n 's/^serial number: \(....\)\(....\)$/\1-\2/p')
printf 'timeout 0\n' > "$work/loader.conf"
printf 'title Debian\nlinux /%s\ninitrd /%s\noptions %s\n' "$kernel" "$initrd" "$parameters" > "$work/debian.conf"
loader=$root/usr/lib/systemd/boot/efi/systemd-bootx64.efi
mmd -i "$esp" ::/EFI ::/EFI/BOOT ::/EFI/systemd ::/loader ::/loader/entries
mcopy -i "$esp" "$loader" ::/EFI/BOOT/BOOTX64.EFI
mcopy -i "$esp" "$loader" ::/EFI/systemd
mcopy -i "$esp" "$root/boot/$kernel" "$root/boot/$initrd" ::/
mcopy -i "$esp" "$work/loader.conf" ::/loader
mcopy -i "$esp" "$work/debian.conf" ::/loader/entries
dd status=none conv=notrunc,sparse if="$esp" of="$image" bs=1M seek=1
mkdir "$root/boot/efi"
printf 'UUID=%s / ext4 errors=remount-ro 0 1\nUUID=%s /boot/efi vfat umask=0077 0 1\n' "$root_id" "$esp_id" > "$root/etc/fstab"
format_root "$image" $((1 + esp_size))

mv "$work/uefi.img" "$work/bios.img" "$result"
rm -rf "$work"
echo "$sources" > "$result/sources"
