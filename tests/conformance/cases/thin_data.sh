# Thin volumes: what is read after writes, snapshots, discards and deletes.
disk M 4M
disk D 64M
pool p "$M" "$D" 131072
T=$DEVDIR
quiet dmsetup message p 0 "create_thin 0"
quiet dmsetup create t0 --table "0 16384 thin $T/p 0"
zeroed "$T/t0" 0 16384
run dmsetup status t0
fill "$T/t0" 0 1024 red
fill "$T/t0" 5000 10 red
holds "$T/t0" 0 1024 red
holds "$T/t0" 5000 10 red
zeroed "$T/t0" 1024 256
run dmsetup status t0
run dmsetup status p
title 'a snapshot of it, and one of that'
quiet dmsetup suspend t0
quiet dmsetup message p 0 "create_snap 1 0"
quiet dmsetup resume t0
quiet dmsetup create t1 --table "0 16384 thin $T/p 1"
run dmsetup status t1
fill "$T/t1" 64 128 blue
holds "$T/t0" 0 1024 red
holds "$T/t1" 64 128 blue
quiet dmsetup suspend t1
quiet dmsetup message p 0 "create_snap 2 1"
quiet dmsetup resume t1
quiet dmsetup create t2 --table "0 16384 thin $T/p 2"
fill "$T/t2" 0 128 green
holds "$T/t1" 64 128 blue
holds "$T/t2" 0 128 green
holds "$T/t0" 0 1024 red
run dmsetup status
title 'discard'
run blkdiscard -o 0 -l 65536 "$T/t0"
zeroed "$T/t0" 0 128
holds "$T/t2" 0 128 green
run dmsetup status t0
run blkdiscard -o 65536 -l 4096 "$T/t0"
run dmsetup status t0
run blkdiscard "$T/t1"
run dmsetup status
run blkdiscard -z -o 0 -l 131072 "$T/t2"
zeroed "$T/t2" 0 256
run dmsetup status t2
title 'delete gives the blocks back'
quiet dmsetup remove t2
quiet dmsetup message p 0 "delete 2"
quiet dmsetup remove t1
quiet dmsetup message p 0 "delete 1"
run dmsetup status p
title 'a new size of the volume'
quiet dmsetup load t0 --table "0 32768 thin $T/p 0"
quiet dmsetup resume t0
run dmsetup status t0
fill "$T/t0" 32640 128 red
run dmsetup status t0
quiet dmsetup load t0 --table "0 1024 thin $T/p 0"
quiet dmsetup resume t0
run dmsetup status t0
