# Discards: of a whole chunk that has an exception, of one that has none.
T=$DEVDIR
disk O 1M
disk C 1M
fill "$O" 0 2048 red
quiet dmsetup create s --table "0 2048 snapshot $O $C P 8 1 discard_zeroes_cow"
fill "$T/s" 1024 16 pink
run dmsetup status s
run blkdiscard -o 524288 -l 8192 "$T/s"
zeroed "$T/s" 1024 16
holds "$T/s" 0 1024 red
run dmsetup status s
title 'where there is no exception'
run blkdiscard -o 819200 -l 4096 "$T/s"
zeroed "$T/s" 1600 8
run dmsetup info s
run dmsetup status
