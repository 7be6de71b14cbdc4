# Event counters and wait.
disk A 8M
quiet dmsetup create e --table "0 8 zero"
run dmsetup info -c --noheadings -o events e
quiet dmsetup suspend e
quiet dmsetup resume e
run dmsetup info -c --noheadings -o events e
quiet dmsetup load e --table "0 16 zero"
run dmsetup info -c --noheadings -o events e
quiet dmsetup resume e
run dmsetup info -c --noheadings -o events e
quiet dmsetup rename e e2
run dmsetup info -c --noheadings -o events e2
title 'wait returns at once when the number is past'
run dmsetup wait e2 0
(
    sleep 1
    dmsetup rename e2 e3
    sleep 1
    dmsetup load e3 --table "0 8 zero"
    dmsetup resume e3
) >/dev/null 2>&1 &
run timeout 20 dmsetup wait e2
wait
run dmsetup wait absent
run dmsetup wait e3 x
run dmsetup info -c --noheadings -o events e3
title 'remove wakes a waiter'
(
    sleep 1
    dmsetup remove e3
) >/dev/null 2>&1 &
run timeout 20 dmsetup wait e3
wait
title 'low water mark of a pool'
disk M 4M
disk D 8M
pool p "$M" "$D" 16384 128 100
quiet dmsetup message p 0 "create_thin 0"
quiet dmsetup create t --table "0 16384 thin $DEVDIR/p 0"
run dmsetup info -c --noheadings -o events p
fill "$DEVDIR/t" 0 3456 red
run dmsetup info -c --noheadings -o events p
fill "$DEVDIR/t" 3456 128 red
run dmsetup info -c --noheadings -o events p
fill "$DEVDIR/t" 3584 128 red
run dmsetup info -c --noheadings -o events p
fill "$DEVDIR/t" 3712 128 red
run dmsetup info -c --noheadings -o events p
run dmsetup status p
