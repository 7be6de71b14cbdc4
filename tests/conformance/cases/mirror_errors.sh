# mirror: legs and logs that fail, and what can be done about it. Legs are linear devices that get a table of `error`.
disk A 4M
disk B 4M
disk C 4M
disk L 1M
for name in A B; do
    eval "dev=\$$name"
    quiet dmsetup create "leg$name" --table "0 8192 linear $dev 0"
done
quiet dmsetup create log --table "0 2048 linear $L 0"
# break NAME SECTORS, mend NAME SECTORS DEVICE
break_() {
    quiet dmsetup load "$1" --table "0 $2 error"
    quiet dmsetup suspend --noflush "$1"
    quiet dmsetup resume "$1"
}
mend() {
    quiet dmsetup load "$1" --table "0 $2 linear $3 0"
    quiet dmsetup suspend --noflush "$1"
    quiet dmsetup resume "$1"
}
# shows WORDS: wait for a status that holds them.
shows() {
    for _ in $(seq 100); do
        case $(dmsetup status m) in *"$*"*) break ;; esac
        sleep 0.1
    done
    run dmsetup status m
}
# put SECTOR COUNT SEED: write in the background, note how it ended.
put() {
    (
        if pattern "$3" "$2" | dd of="$DEVDIR/m" bs=512 seek="$1" iflag=fullblock oflag=direct conv=notrunc status=none 2>/dev/null; then
            echo "write of $3 done"
        else
            echo "write of $3 failed"
        fi >"$WORK/put.$3"
    ) &
}
# ended SEED: wait for that write and say how it ended.
ended() {
    for _ in $(seq 100); do
        [ -s "$WORK/put.$1" ] && break
        sleep 0.1
    done
    cat "$WORK/put.$1" || echo "write of $1 waits"
}
# another TABLE: without a flush.
another() {
    run dmsetup load m --table "$1"
    run dmsetup suspend --noflush m
    run dmsetup resume m
}

title 'a leg fails a write: it is held, another table, it is done'
CORE='0 8192 mirror core 2 1024 nosync'
run dmsetup create m --table "$CORE 2 $DEVDIR/legA 0 $DEVDIR/legB 0 1 handle_errors"
fill "$DEVDIR/m" 0 8192 red
break_ legB 8192
put 2048 8 blue
shows AD
[ -s "$WORK/put.blue" ] && echo "= not held"
another "0 8192 linear $DEVDIR/legA 0"
ended blue
holds "$DEVDIR/m" 2048 8 blue
run dmsetup table m
mend legB 8192 "$B"
another "0 8192 mirror core 1 1024 2 $DEVDIR/legA 0 $DEVDIR/legB 0 1 handle_errors"
shows 8/8
holds "$B" 2048 8 blue

title 'the first leg'
break_ legA 8192
put 0 8 green
shows DA
holds "$DEVDIR/m" 3000 8 red
another "0 8192 linear $DEVDIR/legB 0"
ended green
holds "$DEVDIR/m" 0 8 green
mend legA 8192 "$A"
another "0 8192 mirror core 1 1024 2 $DEVDIR/legB 0 $DEVDIR/legA 0 1 handle_errors"
shows 8/8
holds "$A" 0 8 green

title 'a suspend with a flush fails what is held'
break_ legA 8192
put 0 8 grey
shows AD
run dmsetup suspend m
ended grey
run dmsetup resume m
run dmsetup remove m
mend legA 8192 "$A"

title 'a table that does not handle errors'
fill "$A" 0 8192 red
fill "$B" 0 8192 red
run dmsetup create m --table "$CORE 2 $DEVDIR/legA 0 $DEVDIR/legB 0"
break_ legB 8192
put 0 8 white
ended white
shows AD
holds "$DEVDIR/m" 0 8 white
run dmsetup remove m

