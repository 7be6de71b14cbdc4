# writecache: every argument wrong in turn, superblocks and entries that are wrong.
disk O 16M
disk C 4M

title arguments
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
