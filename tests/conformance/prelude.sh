# Words that every conformance case speaks in. Sourced, never run.
#
# The same case runs in a user-mode-linux guest with the distribution's dmsetup and on the host
# with thinmap; only the variables below differ, and the harness sets them.
#
#   WORK    an empty directory of the case's own
#   DEVDIR  where mapped devices appear (/dev/mapper for the kernel)
#   VIA     what a program is run by that speaks to device mapper itself (nothing for the kernel)
#   KLOG    1: print what the kernel logged after each command, as "# kernel:" lines
#
# A transcript is, for each command: "$ the command", its standard output, its standard error with
# "! " before each line, and "= exit code". Lines that start with "# " are remarks and not compared.

# run COMMAND [ARG]...: run it and write it down.
run() {
    printf '$'
    for word in "$@"; do
        case $word in
        '' | *[!A-Za-z0-9_./:=,+@%-]*) printf " '%s'" "$word" ;;
        *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
    "$@" >"$WORK/.out" 2>"$WORK/.err" </dev/null
    code=$?
    note_output
}

# run_in FILE COMMAND [ARG]...: the same with standard input from FILE.
run_in() {
    input=$1
    shift
    printf '$ %s < input\n' "$*"
    "$@" >"$WORK/.out" 2>"$WORK/.err" <"$input"
    code=$?
    note_output
}

# A guest takes long to start a program: none without need, here and below.
note_output() {
    [ ! -s "$WORK/.out" ] || cat "$WORK/.out"
    [ ! -s "$WORK/.err" ] || sed 's/^/! /' "$WORK/.err"
    printf '= %d\n' "$code"
    klog
}

# quiet COMMAND [ARG]...: preparation; heard of only when it fails.
quiet() {
    "$@" >"$WORK/.out" 2>&1 </dev/null && return
    printf '= preparation failed (%d): %s\n' "$?" "$*"
    cat "$WORK/.out"
}

klog() {
    [ "$KLOG" = 1 ] || return 0
    dmesg -c | sed -n 's/^\[[^]]*\] //; /device-mapper/s/^/# kernel: /p'
}

title() {
    printf '\n## %s\n' "$*"
}

# disk VARIABLE SIZE: a sparse file of SIZE (as truncate takes it) under a loop device.
disk() {
    rm -f "$WORK/$1.img"
    truncate -s "$2" "$WORK/$1.img"
    loop=$(losetup -f --show "$WORK/$1.img") || echo "= no loop device"
    LOOPS="$loop $LOOPS"
    eval "$1=$loop"
    echo "# disk $1=$loop"
}

# fill DEVICE SECTOR COUNT SEED: write COUNT sectors of text that depends on SEED and place.
fill() {
    pattern "$4" "$3" | dd of="$1" bs=512 seek="$2" iflag=fullblock conv=notrunc,fsync status=none
}

# pattern SEED COUNT: COUNT sectors of it. Each 32-byte line names the seed and its own number.
pattern() {
    seq -f "seed $1 line %020.0f" 1 $(($2 * 16)) | head -c $(($2 * 512))
}

# holds DEVICE SECTOR COUNT SEED: say whether the sectors are as fill left them.
holds() {
    pattern "$4" "$3" >"$WORK/.want"
    if dd if="$1" bs=512 skip="$2" count="$3" status=none 2>/dev/null | cmp -s - "$WORK/.want"; then
        echo "${1##*/} $2+$3 holds $4"
    else
        echo "${1##*/} $2+$3 does NOT hold $4"
    fi
}

# zeroed DEVICE SECTOR COUNT
zeroed() {
    if dd if="$1" bs=512 skip="$2" count="$3" status=none 2>/dev/null |
        cmp -s -n $(($3 * 512)) - /dev/zero; then
        echo "${1##*/} $2+$3 is zero"
    else
        echo "${1##*/} $2+$3 is NOT zero"
    fi
}

# try NAME TABLE: create NAME, show what came of it, remove it.
try() {
    run dmsetup create "$1" --table "$2"
    dmsetup info "$1" >/dev/null 2>&1 || return 0
    run dmsetup table "$1"
    run dmsetup status "$1"
    quiet dmsetup remove "$1"
}

# pool NAME META DATA SECTORS [BLOCK [LOW_WATER [FEATURES]]]
pool() {
    quiet dmsetup create "$1" --table \
        "0 $4 thin-pool $2 $3 ${5:-128} ${6:-0} ${7:-1 skip_block_zeroing}"
}

# tidy_up: remove every device of the case, then the loop devices.
tidy_up() {
    for round in 1 2 3 4 5 6; do
        dmsetup ls 2>/dev/null | grep -q '(' || break
        dmsetup ls | cut -f1 | while read -r name; do
            dmsetup resume "$name" >/dev/null 2>&1
            dmsetup remove "$name" >/dev/null 2>&1
        done
    done
    dmsetup remove_all --force
    dmsetup ls 2>/dev/null | grep -q '(' && { echo "= left behind:"; dmsetup ls; }
    for loop in $LOOPS; do
        losetup -d "$loop"
    done
    LOOPS=
}
LOOPS=