title 'both legs'
mend legB 8192 "$B"
run dmsetup create m --table "$CORE 2 $DEVDIR/legA 0 $DEVDIR/legB 0 1 handle_errors"
break_ legA 8192
break_ legB 8192
put 0 8 black
ended black
shows DD
run dd if="$DEVDIR/m" of=/dev/null bs=4096 count=1 iflag=direct status=none
run dmsetup remove m
mend legA 8192 "$A"
mend legB 8192 "$B"

title 'keep_log: the other leg goes on'
fill "$A" 0 8192 red
fill "$B" 0 8192 red
run dmsetup create m --table "0 8192 mirror disk 3 $DEVDIR/log 1024 nosync 2 $DEVDIR/legA 0 $DEVDIR/legB 0 2 handle_errors keep_log"
break_ legB 8192
put 0 8 amber
ended amber
shows AD
put 8 8 brown
ended brown
holds "$DEVDIR/m" 0 8 amber
run dmsetup remove m
mend legB 8192 "$B"
run dmsetup create m --table "0 8192 mirror disk 2 $DEVDIR/log 1024 2 $DEVDIR/legA 0 $DEVDIR/legB 0 2 handle_errors keep_log"
shows 8/8
holds "$B" 0 8 amber
holds "$B" 8 8 brown
run dmsetup remove m

title 'a log that fails: writes are held, another table, they are done'
run dmsetup create m --table "0 8192 mirror disk 3 $DEVDIR/log 1024 nosync 2 $DEVDIR/legA 0 $DEVDIR/legB 0 1 handle_errors"
run dmsetup status m
break_ log 2048
put 5000 8 olive
shows "D"
[ -s "$WORK/put.olive" ] && echo "= not held"
holds "$DEVDIR/m" 6000 8 red
another "$CORE 2 $DEVDIR/legA 0 $DEVDIR/legB 0 1 handle_errors"
ended olive
shows 8/8
quiet blockdev --flushbufs "$A" "$B"
holds "$A" 5000 8 olive
holds "$B" 5000 8 olive
run dmsetup remove m
title 'with keep_log, and without errors handled'
for features in ' 2 handle_errors keep_log' ''; do
    mend log 2048 "$L"
    run dmsetup create m --table "0 8192 mirror disk 3 $DEVDIR/log 1024 nosync 2 $DEVDIR/legA 0 $DEVDIR/legB 0$features"
    break_ log 2048
    rm -f "$WORK/put.plum"
    put 5000 8 plum
    ended plum
    shows "D"
    run dmsetup remove m
done
title 'a log that cannot be read'
run dmsetup create m --table "0 8192 mirror disk 2 $DEVDIR/log 1024 2 $DEVDIR/legA 0 $DEVDIR/legB 0 1 handle_errors"
shows "D"
run dmsetup remove m
mend log 2048 "$L"

title 'recovery that fails'
break_ legB 8192
run dmsetup create m --table "0 8192 mirror core 1 1024 2 $DEVDIR/legA 0 $DEVDIR/legB 0 1 handle_errors"
shows AS
run dmsetup remove m
mend legB 8192 "$B"
break_ legA 8192
run dmsetup create m --table "0 8192 mirror core 1 1024 2 $DEVDIR/legA 0 $DEVDIR/legB 0 1 handle_errors"
shows SA
run dmsetup remove m
run dmsetup create m --table "0 8192 mirror core 1 1024 2 $DEVDIR/legA 0 $DEVDIR/legB 0"
shows 8/8
run dmsetup remove m

title 'reads that fail'
run dmsetup create m --table "$CORE 2 $DEVDIR/legA 0 $DEVDIR/legB 0 1 handle_errors"
fill_=$(dd if="$DEVDIR/m" bs=512 skip=100 count=8 iflag=direct status=none | sha256sum)
[ "$fill_" = "$(dd if="$B" bs=512 skip=100 count=8 status=none | sha256sum)" ] && echo "read from the other leg"
shows RA
run dmsetup remove m
mend legA 8192 "$A"
