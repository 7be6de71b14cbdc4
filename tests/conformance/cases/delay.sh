# delay: arguments, table, status, where requests go.
disk A 4M
disk B 4M
disk C 4M
title 'one device for all'
run dmsetup create d --table "0 2048 delay $A 16 0"
run dmsetup table d
run dmsetup status d
run dmsetup deps d
fill "$DEVDIR/d" 0 64 red
holds "$A" 16 64 red
quiet dmsetup remove d
title 'requests that wait a little'
run dmsetup create d --table "0 2048 delay $A 0 20 $A 0 30 $A 0 10"
run dmsetup table d
fill "$DEVDIR/d" 100 300 green
holds "$DEVDIR/d" 100 300 green
run dmsetup status d
quiet dmsetup remove d
title 'reads, writes and flushes of their own'
run dmsetup create d --table "0 2048 delay $A 0 0 $B 8 0"
run dmsetup table d
run dmsetup deps d
fill "$DEVDIR/d" 0 16 blue
holds "$B" 8 16 blue
zeroed "$A" 0 16
quiet dmsetup remove d
run dmsetup create d --table "0 2048 delay $A 0 0 $B 8 1 $C 24 2"
run dmsetup table d
run dmsetup deps d
run dmsetup status d
quiet dmsetup remove d
title 'requests that wait are counted, and go on at a suspend'
run dmsetup create d --table "0 2048 delay $A 0 600000 $A 0 0"
dd if="$DEVDIR/d" of="$WORK/read" bs=4k count=1 iflag=direct status=none &
tries=0
until dmsetup status d | grep -q 'delay 1 0 0' || [ $tries = 100 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
run dmsetup status d
run dmsetup suspend --nolockfs d
wait
run dmsetup status d
run dmsetup resume d
quiet dmsetup remove d
title 'two lines'
run dmsetup create d --table "0 1024 delay $A 0 0
1024 1024 delay $B 512 1"
fill "$DEVDIR/d" 1000 48 grey
holds "$DEVDIR/d" 1000 48 grey
holds "$B" 512 8 nothing
run dmsetup status d
quiet dmsetup remove d
title 'every argument wrong in turn'
try bad "0 2048 delay"
try bad "0 2048 delay $A"
try bad "0 2048 delay $A 0"
try bad "0 2048 delay $A 0 1 $B"
try bad "0 2048 delay $A 0 1 $B 0"
try bad "0 2048 delay $A 0 1 $B 0 1 $C"
try bad "0 2048 delay $A 0 1 $B 0 1 $C 0"
try bad "0 2048 delay $A 0 1 $B 0 1 $C 0 1 0"
try bad "0 2048 delay $WORK/absent 0 1"
try bad "0 2048 delay $A x 1"
try bad "0 2048 delay $A 1x 1"
try bad "0 2048 delay $A -1 1"
try bad "0 2048 delay $A 0 x"
try bad "0 2048 delay $A 0 1s"
try bad "0 2048 delay $A 0 -1"
try bad "0 2048 delay $A 8192 1"
try bad "0 2048 delay $A 0 1 $WORK/absent 0 1"
try bad "0 2048 delay $A 0 1 $B x 1"
try bad "0 2048 delay $A 0 1 $B 0 x"
try bad "0 2048 delay $A 0 1 $B 8000 1"
try bad "0 2048 delay $A 0 1 $B 0 1 $WORK/absent 0 1"
try bad "0 2048 delay $A 0 1 $B 0 1 $C x 1"
try bad "0 2048 delay $A 0 1 $B 0 1 $C 0 x"
try bad "0 2048 delay $A 0 1 $B 0 1 $C 8192 1"
try good "0 2048 delay $A 0 4294967295"
run dmsetup create d --table "0 8 delay $A 0 0"
run dmsetup message d 0 hello
quiet dmsetup remove d
run dmsetup ls
run dmsetup target-version delay
