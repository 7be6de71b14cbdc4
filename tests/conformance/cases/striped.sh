# striped: arguments, status, table and data.
disk A 4M
disk B 4M
disk C 4M
run dmsetup create s --table "0 8192 striped 2 128 $A 0 $B 0"
run dmsetup table s
run dmsetup status s
fill "$DEVDIR/s" 100 300 red
holds "$DEVDIR/s" 100 300 red
dd if="$B" bs=512 count=128 status=none | sha256sum
dd if="$A" bs=512 skip=128 count=128 status=none | sha256sum
run dmsetup create s3 --table "0 6192 striped 3 48 $A 1024 $B 512 $C 0"
run dmsetup status s3
fill "$DEVDIR/s3" 0 6192 blue
holds "$DEVDIR/s3" 0 6192 blue
dd if="$C" bs=512 count=2048 status=none | sha256sum
title 'every argument wrong in turn'
try bad "0 8192 striped"
try bad "0 8192 striped 2 128"
try bad "0 8192 striped 0 128 $A 0 $B 0"
try bad "0 8192 striped x 128 $A 0 $B 0"
try bad "0 8192 striped 2 0 $A 0 $B 0"
try bad "0 8192 striped 2 x $A 0 $B 0"
try bad "0 8192 striped 2 3 $A 0 $B 0"
try bad "0 8192 striped 2 4 $A 0 $B 0"
try bad "0 8191 striped 2 128 $A 0 $B 0"
try bad "0 8200 striped 2 128 $A 0 $B 0"
try bad "0 8192 striped 2 128 $A 0"
try bad "0 8192 striped 2 128 $A 0 $B"
try bad "0 8192 striped 2 128 $A 0 $B 0 $C"
try bad "0 8192 striped 2 128 $A 0 $B 0 $C 0"
try bad "0 8192 striped 2 128 $A x $B 0"
try bad "0 8192 striped 2 128 $A 0 $B x"
try bad "0 8192 striped 2 128 $A 0 $WORK/absent 0"
try bad "0 8192 striped 2 128 $A 8192 $B 0"
try bad "0 65536 striped 2 128 $A 0 $B 0"
run dmsetup message s 0 hello
run dmsetup ls
