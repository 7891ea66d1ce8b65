#!/bin/sh
# Becomes process 1 of a machine, in namespaces of its own: machine-init.sh DIR ROOT INIT.
set -eu
umask 022
dir=$1 root=$2 init=$3
: > "$dir/begun"

mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/boot"
mount -t proc -o nosuid,noexec,nodev proc "$root/proc"
# Read-only, which tells systemd that devices are somebody else's.
mount -t sysfs -o ro,nosuid,noexec,nodev sysfs "$root/sys"
mount -t cgroup2 -o nosuid,noexec,nodev cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs "$root/run"
mount -t tmpfs -o nosuid,mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty; do
    : > "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o nosuid,noexec,mode=620,ptmxmode=0666,gid=3,newinstance devpts "$root/dev/pts"
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
mount --bind "$dir/boot" "$root/boot"

# The kernel's settings are this machine's, but for the network's.
for name in sys sysrq-trigger bus fs irq; do
    [ -e "$root/proc/$name" ] || continue
    mount --bind "$root/proc/$name" "$root/proc/$name"
    mount -o remount,bind,ro "$root/proc/$name"
done
mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
mount -o remount,bind,rw "$root/proc/sys/net"
# A boot has an id of its own.
cat /proc/sys/kernel/random/uuid > "$root/run/boot-id"
mount --bind "$root/run/boot-id" "$root/proc/sys/kernel/random/boot_id"

# Debian's programs run in there only after activation, so what is left is done by the busybox that is the interpreter of init.
busybox=$(sed -n '1s/^#! *\(.*\)\/sh.*/\1/p' "$root$init")
cd "$root"
pivot_root . .
PATH=$busybox
umount -l .
# Beside others it is slow, and nothing of that is a fault: systemd's 90 s decide nothing.
exec env -i container=fixture SYSTEMD_PROC_CMDLINE=systemd.default_timeout_start_sec=900 "$init"
