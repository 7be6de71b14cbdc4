# Features, block size and devices changed by reload.
disk M 4M
disk D 64M
disk D2 64M
disk M2 4M
pool p "$M" "$D" 65536 128 10
change() {
    run dmsetup load p --table "$1"
    run dmsetup resume p
    run dmsetup table p
    run dmsetup status p
    run dmsetup info -c --noheadings -o attr p
    dmsetup clear p >/dev/null 2>&1
    dmsetup resume p >/dev/null 2>&1
}
change "0 65536 thin-pool $M $D 128 20 4 skip_block_zeroing ignore_discard no_discard_passdown error_if_no_space"
change "0 65536 thin-pool $M $D 128 20 0"
change "0 65536 thin-pool $M $D 128 20 1 read_only"
change "0 65536 thin-pool $M $D 128 20 0"
title 'what may not change'
change "0 65536 thin-pool $M $D 256 20 0"
change "0 65536 thin-pool $M $D2 128 20 0"
change "0 65536 thin-pool $M2 $D 128 20 0"
change "0 65536 linear $D 0"
change "0 32768 thin-pool $M $D 128 20 0"
title 'growth of both'
truncate -s 8M "$WORK/M.img"
losetup -c "$M"
change "0 131072 thin-pool $M $D 128 20 0"
title 'another block size on an old pool'
quiet dmsetup remove p
run dmsetup create p --table "0 131072 thin-pool $M $D 256 20 0"
run dmsetup create p --table "0 131072 thin-pool $M $D 128 20 0"
run dmsetup status p
quiet dmsetup remove p
run dmsetup create p --table "0 65536 thin-pool $M $D 128 20 0"
run dmsetup ls
