# Out of data space: queue, error_if_no_space, recovery by growth and by deletion.
disk M 4M
disk D 8M
T=$DEVDIR
w() { run timeout 10 dd if=/dev/zero of="$1" bs=64k seek="$2" count="$3" oflag=direct status=none; }
title 'error_if_no_space'
pool p "$M" "$D" 4096 128 8 "2 skip_block_zeroing error_if_no_space"
quiet dmsetup message p 0 "create_thin 0"
quiet dmsetup message p 0 "create_thin 1"
quiet dmsetup create t --table "0 16384 thin $T/p 0"
quiet dmsetup create u --table "0 16384 thin $T/p 1"
w "$T/t" 0 30
run dmsetup status p
w "$T/u" 0 2
run dmsetup status
w "$T/t" 40 1
run dmsetup status
run dmsetup info -c --noheadings -o name,events
w "$T/t" 0 1
run dd if="$T/t" of=/dev/null bs=64k skip=50 count=1 iflag=direct status=none
run dmsetup message p 0 "create_thin 5"
run dmsetup message p 0 "delete 5"
title 'room after a discard'
run blkdiscard -o 0 -l 131072 "$T/t"
run dmsetup status p
w "$T/t" 40 1
run dmsetup status p
w "$T/t" 41 1
w "$T/t" 42 1
run dmsetup status p
title 'growth'
run dmsetup load p --table "0 8192 thin-pool $M $D 128 8 2 skip_block_zeroing error_if_no_space"
run dmsetup resume p
run dmsetup status p
w "$T/t" 42 10
run dmsetup status
title 'smaller is refused'
run dmsetup load p --table "0 4096 thin-pool $M $D 128 8 2 skip_block_zeroing error_if_no_space"
run dmsetup resume p
run dmsetup status p
run dmsetup info -c --noheadings -o name,attr p
run dmsetup load p --table "0 8192 thin-pool $M $D 128 8 1 skip_block_zeroing"
run dmsetup resume p
run dmsetup status p
title 'queue_if_no_space'
w "$T/t" 64 22
run dmsetup status p
dd if=/dev/zero of="$T/t" bs=64k count=1 seek=127 oflag=direct status=none 2>/dev/null &
writer=$!
dd if=/dev/zero of="$T/u" bs=64k count=2 seek=60 oflag=direct status=none 2>"$WORK/.late" &
writer2=$!
sleep 2
run dmsetup status p
# INVARIANT: a kernel gives up after 60 s, so nothing may be slow from here to the growth.
run dmsetup load p --table "0 16384 thin-pool $M $D 128 8 1 skip_block_zeroing"
run dmsetup resume p
wait $writer
echo "writer $?"
wait $writer2
echo "writer $?"
run dmsetup status
