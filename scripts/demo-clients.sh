# What the demos of Docker and of containerd share: a world of their own, and how they talk.

# own_namespaces SCRIPT [--inside]: goes on behind it only inside of namespaces, in which the script is started again.
#
# Docker and containerd look for their devices in /dev/mapper and nowhere else, and some of their files are always below /run.
# In mount and process namespaces of its own a demo has these for itself, a thinmap, a dockerd or a containerd that already
# runs is not touched, and no process or mount can be left over.
own_namespaces() {
    [ "${2:-}" != --inside ] || return 0
    if [ "$(id -u)" != 0 ] || [ ! -e /dev/fuse ] || [ ! -e /dev/loop-control ]; then
        echo "the demos of Docker and containerd need root, /dev/fuse and /dev/loop-control" >&2
        exit 1
    fi
    # Directories that a program makes for good, or that something must be mounted on.
    missing=()
    for directory in /dev/mapper /opt/containerd /opt/containerd/bin /opt/containerd/lib; do
        [ -d $directory ] || missing=($directory "${missing[@]}")
    done
    mkdir -p /dev/mapper
    # Held by every demo that runs: while it is, the directory may be another one's mount point.
    exec {mapper}</dev/mapper
    flock --shared $mapper
    remove_made() {
        flock --exclusive --nonblock $mapper || return 0
        [ ${#missing[@]} = 0 ] || rmdir "${missing[@]}" 2>/dev/null || true
    }
    trap remove_made EXIT
    trap : INT TERM HUP
    status=0
    unshare --mount --pid --fork --kill-child --mount-proc "$1" --inside || status=$?
    exit $status
}

# own_world NAME: directories, and thinmap in front of Debian's programs in the path. The caller calls leave_world at its end.
own_world() {
    thinmap=$(realpath "${THINMAP_BIN:-target/release/thinmap}")
    # Not in /tmp where that is a memory file system: the pools' files are large and sparse, and Docker wants to see a real disk.
    work=$(mktemp -d "/var/tmp/thinmap-demo-$1.XXXXXX")
    cgroup=${work##*/}
    mkdir "$work"/{bin,run,mapper}
    mount --bind "$work/mapper" /dev/mapper
    mount -t tmpfs -o mode=755 tmpfs /run
    ln -s "$thinmap" "$work/bin/thinmap"
    export PATH=$work/bin:/usr/sbin:/usr/bin:/sbin:/bin
    export THINMAP_RUN_DIR=$work/run/thinmap
}
leave_world() {
    thinmap dmsetup remove_all >/dev/null 2>&1
    thinmap stop --force >/dev/null 2>&1
    losetup -nO NAME,BACK-FILE | awk -v work="$work/" 'index($2, work) == 1 {print $1}' | xargs -r -n1 losetup -d
    umount /dev/mapper
    cgroups_of_the_demo -name cgroup.procs -exec cat {} + | sort -u | xargs -r kill -KILL
    for try in $(seq 50); do
        cgroups_of_the_demo -depth -type d -exec rmdir {} + 2>/dev/null
        [ -n "$(cgroups_of_the_demo)" ] || break
        sleep 0.1
    done
    rm -rf --one-file-system "$work"
}
cgroups_of_the_demo() { find /sys/fs/cgroup -path "*/$cgroup*" "$@"; }
nothing_left() {
    left=$(losetup -nO BACK-FILE | grep -F "$work/" || true)
    [ -z "$left" ] || wrong "loop devices are left: $left"
}

. scripts/demo-words.sh
quietly() { printf '%s$%s%s\n' "$bold" "$(typed "$@")" "$plain"; "$@" >/dev/null; }
# says WORDS COMMAND...: a command that must say just these.
says() {
    local words=$1 said; shift
    printf '%s$%s%s\n' "$bold" "$(typed "$@")" "$plain"
    said=$("$@")
    echo "$said"
    [ "$(echo $said)" = "$words" ] || wrong "it should say: $words"
}
wrong() { echo "$*" >&2; exit 1; }

# The root of a small image, made on the spot of busybox alone.
busybox_root() {
    mkdir -p "$work/rootfs/bin"
    cp "$(command -v busybox)" "$work/rootfs/bin/"
    for applet in sh cat dd sync ls rm; do ln -s busybox "$work/rootfs/bin/$applet"; done
}
