# Read-only, needs-check, fail; damaged and odd metadata devices.
disk M 4M
disk D 64M
T=$DEVDIR
pool p "$M" "$D" 131072
quiet dmsetup message p 0 "create_thin 0"
quiet dmsetup create t --table "0 16384 thin $T/p 0"
fill "$T/t" 0 256 red
quiet dmsetup remove t
quiet dmsetup remove p
title 'opened read-only'
run dmsetup create p --table "0 131072 thin-pool $M $D 128 0 1 read_only"
run dmsetup status p
run dmsetup create t --table "0 16384 thin $T/p 0"
holds "$T/t" 0 256 red
run dd if=/dev/zero of="$T/t" bs=64k count=1 oflag=direct status=none
run dd if=/dev/zero of="$T/t" bs=64k count=1 seek=10 oflag=direct status=none
for message in "create_thin 1" "create_snap 1 0" "delete 0" "set_transaction_id 0 1" \
    reserve_metadata_snap release_metadata_snap nonsense; do
    run dmsetup message p 0 "$message"
done
run dmsetup status
quiet dmsetup remove t
quiet dmsetup remove p
title 'read-only on a device that holds no pool'
disk N 4M
run dmsetup create p --table "0 131072 thin-pool $N $D 128 0 1 read_only"
title 'the needs-check flag'
quiet thin_check --clear-needs-check-flag "$M"
cp "$WORK/M.img" "$WORK/keep"
printf '\001' | dd of="$WORK/M.img" bs=1 seek=4 conv=notrunc status=none
run dmsetup create p --table "0 131072 thin-pool $M $D 128 0 0"
title 'a superblock that is not right'
cp "$WORK/keep" "$WORK/M.img"
blockdev --flushbufs "$M"
printf 'X' | dd of="$M" bs=1 seek=32 conv=notrunc,fsync status=none
run dmsetup create p --table "0 131072 thin-pool $M $D 128 0 0"
quiet dd if="$WORK/keep" of="$M" bs=4096 conv=fsync
printf 'X' | dd of="$M" bs=1 seek=2000 conv=notrunc,fsync status=none
run dmsetup create p --table "0 131072 thin-pool $M $D 128 0 0"
quiet dd if="$WORK/keep" of="$M" bs=4096 conv=fsync
dd if=/dev/zero of="$M" bs=4096 count=1 conv=notrunc,fsync status=none
run dmsetup create p --table "0 131072 thin-pool $M $D 128 0 0"
run dmsetup status p
quiet dmsetup remove p
title 'a damaged mapping tree'
quiet dd if="$WORK/keep" of="$M" bs=4096 conv=fsync
for block in 1 2 3 4 5 6 7 8 9 10 11 12; do
    printf 'XXXX' | dd of="$M" bs=1 seek=$((block * 4096 + 2000)) conv=notrunc,fsync status=none
done
run dmsetup create p --table "0 131072 thin-pool $M $D 128 0 0"
run dmsetup status p
run dmsetup create t --table "0 16384 thin $T/p 0"
run dmsetup ls
