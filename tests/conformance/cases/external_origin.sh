# A read-only origin outside the pool, as large as the volume and smaller.
disk M 4M
disk D 64M
disk O 1M
disk S 100K
pool p "$M" "$D" 131072
T=$DEVDIR
fill "$O" 0 2048 red
fill "$S" 0 200 blue
for id in 0 1 2; do
    quiet dmsetup message p 0 "create_thin $id"
done
run dmsetup create t0 --table "0 2048 thin $T/p 0 $O"
run dmsetup status t0
holds "$T/t0" 0 2048 red
fill "$T/t0" 64 8 green
holds "$T/t0" 0 64 red
holds "$T/t0" 64 8 green
run dmsetup status t0
run dmsetup create t1 --table "0 2048 thin $T/p 1 $S"
holds "$T/t1" 0 200 blue
zeroed "$T/t1" 200 1848
fill "$T/t1" 250 8 green
holds "$T/t1" 0 200 blue
zeroed "$T/t1" 200 50
holds "$T/t1" 250 8 green
fill "$T/t1" 1000 8 green
zeroed "$T/t1" 900 100
run dmsetup status t1
run dmsetup create t2 --table "0 2048 thin $T/p 2 $O"
run blkdiscard -o 0 -l 131072 "$T/t2"
holds "$T/t2" 0 2048 red
run dmsetup status t2
run dmsetup message p 0 "create_snap 3 0"
run dmsetup create t3 --table "0 2048 thin $T/p 3 $O"
holds "$T/t3" 64 8 green
holds "$T/t3" 128 128 pink
run dmsetup deps t0
run dmsetup table t0
