# Arrays that the kernel or thinmap made, degraded, rebuilt in part or wrote to, taken on by the other.
#
# Sourced after conformance/prelude.sh, with IMAGES naming a directory that holds, for each array, images of its members and
# the manifest: one line "number sha256" for each array.

SECTORS=4096
# Number, length, members, type, parameters.
ARRAYS="0 4096 2 raid1 region_size 256
1 4096 3 raid1 region_size 1024 write_mostly 2
2 8192 4 raid10 region_size 512
3 8192 4 raid10 region_size 512 raid10_format far
4 6144 3 raid10 region_size 512 raid10_format offset
5 8192 3 raid5_ls region_size 256
6 8192 3 raid4 region_size 256
7 8192 4 raid6_zr region_size 256
8 8192 4 raid6_nc region_size 256
9 12288 4 raid5_ra region_size 256"
COUNT=10

# image NAME SIZE: an image under a loop device, made if it is not there; the device in $loop.
image() {
    [ -e "$IMAGES/$1" ] || truncate -s "$2" "$IMAGES/$1"
    loop=$(losetup -f --show "$IMAGES/$1") || echo "= no loop device"
    LOOPS="$loop $LOOPS"
}

# pairs NUMBER MEMBERS [MISSING]: words for the members, in $words; a missing one is not opened.
pairs() {
    words=$2
    member=0
    while [ $member -lt "$2" ]; do
        if [ "$member" = "${3:-none}" ]; then
            words="$words - -"
        else
            image "$1.m$member" 1M
            words="$words $loop"
            image "$1.d$member" $((SECTORS * 512))
            words="$words $loop"
        fi
        member=$((member + 1))
    done
}

# open_array MISSING REBUILD NUMBER LENGTH MEMBERS TYPE [PARAMETER]...
open_array() {
    missing=$1 rebuild=$2 number=$3 length=$4 members=$5 type=$6
    shift 6
    chunk=64
    [ "$type" = raid1 ] && chunk=0
    pairs "$number" "$members" "$missing"
    [ "$rebuild" = none ] || set -- "$@" rebuild "$rebuild"
    quiet dmsetup create "r$number" --table "0 $length raid $type $(($# + 1)) $chunk $* $words"
}

each() {
    while read -r number rest; do
        # shellcheck disable=SC2086
        "$@" $number $rest </dev/null
    done <<END
$ARRAYS
END
}

settle() {
    for turn in $(seq 200); do
        case $(dmsetup status "r$1") in *' idle '*) return ;; esac
        sleep 0.1
    done
    echo "= r$1 does not settle: $(dmsetup status "r$1")"
}

write_some() {
    blocks=$(($(blockdev --getsz "$DEVDIR/r$1") / 8))
    for turn in 1 2 3 4 5 6; do
        at=$(od -An -N4 -tu4 /dev/urandom)
        dd if=/dev/urandom of="$DEVDIR/r$1" bs=4k count=20 seek=$((at % (blocks - 20))) oflag=direct conv=notrunc status=none
    done
}

note() { echo "$1 $(sha256sum <"$DEVDIR/r$1" | cut -d' ' -f1)" >>"$IMAGES/manifest"; }

close_all() {
    for number in $(seq 0 $((COUNT - 1))); do
        dmsetup remove "r$number" 2>/dev/null
    done
    for loop in $LOOPS; do losetup -d "$loop"; done
    LOOPS=
}

make_one() {
    open_array none none "$@"
    settle "$1"
    head -c 6M /dev/urandom | dd of="$DEVDIR/r$1" bs=1M iflag=fullblock oflag=direct status=none 2>/dev/null
    write_some "$1"
    note "$1"
}
make_all() {
    : >"$IMAGES/manifest"
    each make_one
    close_all
}

# Member 1 is not there: what is written now it misses.
degrade_one() {
    open_array 1 none "$@"
    write_some "$1"
    note "$1"
}
degrade_all() {
    : >"$IMAGES/manifest"
    each degrade_one
    close_all
}

right() {
    sum=$(sha256sum <"$DEVDIR/r$1" | cut -d' ' -f1)
    grep -qx "$1 $sum" "$IMAGES/manifest" && echo "$1: right" || echo "$1: WRONG"
}

# All are there again: the one gets what it has missed, by the bitmap. Then nothing differs.
check_one() {
    open_array none none "$@"
    settle "$1"
    right "$1"
    dmsetup message "r$1" 0 check
    settle "$1"
    dmsetup status "r$1" | cut -d' ' -f4-
}
check_all() {
    each check_one
    close_all
}

# Another member 0, empty, is built while the others are read.
replace_one() {
    rm -f "$IMAGES/$1.m0" "$IMAGES/$1.d0"
    open_array none 0 "$@"
    write_some "$1"
    settle "$1"
    sed -i "/^$1 /d" "$IMAGES/manifest"
    note "$1"
}
replace_all() {
    each replace_one
    close_all
}

# The other one of a pair is gone: what member 0 was given is read.
alone_one() {
    open_array 1 none "$@"
    right "$1"
}
alone_all() {
    each alone_one
    close_all
}
