# unstriped: arguments, and that a stripe is where striped puts it.
disk A 4M
disk B 4M
disk C 4M
title 'the other way round as striped'
quiet dmsetup create s --table "0 6144 striped 3 8 $A 0 $B 0 $C 0"
fill "$DEVDIR/s" 0 6144 red
for stripe in 0 1 2; do
    run dmsetup create "u$stripe" --table "0 2048 unstriped 3 8 $stripe $DEVDIR/s 0"
done
run dmsetup table
run dmsetup status
run dmsetup deps u1
i=0
for device in "$A" "$B" "$C"; do
    dd if="$device" iflag=direct bs=1M count=1 status=none | sha256sum
    dd if="$DEVDIR/u$i" bs=1M count=1 status=none | sha256sum
    i=$((i + 1))
done
fill "$DEVDIR/u2" 100 77 green
blockdev --flushbufs "$C"
holds "$C" 100 77 green
run dmsetup message u1 0 hello
for stripe in 0 1 2; do
    quiet dmsetup remove "u$stripe"
done
quiet dmsetup remove s
title 'chunks that are no power of two, a place of its own, another beginning'
run dmsetup create u --table "0 96 unstriped 2 12 1 $A 40"
fill "$DEVDIR/u" 0 96 blue
dd if="$A" iflag=direct bs=512 count=512 status=none | sha256sum
quiet dmsetup remove u
run dmsetup create u --table "0 8 zero
8 64 unstriped 2 8 0 $B 0"
fill "$DEVDIR/u" 8 64 grey
dd if="$B" iflag=direct bs=512 count=512 status=none | sha256sum
quiet dmsetup remove u
title 'every argument wrong in turn'
try bad "0 64 unstriped"
try bad "0 64 unstriped 2 8 0 $A"
try bad "0 64 unstriped 2 8 0 $A 0 0"
try bad "0 64 unstriped 0 8 0 $A 0"
try bad "0 64 unstriped x 8 0 $A 0"
try bad "0 64 unstriped 2 0 0 $A 0"
try bad "0 64 unstriped 2 x 0 $A 0"
try bad "0 64 unstriped 2 8 x $A 0"
try bad "0 64 unstriped 2 8 3 $A 0"
try good "0 64 unstriped 2 8 2 $A 0"
try good "0 64 unstriped 1 8 7 $A 0"
try bad "0 64 unstriped 2 8 0 $WORK/absent 0"
try bad "0 64 unstriped 2 8 0 $A x"
try bad "0 64 unstriped 2 8 0 $A 8192"
try bad "0 60 unstriped 2 8 0 $A 0"
try good "0 8 unstriped 2 +8 0 $A 0"
run dmsetup ls
run dmsetup target-version unstriped
