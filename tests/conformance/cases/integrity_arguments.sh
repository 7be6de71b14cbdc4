# integrity: every argument wrong in turn.
disk A 16M
disk B 16M
blank() { blkdiscard -fz "$1" 2>/dev/null; }

title 'every argument wrong in turn'
blank "$A"
try bad "0 2048 integrity"
try bad "0 2048 integrity $A 0 4 D"
try bad "0 2048 integrity $WORK/absent 0 4 D 0"
try bad "0 2048 integrity $A x 4 D 0"
try bad "0 2048 integrity $A 0 x D 0"
try bad "0 2048 integrity $A 0 0 D 0"
try bad "0 2048 integrity $A 0 - D 0"
try bad "0 2048 integrity $A 0 425 D 0"
try bad "0 2048 integrity $A 0 4 X 0"
try bad "0 2048 integrity $A 0 4 D x"
try bad "0 2048 integrity $A 0 4 D 19"
try bad "0 2048 integrity $A 0 4 D 1"
try bad "0 2048 integrity $A 0 4 D 1 nothing"
try bad "0 2048 integrity $A 0 4 D 1 nothing:1"
for word in journal_sectors interleave_sectors buffer_sectors journal_watermark commit_time block_size sectors_per_bit bitmap_flush_interval; do
    try bad "0 2048 integrity $A 0 4 D 1 $word:x"
done
try bad "0 2048 integrity $A 0 4 D 1 journal_watermark:101"
try bad "0 2048 integrity $A 0 4 D 1 block_size:256"
try bad "0 2048 integrity $A 0 4 D 1 block_size:8192"
try bad "0 2048 integrity $A 0 4 D 1 block_size:1536"
try bad "0 2048 integrity $A 0 4 D 1 meta_device:$WORK/absent"
try bad "0 2048 integrity $A 0 4 D 1 internal_hash:nothing"
try bad "0 2048 integrity $A 0 4 D 1 internal_hash:hmac(sha256)"
try bad "0 2048 integrity $A 0 4 D 1 internal_hash:hmac(sha256):0"
try bad "0 2048 integrity $A 0 4 D 1 internal_hash:hmac(sha256):zz"
try bad "0 2048 integrity $A 0 4 D 1 internal_hash:sha256:00"
try bad "0 2048 integrity $A 0 4 D 1 internal_hash:crc32c:00"
try bad "0 2048 integrity $A 0 4 D 1 journal_mac:nothing"
try bad "0 2048 integrity $A 0 4 D 1 journal_mac:hmac(sha256)"
try bad "0 2048 integrity $A 0 4 B 0"
try bad "0 2048 integrity $A 0 4 D 1 allow_discards"
try bad "0 2048 integrity $A 0 4 D 1 recalculate"
try bad "0 2048 integrity $A 40000 4 D 1 internal_hash:crc32c"
try bad "0 2048 integrity $A 32760 4 D 1 internal_hash:crc32c"
blank "$A"
try bad "0 2048 integrity $A 0 4 D 1 internal_hash:crc32c"
try bad "0 2048 integrity $A 0 8 D 1 internal_hash:xxhash64"
try bad "0 2048 integrity $A 0 4 D 2 internal_hash:crc32c block_size:1024"
try bad "0 2048 integrity $A 0 4 D 2 internal_hash:crc32c journal_mac:crc32c"
try bad "0 2048 integrity $A 0 4 D 2 internal_hash:crc32c meta_device:$B"
try bad "0 40000 integrity $A 0 4 D 1 internal_hash:crc32c"
fill "$A" 0 8 junk
try bad "0 2048 integrity $A 0 4 D 1 internal_hash:crc32c"
disk S 64k
try bad "0 64 integrity $S 0 4 D 1 internal_hash:crc32c"
quiet dmsetup create two --notable
run dmsetup load two --table "0 8 zero
8 8 integrity $B 0 4 D 1 internal_hash:crc32c"
quiet dmsetup remove two
run dmsetup ls
run dmsetup target-version integrity
