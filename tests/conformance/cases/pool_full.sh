# Full for data, full for metadata, then grown: the modes and events at each edge, and what works there.
T=$DEVDIR
w() { run timeout 10 dd if=/dev/zero of="$1" bs=64k seek="$2" count="$3" oflag=direct status=none; }
# What a pool says of itself without the block counts, which differ where a transaction ends.
state() {
    dmsetup status p | awk '{ print "mode", $8, $9, $10, $11, $12 }'
    echo "events $(dmsetup info -c --noheadings -o events p)"
}
title 'full for data: a resume of the same table changes nothing, a table that grows does'
disk M 4M
disk D 2M
pool p "$M" "$D" 4096 128 8 "2 skip_block_zeroing error_if_no_space"
quiet dmsetup message p 0 "create_thin 0"
quiet dmsetup create t --table "0 16384 thin $T/p 0"
state
w "$T/t" 0 23
state
w "$T/t" 23 1
state
w "$T/t" 24 1
state
w "$T/t" 25 7
state
w "$T/t" 40 1
state
run dmsetup suspend p
run dmsetup resume p
state
w "$T/t" 40 1
state
w "$T/t" 0 1
run dmsetup load p --table "0 4096 thin-pool $M $D 128 8 2 skip_block_zeroing error_if_no_space"
run dmsetup resume p
state
w "$T/t" 40 1
state
truncate -s 8M "$WORK/D.img"
losetup -c "$D"
run dmsetup load p --table "0 16384 thin-pool $M $D 128 8 2 skip_block_zeroing error_if_no_space"
run dmsetup resume p
state
w "$T/t" 40 1
state
run dmsetup status p
run dmsetup remove t
run dmsetup remove p
# Room for more mappings than the metadata can hold, of which only the first 64 MiB are kept.
disk E 64M
quiet dmsetup create far --table "0 16777216 zero"
printf '0 131072 linear %s 0\n131072 16646144 linear %s/far 0\n' "$E" "$T" >"$WORK/big"
quiet dmsetup create big "$WORK/big"
# The same without the number of events: near the mark a kernel repeats the one of the low water mark in each transaction.
told() {
    dmsetup status p | awk '{ print "mode", $8, $9, $10, $11, $12 }'
    now=$(dmsetup info -c --noheadings -o events p)
    [ "$now" = "$seen" ] && echo "no event" || echo "events"
    seen=$now
}
# full META: a pool on META with volumes 0 (device t) and 1 (u), and little room for more.
full() {
    table="0 16777216 thin-pool $1 $T/big 128 8 3 skip_block_zeroing error_if_no_space no_discard_passdown"
    quiet dmsetup create p --table "$table"
    quiet dmsetup message p 0 "create_thin 0"
    quiet dmsetup message p 0 "create_thin 1"
    quiet dmsetup create t --table "0 16777216 thin $T/p 0"
    quiet dmsetup create u --table "0 16777216 thin $T/p 1"
    fill "$T/u" 0 128 red
    id=100
    while [ $id -lt 170 ]; do
        quiet dmsetup message p 0 "create_thin $id"
        id=$((id + 1))
    done
}
# Writes with a flush each to t from block $1 on, until one is refused. (Linux 6.1 fails the pool when a write without one is the
# last that finds room.)
flood() {
    dd if=/dev/zero of="$T/t" bs=64k seek="$1" oflag=direct,dsync status=none 2>"$WORK/.dd"
    echo "the fill ended with $?"
}
title 'full for metadata: errors, no check needed; a resume after the device has grown leads back'
disk N 512K
full "$N"
flood 0
told
holds "$T/u" 0 128 red
run timeout 10 dd if=/dev/zero of="$T/t" bs=64k count=1 oflag=direct status=none
run timeout 10 dd if=/dev/zero of="$T/u" bs=64k count=1 seek=100000 oflag=direct status=none
run timeout 10 dd if="$T/u" of=/dev/null bs=64k count=1 skip=100000 iflag=direct status=none
for message in "create_thin 5" "create_snap 5 0" reserve_metadata_snap nonsense; do
    run dmsetup message p 0 "$message"
done
fill "$T/u" 0 128 red
told
run dmsetup suspend p
run dmsetup resume p
told
truncate -s 4M "$WORK/N.img"
losetup -c "$N"
told
run dmsetup suspend p
run dmsetup resume p
told
run timeout 10 dd if=/dev/zero of="$T/u" bs=64k count=1 seek=100000 oflag=direct status=none
holds "$T/u" 0 128 red
told
run dmsetup remove t
run dmsetup remove u
run dmsetup remove p
run thin_check -q "$N"
title 'full for metadata: a table of the same size'
disk O 512K
full "$O"
flood 0
told
run dmsetup load p --table "$table"
run dmsetup resume p
told
flood 0
told
title 'what gives room'
run dmsetup remove u
run dmsetup message p 0 "set_transaction_id 0 1"
run dmsetup message p 0 "delete 1"
run dmsetup status p
run dmsetup remove t
run dmsetup remove p
run dmsetup remove big
run dmsetup remove far
