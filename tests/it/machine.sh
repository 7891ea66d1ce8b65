#!/bin/sh
# Runs a system in namespaces: machine.sh make|run DIR STORE. The caller has made a mount and a network namespace for it.
#
# The root file system is DIR/root, the Nix store in it an overlay of the directory STORE and what is written. `make` leaves in it
# the paths that DIR/closure names, and gives it a database and a profile; `run` starts what the default entry of the boot loader in
# DIR/boot names, again and again until it powers itself off.
set -eu
umask 022
action=$1 dir=$2 store=$3
root=$dir/root
mkdir -p "$root/nix/store" "$dir/store" "$dir/upper" "$dir/work" "$dir/boot"
mount --make-rprivate /
mount --bind "$root" "$root"
mount --bind "$store" "$dir/store"
# Directories of the store are renamed by a garbage collection. Names from here hold nothing that would end an option.
cd "$dir"
mount -t overlay -o redirect_dir=on,lowerdir=store,upperdir=upper,workdir=work overlay root/nix/store

# What an installation leaves; of the boot loader its menu, and the file that says it is there.
make() {
    find "$root/nix/store" -mindepth 1 -maxdepth 1 -printf '/nix/store/%f\n' | grep -vxFf "$dir/closure" | while read -r path; do
        rm -rf "${root:?}$path"
    done
    mkdir -p "$root/nix/var/nix/db"
    cp "$dir/database/db.sqlite" "$dir/database/schema" "$root/nix/var/nix/db/"
    system=$(cat "$dir/system")
    profiles=$root/nix/var/nix/profiles
    mkdir -p "$profiles" "$root/etc/ssh" "$dir/boot/EFI/systemd" "$dir/boot/loader/entries"
    ln -s "$system" "$profiles/system-1-link"
    ln -s system-1-link "$profiles/system"
    cp "$dir/host-key" "$root/etc/ssh/ssh_host_ed25519_key"
    chmod 600 "$root/etc/ssh/ssh_host_ed25519_key"
    : > "$dir/boot/EFI/systemd/systemd-bootx64.efi"
    echo "default nixos-generation-1.conf" > "$dir/boot/loader/loader.conf"
    echo "options init=$system/init" > "$dir/boot/loader/entries/nixos-generation-1.conf"
}

# A network namespace with one card, whose other end is in this one.
connect() {
    : > "$dir/network"
    unshare --net mount --bind /proc/self/ns/net "$dir/network"
    ip link set lo up
    ip link add outside type veth peer name host0
    ip link set host0 netns "$dir/network"
    ip address add 10.231.0.1/24 dev outside
    ip link set outside up
}

# Boots once, and ends as process 1 ended.
boot() {
    entry=$(sed -n 's/^default //p' "$dir/boot/loader/loader.conf")
    init=$(sed -n 's/^options init=\([^ ]*\).*/\1/p' "$dir/boot/loader/entries/$entry")
    echo "machine.sh: $entry starts $init"
    mkdir "$cgroup/inside"
    rm -f "$dir/begun"
    # Neither devices nor the clock nor the kernel of this machine are the guest's.
    sh -euc 'echo $$ > "$1/inside/cgroup.procs"; shift; exec "$@"' sh "$cgroup" \
        setpriv --pdeathsig KILL --bounding-set=-sys_module,-sys_rawio,-sys_time,-mknod,-syslog \
        nsenter "--net=$dir/network" \
        unshare --mount --cgroup --uts --ipc --pid --fork --kill-child sh "$dir/init.sh" "$dir" "$root" "$init" &
    echo $! > "$dir/pid"
    status=0
    wait $! || status=$?
    rm -f "$dir/begun"
    # A namespace is gone when its last process is; what the guest left in its cgroup goes with it.
    while grep -qx 'populated 1' "$cgroup/inside/cgroup.events"; do sleep 0.02; done
    find "$cgroup/inside" -depth -type d -exec rmdir {} +
    return "$status"
}

case $action in
    make) make ;;
    run)
        connect
        mkdir -p "$dir/cgroups"
        mount -t cgroup2 cgroup2 "$dir/cgroups"
        cgroup=$dir/cgroups/machine-$$
        mkdir "$cgroup"
        status=0
        boot || status=$?
        # Process 1 of a namespace that reboots seems to be killed by SIGHUP, and by SIGINT when it powers off.
        while [ "$status" = 129 ]; do
            status=0
            boot || status=$?
        done
        rmdir "$cgroup"
        ;;
esac
