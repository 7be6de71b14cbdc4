# clone: arguments, messages, status, data while and after it is copied.
disk M 4M
disk D 16M
disk S 16M
fill "$S" 0 32768 source

# hydrated COUNT: wait until so many regions have come.
hydrated() {
    tries=0
    until dmsetup status c | grep -q " $1/[0-9]* 0 " || [ $tries = 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    run dmsetup status c
}

title 'nothing in the background'
run dmsetup create c --table "0 32768 clone $M $D $S 8 1 no_hydration"
run dmsetup table c
run dmsetup deps c
run dmsetup status c
holds "$DEVDIR/c" 0 32768 source
dd if=/dev/zero of="$DEVDIR/c" bs=4k seek=3 count=2 oflag=direct conv=notrunc status=none
run dmsetup status c
dd if=/dev/zero of="$DEVDIR/c" bs=512 seek=81 count=1 oflag=direct conv=notrunc status=none
run dmsetup status c
dd if="$DEVDIR/c" bs=4k count=32 status=none | sha256sum
dd if="$D" bs=4k skip=10 count=1 status=none | sha256sum
quiet dmsetup remove c
run dmsetup create c --table "0 32768 clone $M $D $S 8 1 no_hydration"
run dmsetup status c
dd if="$DEVDIR/c" bs=4k count=32 status=none | sha256sum
title messages
run dmsetup message c 0 hydration_threshold 64
run dmsetup message c 0 Hydration_Batch_Size 16
run dmsetup status c
run dmsetup message c 0 disable_hydration
run dmsetup message c 0 nothing
run dmsetup message c 0 nothing 1
run dmsetup message c 0 hydration_threshold
run dmsetup message c 0 hydration_threshold x
run dmsetup message c 0 hydration_batch_size -1
run dmsetup message c 0 hydration_batch_size 1 2
run dmsetup message c 0 enable_hydration and more
hydrated 4096
run dmsetup table c
dd if="$DEVDIR/c" bs=1M status=none | sha256sum
quiet dmsetup remove c
dd if="$D" bs=1M status=none | sha256sum
run dmsetup create c --table "0 32768 clone $M $D $S 8"
run dmsetup status c
run dmsetup suspend c
run dmsetup status c
run dmsetup resume c
quiet dmsetup remove c
title 'at once, with a short last region'
blkdiscard -z "$M"
blkdiscard -z "$D"
run dmsetup create c --table "0 30001 clone $M $D $S 64 2 no_discard_passdown no_hydration 4 hydration_batch_size 5 hydration_threshold 20"
run dmsetup table c
run dmsetup status c
run dmsetup message c 0 enable_hydration
hydrated 469
holds "$DEVDIR/c" 0 30001 source
quiet dmsetup remove c
holds "$D" 0 30001 source
title 'every argument wrong in turn'
blkdiscard -z "$M"
try bad "0 2048 clone"
try bad "0 2048 clone $M $D $S"
try bad "0 2048 clone $WORK/absent $D $S 8"
try bad "0 2048 clone $M $WORK/absent $S 8"
try bad "0 2048 clone $M $D $WORK/absent 8"
try bad "0 40000 clone $M $D $S 8"
disk L 32M
try bad "0 40000 clone $M $L $S 8"
try bad "0 2048 clone $M $D $S x"
try bad "0 2048 clone $M $D $S 4"
try bad "0 2048 clone $M $D $S 24"
try bad "0 2048 clone $M $D $S 4194304"
try bad "0 2048 clone $M $D $S 8 x"
try bad "0 2048 clone $M $D $S 8 3 a b c"
try bad "0 2048 clone $M $D $S 8 1"
try bad "0 2048 clone $M $D $S 8 1 nothing"
try bad "0 2048 clone $M $D $S 8 0 x"
try bad "0 2048 clone $M $D $S 8 0 5 a b c d e"
try bad "0 2048 clone $M $D $S 8 0 2 hydration_threshold"
try bad "0 2048 clone $M $D $S 8 0 1 hydration_threshold"
try bad "0 2048 clone $M $D $S 8 0 2 hydration_threshold x"
try bad "0 2048 clone $M $D $S 8 0 2 hydration_batch_size x"
try bad "0 2048 clone $M $D $S 8 0 2 nothing 1"
quiet dmsetup create c --table "0 2048 clone $M $D $S 8 1 no_hydration"
quiet dmsetup remove c
try bad "0 2048 clone $M $D $S 16 1 no_hydration"
try bad "0 1024 clone $M $D $S 8 1 no_hydration"
fill "$M" 0 8 junk
try bad "0 2048 clone $M $D $S 8 1 no_hydration"
run dmsetup ls
run dmsetup target-version clone
