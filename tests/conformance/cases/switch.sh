# switch: arguments, every form of the message, where data goes.
disk A 4M
disk B 4M
disk C 4M

# paths: a letter for the device of each of the first eight regions.
paths() {
    for region in 0 1 2 3 4 5 6 7; do
        for device in A B C; do eval "blkdiscard -f -z \$$device"; done
        fill "$DEVDIR/s" $((region * 16)) 16 "region $region"
        for device in A B C; do
            eval "below=\$$device"
            dd if="$below" iflag=direct bs=8k skip=$region count=1 status=none | grep -q region && printf %s $device
        done
    done
    echo
}

title 'regions in turn'
run dmsetup create s --table "0 128 switch 3 16 0 $A 0 $B 0 $C 0"
run dmsetup table s
run dmsetup status s
run dmsetup deps s
paths
title messages
run dmsetup message s 0 set_region_mappings 0:2 :2 :1
paths
run dmsetup message s 0 Set_Region_Mappings 6:0 3:1
paths
run dmsetup message s 0 set_region_mappings 0:1 :2 R2,6
paths
run dmsetup message s 0 set_region_mappings 0:0 r1,7
paths
run dmsetup message s 0 set_region_mappings 5:0002 R1,1
paths
run dmsetup message s 0 set_region_mappings
paths
fill "$DEVDIR/s" 0 128 all
holds "$DEVDIR/s" 0 128 all
title 'messages that are wrong'
for words in '0:1 x' '0:1 1:' '0:1 g:1' '0:1 1:1x' '0:1 R' '0:1 R,1' '0:1 R1' '0:1 R1,' '0:1 R0,1' '0:1 R2,1' '0:1 R1,8' \
    '0:1 8:1' '0:1 6:3' '0:1 1:2:1' '0:1 R1,1,1' ; do
    run dmsetup message s 0 set_region_mappings 0:0
    # shellcheck disable=SC2086
    run dmsetup message s 0 set_region_mappings $words
done
paths
run dmsetup message s 0 hello
quiet dmsetup remove s
title 'a region that is no power of two, a short last one, another beginning'
run dmsetup create s --table "0 8 zero
8 100 switch 2 24 0 $A 64 $B 8"
run dmsetup table s
blkdiscard -f -z "$A"
blkdiscard -f -z "$B"
fill "$DEVDIR/s" 8 100 red
holds "$DEVDIR/s" 8 100 red
dd if="$A" iflag=direct bs=512 count=512 status=none | sha256sum
dd if="$B" iflag=direct bs=512 count=512 status=none | sha256sum
run dmsetup message s 8 set_region_mappings 4:1
run dmsetup message s 8 set_region_mappings 5:1
quiet dmsetup remove s
title 'every argument wrong in turn'
try bad "0 128 switch"
try bad "0 128 switch 1"
try bad "0 128 switch 1 16"
try bad "0 128 switch 0 16 0"
try bad "0 128 switch x 16 0 $A 0"
try bad "0 128 switch 1 0 0 $A 0"
try bad "0 128 switch 1 x 0 $A 0"
try bad "0 128 switch 1 16 1 $A 0"
try bad "0 128 switch 1 16 x $A 0"
try bad "0 128 switch 1 16 0"
try bad "0 128 switch 1 16 0 $A"
try bad "0 128 switch 1 16 0 $A 0 $B 0"
try bad "0 128 switch 2 16 0 $A 0 $B"
try bad "0 128 switch 2 16 0 $A 0 $WORK/absent 0"
try bad "0 128 switch 2 16 0 $A 0 $B x"
try bad "0 128 switch 2 16 0 $A 0 $B -1"
try bad "0 128 switch 2 16 0 $A 0 $B 8192"
try good "0 128 switch 2 16 0 $A 0 $B +8"
try good "0 128 switch 1 1024 0 $A 0"
run dmsetup ls
run dmsetup target-version switch
