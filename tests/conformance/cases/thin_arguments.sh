# thin: every argument wrong in turn.
disk M 4M
disk D 64M
disk O 8M
pool p "$M" "$D" 131072
run dmsetup message p 0 "create_thin 0"
P=$DEVDIR/p
run dmsetup create t --table "0 65536 thin $P 0"
run dmsetup table t
run dmsetup status t
try bad "0 65536 thin"
try bad "0 65536 thin $P"
try bad "0 65536 thin $P 0 $O extra"
try bad "0 65536 thin $WORK/absent 0"
try bad "0 65536 thin $D 0"
try bad "0 65536 thin $P x"
try bad "0 65536 thin $P -1"
try bad "0 65536 thin $P 1"
try bad "0 65536 thin $P 16777216"
try bad "0 65536 thin $P 4294967296"
try bad "0 65536 thin $P 0 $WORK/absent"
try bad "0 65536 thin $P 0 $P"

quiet dmsetup remove t
title 'an external origin'
run dmsetup create t --table "0 65536 thin $P 0 $O"
run dmsetup table t
run dmsetup status t
run dmsetup deps t
quiet dmsetup remove t
title 'not alone in its table'
run dmsetup create t --table "0 1024 thin $P 0
1024 1024 zero"
run dmsetup status t
quiet dmsetup remove t
run dmsetup create t --table "0 100 thin $P 0"
run dmsetup status t
run dmsetup message t 0 hello
run dmsetup message t 0 "create_thin 5"
run dmsetup ls
