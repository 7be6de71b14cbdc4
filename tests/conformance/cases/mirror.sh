# mirror: arguments, status, table, data, recovery, logs.
disk A 8M
disk B 8M
disk C 8M
disk L 1M
# synced NAME: wait until every region is in sync.
synced() {
    for _ in $(seq 600); do
        dmsetup status "$1" | awk '{ for (i = 1; i < NF; i++) if ($(i + 1) == 1 && split($i, p, "/") == 2) exit p[1] != p[2] }' && return
        sleep 0.05
    done
    echo "= $1 is not in sync"
}
fill "$A" 0 16384 red
run dmsetup create m --table "0 16384 mirror core 1 1024 2 $A 0 $B 0"
synced m
run dmsetup table m
run dmsetup status m
run dmsetup deps m
holds "$B" 0 16384 red
fill "$DEVDIR/m" 1000 3000 blue
holds "$DEVDIR/m" 1000 3000 blue
quiet blockdev --flushbufs "$A" "$B"
holds "$A" 1000 3000 blue
holds "$B" 1000 3000 blue
run dmsetup suspend m
run dmsetup status m
run dmsetup resume m
run dmsetup status m
run dmsetup message m 0 hello
run dmsetup remove m

title 'in sync already'
fill "$B" 5000 100 green
run dmsetup create m --table "0 16000 mirror core 2 1024 nosync 3 $A 0 $B 100 $C 384 1 handle_errors"
run dmsetup table m
run dmsetup status m
run dmsetup info -c --noheadings -o events m
holds "$B" 5000 100 green
run dmsetup remove m

title 'a log on a device'
run dmsetup create m --table "0 16384 mirror disk 2 $L 512 2 $A 0 $B 0 1 handle_errors"
synced m
run dmsetup table m
run dmsetup status m
run dmsetup deps m
holds "$B" 1000 3000 blue
fill "$DEVDIR/m" 700 10 white
run dmsetup remove m
od -A d -t x1 -v "$L" -N 16
od -A d -t x1 -v "$L" -j 1024 -N 8
title 'opened again, longer, shorter, forced'
for words in "2 $L 512" "3 $L 512 nosync"; do
    run dmsetup create m --table "0 16384 mirror disk $words 2 $A 0 $B 0"
    run dmsetup status m
    run dmsetup remove m
done
run dmsetup create m --table "0 16000 mirror disk 2 $L 512 2 $A 0 $B 0"
run dmsetup status m
run dmsetup remove m
od -A d -t x1 -v "$L" -j 1024 -N 8
run dmsetup create m --table "0 16384 mirror disk 3 $L 512 sync 2 $A 0 $B 0"
synced m
run dmsetup status m
run dmsetup table m
run dmsetup remove m

title 'another table under way'
run dmsetup create m --table "0 16384 mirror core 2 1024 nosync 2 $A 0 $B 0 1 handle_errors"
run dmsetup load m --table "0 16384 mirror core 2 1024 nosync 3 $A 0 $B 0 $C 0 2 handle_errors keep_log"
run dmsetup table --inactive m
run dmsetup status --inactive m
run dmsetup suspend m
run dmsetup resume m
run dmsetup table m
run dmsetup status m
run dmsetup remove m
run dmsetup create m --table "0 8192 linear $C 0
8192 8192 mirror core 2 64 nosync 2 $A 0 $B 8192"
fill "$DEVDIR/m" 8000 400 grey
holds "$DEVDIR/m" 8000 400 grey
run dmsetup status m
run dmsetup remove m

title 'a leg may be read-only when the table is'
run dmsetup create m -r --table "0 16384 mirror core 2 1024 nosync 2 $A 0 $B 0"
run dmsetup table m
run dmsetup remove m

title 'every argument wrong in turn'
# R: a log that is right.
R='core 2 1024 nosync'
disk T 1K
for table in \
    '' \
    'core' \
    'core x' \
    'core 1' \
    'core 0 1024 2 A 0 B 0' \
    'core 1x 1024 2 A 0 B 0' \
    'core 4 1024 nosync x y 2 A 0 B 0' \
    'core 2 1024 2 A 0 B 0' \
    'core 3 1024 nosync block_on_error 2 A 0 B 0' \
    'core 2 1024 block_on_error 2 A 0 B 0' \
    'core 2 1024 maybe 2 A 0 B 0' \
    'core 2 0 nosync 2 A 0 B 0' \
    'core 2 1 nosync 2 A 0 B 0' \
    'core 2 2 nosync 2 A 0 B 0' \
    'core 2 3 nosync 2 A 0 B 0' \
    'core 2 -8 nosync 2 A 0 B 0' \
    'core 2 8x nosync 2 A 0 B 0' \
    'core 2 16384 nosync 2 A 0 B 0' \
    'core 2 32768 nosync 2 A 0 B 0' \
    'disk 0 2 A 0 B 0' \
    'disk 1 L 2 A 0 B 0' \
    'disk 1 1024 2 A 0 B 0' \
    'disk 3 absent 1024 nosync 2 A 0 B 0' \
    'disk 3 L 1000 nosync 2 A 0 B 0' \
    'disk 3 L 2 nosync 2 A 0 B 0' \
    'disk 3 T 1024 nosync 2 A 0 B 0' \
    'disk 3 L 1024 maybe 2 A 0 B 0' \
    'disk 4 L 1024 nosync x 2 A 0 B 0' \
    'nosuch 1 1024 2 A 0 B 0' \
    'R' \
    'R x' \
    'R 0' \
    'R 1 A 0' \
    'R 2' \
    'R 2 A 0' \
    'R 2 A 0 B' \
    'R 10 A 0 B 0 A 0 B 0 A 0 B 0 A 0 B 0 A 0 B 0' \
    'R 9 A 0 B 0 A 0 B 0 A 0 B 0 A 0 B 0 A 0' \
    'R 2 A x B 0' \
    'R 2 A 0 B -1' \
    'R 2 A 0 absent 0' \
    'R 2 A 0 absent x' \
    'R 2 A 0 B 8' \
    'R 2 A 0 B 0 x' \
    'R 2 A 0 B 0 0' \
    'R 2 A 0 B 0 0 handle_errors' \
    'R 2 A 0 B 0 1' \
    'R 2 A 0 B 0 1 nosuch' \
    'R 2 A 0 B 0 1 keep_log' \
    'R 2 A 0 B 0 1 handle_errors keep_log' \
    'R 2 A 0 B 0 2 handle_errors' \
    'R 2 A 0 B 0 2 handle_errors handle_errors' \
    'R 2 A 0 B 0 2 keep_log handle_errors'; do
    words=$(echo "$table" | sed "s|\bA\b|$A|g; s|\bB\b|$B|g; s|\bL\b|$L|g; s|\bT\b|$T|g; s|^R|$R|; s|absent|$WORK/absent|g")
    try bad "0 16384 mirror $words"
done
