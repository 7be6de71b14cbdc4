# writecache: table and status lines, messages, counters, options, data in the cache and on the origin.
disk O 16M
disk C 4M
fill "$O" 0 32768 origin

# used NUMBER: wait until so many of the 1020 blocks are in the cache, and none on its way.
used() {
    tries=0
    until dmsetup status w | grep -q " 1020 $((1020 - $1)) 0 " || [ $tries = 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    run dmsetup status w
}

# put BLOCK COUNT SEED: a write of its own for each block.
put() {
    pattern "$3" $((8 * $2)) | dd of="$DEVDIR/w" bs=4k seek="$1" iflag=fullblock oflag=direct conv=notrunc status=none
}

# has BLOCK COUNT SEED: the device itself, past the page cache.
has() {
    pattern "$3" $((8 * $2)) >"$WORK/.want"
    if dd if="$DEVDIR/w" bs=4k skip="$1" count="$2" iflag=direct status=none | cmp -s - "$WORK/.want"; then
        echo "$1+$2 holds $3"
    else
        echo "$1+$2 does NOT hold $3"
    fi
}

title 'a new cache'
run dmsetup create w --table "0 32768 writecache s $O $C 4096 0"
run dmsetup table w
run dmsetup deps w
run dmsetup status w
blockdev --getss --getpbsz "$DEVDIR/w"
dd if="$C" bs=4k count=1 iflag=direct status=none | sha256sum
title 'reads and writes'
put 10 4 one
run dmsetup status w
has 10 4 one
run dmsetup status w
sync "$DEVDIR/w"
put 11 2 two
run dmsetup status w
has 10 1 one
has 11 2 two
has 100 1 nothing
run dmsetup message w 0 clear_stats
run dmsetup status w
run dmsetup suspend w
run dmsetup status w
run dmsetup message w 0 flush
run dmsetup message w 0 clear_stats
run dmsetup resume w
run dmsetup status w
has 11 2 two
title 'written back'
run dmsetup message w 0 flush
run dmsetup status w
dd if="$O" bs=4k skip=10 count=5 iflag=direct status=none | sha256sum
has 11 2 two
put 20 40 three
run dmsetup message w 0 flush_on_suspend
run dmsetup suspend w
run dmsetup status w
dd if="$O" bs=4k skip=20 count=40 iflag=direct status=none | sha256sum
run dmsetup resume w
put 30 40 four
run dmsetup suspend w
run dmsetup resume w
run dmsetup status w
dd if="$O" bs=4k skip=20 count=40 iflag=direct status=none | sha256sum
title 'it comes back'
quiet dmsetup remove w
run dmsetup create w --table "0 32768 writecache s $O $C 4096 0"
run dmsetup status w
has 30 40 four
has 20 10 three
title messages
run dmsetup message w 0 nothing
run dmsetup message w 0 flush now
run dmsetup message w 0 flush_on_suspend now
run dmsetup message w 0 cleaner now
run dmsetup message w 0 clear_stats now
run dmsetup message w 0 Clear_Stats
run dmsetup message w 0 FLUSH
run dmsetup status w
put 50 10 five
run dmsetup message w 0 cleaner
used 0
put 50 2 six
used 0
run dmsetup table w
quiet dmsetup remove w
dd if="$O" bs=4k skip=50 count=10 iflag=direct status=none | sha256sum
title 'every option'
run dmsetup create w --table "0 32768 writecache S $O $C 4096 16 Start_Sector 0 high_watermark 60 low_watermark 60 writeback_jobs 8 autocommit_blocks 16 autocommit_time 500 max_age 86400000 cleaner metadata_only"
run dmsetup table w
run dmsetup status w
put 60 4 seven
run dmsetup status w
has 60 4 seven
quiet dmsetup remove w
blkdiscard -z "$C"
run dmsetup create w --table "0 32768 writecache s $O $C 512 7 start_sector 8 pause_writeback 0 low_watermark 0 metadata_only"
run dmsetup table w
run dmsetup status w
blockdev --getss --getpbsz "$DEVDIR/w"
quiet dmsetup remove w
title 'old blocks'
blkdiscard -z "$C"
run dmsetup create w --table "0 32768 writecache s $O $C 4096 2 max_age 200"
put 70 30 eight
used 0
dd if="$O" bs=4k skip=70 count=30 iflag=direct status=none | sha256sum
quiet dmsetup remove w
title 'between the marks'
run dmsetup create w --table "0 32768 writecache s $O $C 4096 4 high_watermark 2 low_watermark 1"
for block in 100 102 104 106 108 110 112 114 116 118 120 122 124 126 128 130 132 134 136; do
    put $block 1 nine
done
run dmsetup status w
put 138 1 nine
used 9
has 100 1 nine
has 138 1 nine
dd if="$O" bs=4k skip=100 count=40 iflag=direct status=none | sha256sum
quiet dmsetup remove w
run dmsetup ls
run dmsetup target-version writecache
