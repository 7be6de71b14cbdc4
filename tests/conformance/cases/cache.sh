# cache: status, messages, and data in every mode. A migration threshold of 0 keeps dirty blocks dirty, and a write of a
# whole block promotes at once, so that nothing depends on time.
disk M 4M
disk C 8M
disk O 32M
fill "$O" 0 16384 origin

# write BLOCK COUNT WORD: so many whole blocks of 64 KiB.
write() { pattern "$3" $(($2 * 128)) | dd of="$DEVDIR/c" bs=64k seek="$1" iflag=fullblock oflag=direct conv=notrunc status=none; }
read_at() { dd if="$DEVDIR/c" bs=64k skip="$1" count="$2" iflag=direct status=none | sha256sum; }
dump() {
    cache_check "$M" && echo checked
    cache_dump "$M" | grep -v '<hint ' | sed 's/uuid="[^"]*"//'
    cache_dump "$M" | grep -c '<hint '
}
clean() {
    tries=0
    until dmsetup status c | cut -d' ' -f14 | grep -qx 0 || [ $tries = 150 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
}

for format in '1 writeback' '2 metadata2 writeback'; do
    title "a new cache, $format"
    blkdiscard -z "$M"
    run dmsetup create c --table "0 65536 cache $M $C $O 128 $format smq 2 migration_threshold 0"
    run dmsetup table c
    run dmsetup deps c
    run dmsetup status c
    write 3 5 red
    run dmsetup status c
    write 4 1 green
    run dmsetup status c
    read_at 3 5
    read_at 100 2
    run dmsetup status c
    dd if="$O" bs=64k skip=3 count=5 iflag=direct status=none | sha256sum
    run dmsetup suspend c
    run dmsetup status c
    run dmsetup resume c
    run dmsetup status c
    quiet dmsetup remove c
    dump
    run dmsetup create c --table "0 65536 cache $M $C $O 128 $format default 2 migration_threshold 0"
    run dmsetup table c
    run dmsetup status c
    read_at 3 5
    quiet dmsetup remove c
    title 'cleaned'
    run dmsetup create c --table "0 65536 cache $M $C $O 128 $format cleaner 0"
    clean
    run dmsetup status c
    dd if="$O" bs=64k skip=3 count=5 iflag=direct status=none | sha256sum
    quiet dmsetup remove c
    dump
    title 'write through'
    through=$(echo "$format" | sed s/writeback/writethrough/)
    run dmsetup create c --table "0 65536 cache $M $C $O 128 $through smq 2 migration_threshold 0"
    run dmsetup status c
    write 3 1 blue
    write 100 1 blue
    run dmsetup status c
    read_at 3 2
    dd if="$O" bs=64k skip=3 count=2 iflag=direct status=none | sha256sum
    quiet dmsetup remove c
    title 'pass through'
    past=$(echo "$format" | sed s/writeback/passthrough/)
    run dmsetup create c --table "0 65536 cache $M $C $O 128 $past smq 2 migration_threshold 0"
    run dmsetup status c
    read_at 3 5
    run dmsetup message c 0 invalidate_cblocks 0
    run dmsetup message c 0 invalidate_cblocks 128
    run dmsetup message c 0 invalidate_cblocks 1-129
    run dmsetup message c 0 invalidate_cblocks 5-5
    run dmsetup message c 0 invalidate_cblocks 5-
    run dmsetup message c 0 invalidate_cblocks x
    run dmsetup message c 0 invalidate_cblocks
    run dmsetup status c
    run dmsetup message c 0 Invalidate_cblocks 0-128
    run dmsetup status c
    quiet dmsetup remove c
    dump
done
title messages
blkdiscard -z "$M"
run dmsetup create c --table "0 65536 cache $M $C $O 128 0 mq 4 random_threshold 3 sequential_threshold 4"
run dmsetup table c
run dmsetup status c
run dmsetup message c 0 migration_threshold 100
run dmsetup message c 0 Migration_Threshold 200
run dmsetup message c 0 migration_threshold x
run dmsetup message c 0 migration_threshold
run dmsetup message c 0 random_threshold 5
run dmsetup message c 0 random_threshold x
run dmsetup message c 0 nothing 5
run dmsetup message c 0 nothing
run dmsetup message c 0 invalidate_cblocks 0
run dmsetup status c
quiet dmsetup remove c
title 'features'
blkdiscard -z "$M"
run dmsetup create c --table "0 65536 cache $M $C $O 128 3 no_discard_passdown Metadata2 writethrough cleaner 0"
run dmsetup table c
run dmsetup status c
run dmsetup message c 0 random_threshold 5
quiet dmsetup remove c
title 'sizes that are no multiples'
blkdiscard -z "$M"
run dmsetup create c --table "0 65001 cache $M $C $O 192 1 writeback smq 2 migration_threshold 0"
run dmsetup status c
dd if=/dev/zero of="$DEVDIR/c" bs=96k seek=2 count=20 oflag=direct conv=notrunc status=none
run dmsetup status c
fill "$DEVDIR/c" 64900 101 tail
holds "$DEVDIR/c" 64900 101 tail
holds "$O" 64950 51 tail
quiet dmsetup remove c
dump
