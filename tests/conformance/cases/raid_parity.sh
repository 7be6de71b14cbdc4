# raid: what levels 4, 5 and 6 leave on their members, byte by byte, in every layout.
for name in A B C D E; do disk $name 1M; done

# insync NAME: wait for the end of a resync or recovery.
insync() {
    for turn in $(seq 200); do
        dmsetup status "$1" | grep -q ' idle ' && return
        sleep 0.1
    done
    echo "= $1 never becomes idle"
}

# on_members: what lies on them.
on_members() {
    for device in "$A" "$B" "$C" "$D" "$E"; do
        dd if="$device" bs=64k count=8 iflag=direct status=none | sha256sum
    done
}

# layout TYPE DATA: an array of 1024 sectors of each member, written from begin to end, then in small pieces.
layout() {
    title "$1"
    for device in "$A" "$B" "$C" "$D" "$E"; do blkdiscard -z "$device"; done
    run dmsetup create r --table "0 $((1024 * $2)) raid $1 1 16 5 - $A - $B - $C - $D - $E"
    insync r
    fill "$DEVDIR/r" 0 $((1024 * $2)) red
    on_members
    fill "$DEVDIR/r" 3 5 blue
    fill "$DEVDIR/r" 1001 77 green
    fill "$DEVDIR/r" 2040 8 grey
    holds "$DEVDIR/r" 1001 77 green
    holds "$DEVDIR/r" 2040 8 grey
    quiet dmsetup remove r
    on_members
}

layout raid4 4
for kind in la ra ls rs n; do layout raid5_$kind 4; done
for kind in zr nr nc la_6 ra_6 ls_6 rs_6 n_6; do layout raid6_$kind 3; done
