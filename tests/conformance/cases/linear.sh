# linear: arguments, status, table and data.
disk A 8M
run dmsetup create l --table "0 1024 linear $A 100"
run dmsetup table l
run dmsetup status l
run dmsetup status --noflush l
fill "$DEVDIR/l" 8 64 red
holds "$A" 108 64 red
run blockdev --getsz "$DEVDIR/l"
title 'device given as numbers'
numbers=$(lsblk -dno MAJ:MIN "$A" | tr -d ' ')
run dmsetup create l2 --table "0 8 linear $numbers 0"
run dmsetup table l2
title 'every argument wrong in turn'
try bad "0 8 linear $A"
try bad "0 8 linear $A 0 0"
try bad "0 8 linear $WORK/absent 0"
try bad "0 8 linear 250:250 0"
try bad "0 8 linear 1:x 0"
try bad "0 8 linear nosuchname 0"
try bad "0 8 linear $A x"
try bad "0 8 linear $A -1"
try bad "0 8 linear $A 1x"
try bad "0 8 linear $A 0x10"
try bad "0 8 linear $A 18446744073709551615"
try bad "0 8 linear $A 18446744073709551616"
try bad "0 8 linear $A 16384"
try bad "0 8 linear $A 16380"
try bad "0 16385 linear $A 0"
run dmsetup message l 0 hello
run dmsetup message l 0 @cancel_deferred_remove
run dmsetup message l 5 hello
run dmsetup message l 4096 hello
run dmsetup message absent 0 hello
run dmsetup ls
