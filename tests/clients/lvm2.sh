# A volume group for one test of lvm2, and its end. Sourced by bash; the working directory is the test's own.
#
# `l COMMAND` is lvm2's, under thinmap; what it says on standard error is in the file `noise`, which the test compares with what is
# expected.

# No keeper: a killed daemon must take its devices with it here.
export LVM_SUPPRESS_FD_WARNINGS=1 LC_ALL=C THINMAP_NO_KEEPER=1
VG=${VG:-thinmap-vg}
V=/dev/$VG
PVS=
: >noise

l() {
    thinmap run -- "$@" 2>>noise || {
        local code=$?
        cat noise >&2
        return $code
    }
}

# refused WORDS COMMAND...: fails, and says WORDS.
refused() {
    local words=$1
    shift
    if thinmap run -- "$@" 2>refusal >/dev/null; then return 1; fi
    grep -q "$words" refusal || { cat refusal >&2; return 1; }
}

# pv NAME SIZE: a loop device of that size, named by the variable.
pv() {
    truncate -s "$2" "$1.img"
    printf -v "$1" %s "$(losetup -f --show "$1.img")"
    PVS="$PVS ${!1}"
}

# The daemon is killed, and gone when this returns.
kill_daemon() {
    local pid
    pid=$(thinmap --no-autostart ping | sed -n 's/^process: *//p')
    kill -9 "$pid"
    while [ -e "/proc/$pid" ] && ! grep -q '^State:.Z' "/proc/$pid/status"; do sleep 0.02; done
}

# lvm2 starts an event daemon with its first pool, which would wait an hour for the next.
# Gone when this returns: the next test must not meet it. (It refuses to end while it watches a device.)
end_event_daemon() {
    local pid
    pid=$(cat /run/dmeventd.pid 2>/dev/null) || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 100); do
        [ -e "/proc/$pid" ] || return 0
        sleep 0.05
    done
    kill -9 "$pid" || true
}
if [ -e /run/dmeventd.pid ] && kill -0 "$(cat /run/dmeventd.pid)"; then
    echo "an event daemon runs already (process $(cat /run/dmeventd.pid)), with a shim and settings that are not this test's" >&2
    exit 1
fi

# What lvm2 keeps outside of the physical volumes.
forget_group() { rm -rf "$V" /etc/lvm/archive/"$VG"_* /etc/lvm/backup/"$VG"; }

# The end of a test that failed, too.
off() {
    thinmap run -- vgremove -qq -ff -y "$VG" >/dev/null 2>&1 || true
    end_event_daemon
    for device in $PVS; do losetup -d "$device"; done
    forget_group
}
trap off EXIT

# The group is removed by lvm2, and nothing of it is left: no volume, node, link or directory.
gone() {
    l vgremove -qq -y "$VG"
    [ ! -e "$V" ]
    [ "$(l dmsetup ls)" = "No devices found" ]
    [ -z "$(thinmap ls-exports)" ]
    # A program without the shim may have made the kernel's own node.
    [ -z "$(ls -I control /dev/mapper)" ]
}

lvs_of() { l lvs --noheadings --separator , -o "$1" "$VG" | sed 's/^ *//' | sort; }

# percent NAME COUNT_FIELD: used of total in a status line, as lvm2 writes it.
percent() {
    l dmsetup status "$1" | awk -v field="$2" '{ split($field, part, "/"); printf "%.2f\n", 100 * part[1] / part[2] }'
}

mkdir -p m n
# random DIRECTORY FILE SIZE
random() { head -c "$3" /dev/urandom >"$1/$2"; }
