#!/bin/sh
# The beginning of the far end: makes sure that the program is there, and runs it.
#
# All that is known of this machine is that it has a POSIX shell. src/ssh/bootstrap.rs sends this
# script and its words to that shell's stdin, and their length by the command line. It reads the
# answers (lines that begin with the mark) and sends, when it is told so, a password or the program.
# Nothing but what reads these may read from stdin, which is therefore descriptor 3.

: "${length:?}"
mark=$1 machine=$2 size=$3 sum=$4 store=$5 name=$6 sudo=$7
shift 7
exec 3<&0 </dev/null

# A line of its own even behind a banner that has no end of line.
say() {
    printf '\n%s %s\n' "$mark" "$*"
}

stop() {
    say "$@"
    exit 1
}

if printf x 2>/dev/null | head -c 1 >/dev/null 2>&1; then
    take() { head -c "$1"; }
else
    take() { dd bs=1 count="$1" 2>/dev/null; }
fi

# Where nothing can tell, the program will tell itself.
is_the_program() {
    command -v sha256sum >/dev/null 2>&1 || return 0
    case $(sha256sum <"$1") in
        "$sum "*) return 0 ;;
        *) return 1 ;;
    esac
}

# Runs all this once more, by sudo: what root is to run comes into places that are root's alone.
# The password goes by pipe and never stands in a list of processes: printf is a part of the shell.
become_root() {
    command -v sudo >/dev/null 2>&1 || stop no-sudo
    # shellcheck disable=SC2016 # it is for the next shell
    set -- /bin/sh -c '
        PATH=$PATH:/run/current-system/sw/bin:/usr/sbin:/usr/bin:/sbin:/bin
        printf "\n%s again\n" "$1"
        length=$2
        eval "$(head -c "$2" 2>/dev/null || dd bs=1 count="$2" 2>/dev/null)"
    ' sh "$mark" "$length"
    if sudo -k -n true 2>/dev/null; then
        exec sudo -n "$@" <&3 3<&-
    fi
    for try in password wrong wrong; do
        say "$try"
        IFS= read -r password <&3 || exit 1
        if printf '%s\n' "$password" | sudo -k -S -p '' true; then
            say root
            exec sudo -k -S -p '' "$@" <&3 3<&-
        fi
    done
    stop denied
}

fits() {
    take "$size" </dev/zero >"$1/room" && rm -f "$1/room"
}

can_run_in() {
    printf '#!/bin/sh\nexit 0\n' >"$1/try" && chmod 700 "$1/try" && "$1/try" && rm -f "$1/try"
}

# The first place where a directory can be made, with room, and where programs may run.
find_place() {
    for place in /run /root /var/tmp /tmp /dev/shm; do
        dir=$place/$name
        if ! mkdir -m 700 "$dir"; then
            dir=
            say place unwritable "$place"
            continue
        elif ! fits "$dir"; then
            say place full "$place"
        elif ! can_run_in "$dir"; then
            say place noexec "$place"
        else
            return
        fi
        clean
    done 2>/dev/null
    stop nowhere
}

clean() {
    [ -z "$dir" ] || rm -rf "$dir"
    dir=
}

dir=
trap clean EXIT
# A shell that a signal ends does not clean up; one that ends itself does.
trap 'exit 1' HUP INT PIPE TERM

system=$(uname -s) here=$(uname -m)
[ "$system $here" = "Linux $machine" ] || stop alien "$here" "$system"

if [ "$(id -u)" != 0 ]; then
    [ -n "$sudo" ] || stop unprivileged "$(id -un)"
    become_root
fi

program=$store
if [ -z "$store" ] || [ ! -x "$store" ] || ! is_the_program "$store"; then
    find_place
    program=$dir/nixos-install-via
    say send
    take "$size" <&3 >"$program"
    [ "$(wc -c <"$program")" -eq "$size" ] || stop broken short
    is_the_program "$program" || stop broken changed
    chmod 500 "$program"
    set -- "$@" --remove "$dir"
fi

# Not exec: whatever becomes of the program, what was made here is removed.
say run
"$program" "$@" <&3 3<&-
