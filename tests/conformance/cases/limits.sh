# The limits that a device shows to what stands on it.
disk M 4M
disk D 64M
disk E 64M
T=$DEVDIR
quiet dmsetup create l --table "0 1024 linear $D 0"
quiet dmsetup create s --table "0 8192 striped 2 128 $D 1024 $E 0"
quiet dmsetup create z --table "0 1024 zero"
quiet dmsetup create r -r --table "0 1024 linear $D 0"
for name in l s z r; do
    run blockdev --getsz --getss --getpbsz --getro "$T/$name"
done
run dd if=/dev/zero of="$T/r" bs=4096 count=1 oflag=direct status=none
run blkdiscard "$T/z"
run blkdiscard "$T/l"
quiet dmsetup remove_all
for size in 128 384 2048; do
    dd if=/dev/zero of="$M" bs=4096 count=1 conv=fsync status=none
    pool p "$M" "$D" 126720 $size
    quiet dmsetup message p 0 "create_thin 0"
    quiet dmsetup create t --table "0 100000 thin $T/p 0"
    run blockdev --getsz --getss --getpbsz --getiomin --getioopt "$T/t"
    quiet dmsetup remove t
    quiet dmsetup remove p
done
