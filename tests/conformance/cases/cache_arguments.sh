# cache: every argument wrong in turn.
disk M 4M
disk C 8M
disk O 32M

# write BLOCK COUNT WORD: so many whole blocks of 64 KiB.
write() { pattern "$3" $(($2 * 128)) | dd of="$DEVDIR/c" bs=64k seek="$1" iflag=fullblock oflag=direct conv=notrunc status=none; }

title 'every argument wrong in turn'
try bad "0 2048 cache"
try bad "0 2048 cache $M"
try bad "0 2048 cache $M $C"
try bad "0 2048 cache $M $C $O"
try bad "0 2048 cache $M $C $O 128"
try bad "0 2048 cache $M $C $O 128 0"
try bad "0 2048 cache $M $C $O 128 0 smq"
try bad "0 2048 cache $WORK/absent $C $O 128 0 smq 0"
try bad "0 2048 cache $M $WORK/absent $O 128 0 smq 0"
try bad "0 2048 cache $M $C $WORK/absent 128 0 smq 0"
try bad "0 70000 cache $M $C $O 128 0 smq 0"
try bad "0 2048 cache $M $C $O x 0 smq 0"
try bad "0 2048 cache $M $C $O 0 0 smq 0"
try bad "0 2048 cache $M $C $O 32 0 smq 0"
try bad "0 2048 cache $M $C $O 100 0 smq 0"
try bad "0 2048 cache $M $C $O 4194304 0 smq 0"
try bad "0 2048 cache $M $C $O 32768 0 smq 0"
try bad "0 2048 cache $M $C $O 128 x smq 0"
try bad "0 2048 cache $M $C $O 128 4 a b c d smq 0"
try bad "0 2048 cache $M $C $O 128 1 nothing smq 0"
try bad "0 2048 cache $M $C $O 128 2 writeback writethrough smq 0"
try bad "0 2048 cache $M $C $O 128 0 nothing 0"
try bad "0 2048 cache $M $C $O 128 0 smq x"
try bad "0 2048 cache $M $C $O 128 0 smq 1025"
try bad "0 2048 cache $M $C $O 128 0 smq 2 a"
try bad "0 2048 cache $M $C $O 128 0 smq 1 a"
try bad "0 2048 cache $M $C $O 128 0 smq 2 a 1"
try bad "0 2048 cache $M $C $O 128 0 smq 2 migration_threshold x"
try bad "0 2048 cache $M $C $O 128 0 smq 2 random_threshold 1"
try bad "0 2048 cache $M $C $O 128 0 mq 2 random_threshold x"
try bad "0 2048 cache $M $C $O 128 0 smq 0 and more"
quiet dmsetup create c --table "0 2048 cache $M $C $O 128 1 writeback smq 2 migration_threshold 0"
write 3 1 red
quiet dmsetup remove c
try bad "0 2048 cache $M $C $O 256 0 smq 0"
try bad "0 2048 cache $M $C $O 128 1 passthrough smq 0"
fill "$M" 0 8 junk
try bad "0 2048 cache $M $C $O 128 0 smq 0"
run dmsetup ls
run dmsetup target-version cache
