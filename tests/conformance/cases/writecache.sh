# writecache: arguments, table and status lines, messages, counters, data in the cache and on the origin.
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
run dmsetup create w --table "0 32768 writecache S $O $C 4096 18 Start_Sector 0 high_watermark 60 low_watermark 60 writeback_jobs 8 autocommit_blocks 16 autocommit_time 500 max_age 86400000 cleaner metadata_only"
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
title 'every argument wrong in turn'
blkdiscard -z "$C"
try bad "0 2048 writecache"
try bad "0 2048 writecache s"
try bad "0 2048 writecache s $O"
try bad "0 2048 writecache s $O $C"
try bad "0 2048 writecache s $O $C 4096"
try bad "0 2048 writecache p $O $C 4096 0"
try bad "0 2048 writecache q $O $C 4096 0"
try bad "0 2048 writecache s $WORK/absent $C 4096 0"
try bad "0 2048 writecache s $O $WORK/absent 4096 0"
try bad "0 2048 writecache s $O $C x 0"
try bad "0 2048 writecache s $O $C 256 0"
try bad "0 2048 writecache s $O $C 8192 0"
try bad "0 2048 writecache s $O $C 1536 0"
try bad "0 2048 writecache s $O $C 4096 x"
try bad "0 2048 writecache s $O $C 4096 19"
try bad "0 2048 writecache s $O $C 4096 2 cleaner"
try bad "0 2048 writecache s $O $C 4096 1 nothing"
try bad "0 2048 writecache s $O $C 4096 1 fua"
try bad "0 2048 writecache s $O $C 4096 1 nofua"
for option in start_sector high_watermark low_watermark writeback_jobs autocommit_blocks autocommit_time max_age pause_writeback; do
    try bad "0 2048 writecache s $O $C 4096 1 $option"
    try bad "0 2048 writecache s $O $C 4096 2 $option x"
    try bad "0 2048 writecache s $O $C 4096 2 $option -1"
    try bad "0 2048 writecache s $O $C 4096 2 $option 86400001"
    try bad "0 2048 writecache s $O $C 4096 2 $option 0"
done
try bad "0 2048 writecache s $O $C 4096 4 high_watermark 30 low_watermark 31"
try bad "0 2048 writecache s $O $C 4096 2 high_watermark 101"
try bad "0 2048 writecache s $O $C 4096 2 start_sector 8192"
try bad "0 2048 writecache s $O $C 4096 2 start_sector 8191"
try bad "0 40000 writecache s $O $C 4096 0"
quiet dmsetup create w --table "0 2048 writecache s $O $C 4096 0"
quiet dmsetup remove w
try bad "0 2048 writecache s $O $C 512 0"
fill "$C" 0 8 junk
try bad "0 2048 writecache s $O $C 4096 0"
# A superblock of version 2, one with a block too many, one without blocks.
superblock() { printf "$1" | dd of="$C" bs=1 seek="$2" conv=notrunc,fsync status=none; }
blkdiscard -z "$C"
quiet dmsetup create w --table "0 2048 writecache s $O $C 4096 0"
quiet dmsetup remove w
superblock '\002' 4
try bad "0 2048 writecache s $O $C 4096 0"
superblock '\001' 4
superblock '\375' 16
try bad "0 2048 writecache s $O $C 4096 0"
superblock '\000\000' 16
try bad "0 2048 writecache s $O $C 4096 0"
superblock '\377\377\377\377\377\377\377\377' 16
try bad "0 2048 writecache s $O $C 4096 0"
title 'entries that no commit wrote, or two commits'
superblock '\374\003\000\000\000\000\000\000\003' 16
superblock '\010\000\000\000\000\000\000\000\001\000\000\000\000\000\000\000\010\000\000\000\000\000\000\000\002\000\000\000\000\000\000\000\020\000\000\000\000\000\000\000\003\000\000\000\000\000\000\000' 64
run dmsetup create w --table "0 32768 writecache s $O $C 4096 0"
run dmsetup status w
quiet dmsetup remove w
dd if="$C" bs=4k count=1 iflag=direct status=none | sha256sum
superblock '\010\000\000\000\000\000\000\000\002\000\000\000\000\000\000\000\010\000\000\000\000\000\000\000\002\000\000\000\000\000\000\000' 64
run dmsetup create w --table "0 32768 writecache s $O $C 4096 0"
run dmsetup status w
run dmsetup message w 0 flush
dd if=/dev/zero of="$DEVDIR/w" bs=4k count=1 seek=9 oflag=direct conv=notrunc status=none 2>/dev/null
echo "exit code $?"
quiet dmsetup remove w
run dmsetup ls
run dmsetup target-version writecache
