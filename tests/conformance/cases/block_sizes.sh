# Blocks that are not a power of two, and large ones.
disk M 4M
for size in 128 384 640 2048 131072; do
    title "block of $size sectors"
    disk D 192M
    dd if=/dev/zero of="$M" bs=4096 count=1 conv=fsync status=none
    run dmsetup create p --table "0 393216 thin-pool $M $D $size 0 0"
    run dmsetup message p 0 "create_thin 0"
    run dmsetup create t --table "0 300000 thin $DEVDIR/p 0"
    fill "$DEVDIR/t" 380 10 red
    fill "$DEVDIR/t" 1000 3000 blue
    holds "$DEVDIR/t" 380 10 red
    holds "$DEVDIR/t" 1000 3000 blue
    zeroed "$DEVDIR/t" 0 380
    zeroed "$DEVDIR/t" 390 610
    run dmsetup status
    quiet dmsetup remove t
    quiet dmsetup remove p
done
