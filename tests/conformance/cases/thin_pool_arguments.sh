# thin-pool: every argument wrong in turn, and every right form as table prints it.
disk M 4M
disk D 64M
disk E 64M
good="$M $D 128 100"
title 'counts'
try p "0 131072 thin-pool"
try p "0 131072 thin-pool $M"
try p "0 131072 thin-pool $M $D"
try p "0 131072 thin-pool $M $D 128"
title 'right'
try p "0 131072 thin-pool $good"
try p "0 131072 thin-pool $good 0"
try p "0 131072 thin-pool $good 1 skip_block_zeroing"
try p "0 131072 thin-pool $good 1 ignore_discard"
try p "0 131072 thin-pool $good 1 no_discard_passdown"
try p "0 131072 thin-pool $good 1 error_if_no_space"
try p "0 131072 thin-pool $good 1 read_only"
try p "0 131072 thin-pool $good 4 skip_block_zeroing ignore_discard no_discard_passdown error_if_no_space"
try p "0 131072 thin-pool $good 4 error_if_no_space no_discard_passdown ignore_discard skip_block_zeroing"
try p "0 131072 thin-pool $good 2 skip_block_zeroing skip_block_zeroing"
try p "0 131072 thin-pool $good 2 ignore_discard no_discard_passdown"
title 'devices'
try p "0 131072 thin-pool $WORK/absent $D 128 100"
try p "0 131072 thin-pool $M $WORK/absent 128 100"
try p "0 131072 thin-pool $M $M 128 100"
try p "0 131072 thin-pool 250:250 $D 128 100"
try p "0 131072 thin-pool $M 250:250 128 100"
title 'block size'
for size in 0 x 1 127 129 64 192 2097152 2097153 2097280 4294967295 4294967296 -128 0x80; do
    try p "0 131072 thin-pool $M $D $size 100"
done
title 'low water mark'
for mark in x -1 0 18446744073709551615 18446744073709551616; do
    try p "0 131072 thin-pool $M $D 128 $mark"
done
title 'features'
try p "0 131072 thin-pool $good x"
try p "0 131072 thin-pool $good 1"
try p "0 131072 thin-pool $good 5 skip_block_zeroing ignore_discard no_discard_passdown error_if_no_space read_only"
try p "0 131072 thin-pool $good 1 nonsense"
try p "0 131072 thin-pool $good 2 skip_block_zeroing"
try p "0 131072 thin-pool $good 1 skip_block_zeroing trailing"
try p "0 131072 thin-pool $good 0 skip_block_zeroing"
try p "0 131072 thin-pool $good -1"
title 'size and place'
try p "0 131000 thin-pool $good"
try p "0 131073 thin-pool $good"
try p "0 65536 thin-pool $good"
try p "0 262144 thin-pool $good"
try p "0 64 thin-pool $good"
try p "0 131072 thin-pool $good
131072 8 zero"
try p "0 8 zero
8 131072 thin-pool $good"
title 'devices in use'
run dmsetup create p --table "0 131072 thin-pool $good"
run dmsetup create q --table "0 131072 thin-pool $M $E 128 100"
run dmsetup create q --table "0 131072 thin-pool $good"
try q "0 131072 thin-pool $E $D 128 100"
run dmsetup ls
