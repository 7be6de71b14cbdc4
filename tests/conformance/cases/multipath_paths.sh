# multipath: which path is taken, messages, paths that fail and come back, events, suspends.
# Each disk holds another pattern, so that a read tells which path it took.
for name in A B C; do
    disk $name 4M
    eval "fill \$$name 0 2048 $name"
done
# which: the path that the next request takes.
which() {
    dd if="$DEVDIR/m" bs=4k count=1 iflag=direct status=none 2>/dev/null >"$WORK/.got" || { echo none; return; }
    for seed in A B C; do
        pattern $seed 8 | cmp -s - "$WORK/.got" && echo "path $seed"
    done
}
say() { run dmsetup message m 0 "$@"; }
state() { run dmsetup status m; run dmsetup table m; }
title 'round-robin'
run dmsetup create m --table "0 2048 multipath 0 0 1 1 round-robin 0 3 1 $A 1 $B 1 $C 1"
run dmsetup status m
which; which; which; which
run dmsetup status m
run dmsetup info -c --noheadings -o events m
say fail_path "$B"
state
run dmsetup info -c --noheadings -o events m
which; which; which; which
say fail_path "$B"
run dmsetup status m
say reinstate_path "$B"
state
which; which; which; which
say reinstate_path "$B"
say Fail_Path "$A"
say FAIL_PATH "$B"
say fail_path "$C"
state
which
say reinstate_path "$C"
which; which
run dmsetup info -c --noheadings -o events m
title 'messages that are wrong'
say hello
say hello world
say fail_path
say fail_path "$A" "$B"
say fail_path "$WORK/absent"
say fail_path 99:99
say reinstate_path x
say disable_group
say disable_group x
say disable_group 0
say disable_group 2
say disable_group -1
say enable_group 2
say switch_group 2
say switch_group 0
say switch_group 1x
say queue_if_no_path 1
say fail_if_no_path now
disk D 4M
say fail_path "$D"
say reinstate_path "$D"
run dmsetup suspend m
say fail_path "$A"
say queue_if_no_path
say nonsense
run dmsetup resume m
run dmsetup status m
quiet dmsetup remove m
title 'groups'
G="3 1 round-robin 0 1 1 $A 1 round-robin 0 1 1 $B 1 round-robin 0 1 1 $C 1"
run dmsetup create m --table "0 2048 multipath 0 0 $G"
state
which; which
say switch_group 2
state
which
state
say disable_group 2
state
which
state
say disable_group 1
which
state
say disable_group 3
which
state
say enable_group 3
which
state
say switch_group 2
state
which
state
say fail_path "$B"
run dmsetup status m
which
state
say reinstate_path "$B"
which
say switch_group 3
say fail_path "$C"
which
state
quiet dmsetup remove m
run dmsetup create m --table "0 2048 multipath 0 0 3 2 ${G#3 1 }"
run dmsetup status m
which
state
quiet dmsetup remove m
title 'queue-length and service-time, one at a time'
run dmsetup create m --table "0 2048 multipath 0 0 1 1 queue-length 0 3 0 $A $B $C"
which; which; which; which
state
say fail_path "$B"
say reinstate_path "$B"
which; which; which; which
quiet dmsetup remove m
run dmsetup create m --table "0 2048 multipath 0 0 1 1 service-time 0 3 2 $A 1 1 $B 1 3 $C 1 0"
which; which; which; which
state
say fail_path "$B"
which; which
say fail_path "$A"
which; which
say reinstate_path "$A"
which; which
state
quiet dmsetup remove m
run dmsetup create m --table "0 2048 multipath 0 0 1 1 service-time 0 3 0 $A $B $C"
which; which; which; which
state
quiet dmsetup remove m
title 'a path that fails by itself'
SIZE=$(blockdev --getsz "$A")
run dmsetup create low --table "0 2048 linear $A 0"
run dmsetup create m --table "0 2048 multipath 2 queue_mode bio 0 1 1 round-robin 0 2 1 $DEVDIR/low 1 $B 1"
state
which; which
run dmsetup load low --table '0 2048 error'
run dmsetup suspend low
run dmsetup resume low
dmsetup wait m 0 >/dev/null &
which; which; which
wait
state
run dmsetup info -c --noheadings -o events m
run dmsetup load low --table "0 2048 linear $A 0"
run dmsetup suspend low
run dmsetup resume low
which; which
say reinstate_path "$DEVDIR/low"
which; which
state
say fail_path "$B"
run dmsetup load low --table '0 2048 error'
run dmsetup suspend low
run dmsetup resume low
which
state
quiet dmsetup remove m
quiet dmsetup remove low
title 'no path'
for mode in rq bio; do
    run dmsetup create m --table "0 2048 multipath 3 queue_if_no_path queue_mode $mode 0 1 1 round-robin 0 1 1 $A 1"
    say fail_path "$A"
    state
    # The answer comes when the path is back.
    which >"$WORK/answer" &
    sleep 0.3
    cat "$WORK/answer"
    say reinstate_path "$A"
    wait
    cat "$WORK/answer"
    say fail_path "$A"
    which >"$WORK/answer" &
    sleep 0.3
    say fail_if_no_path
    wait
    cat "$WORK/answer"
    state
    say queue_if_no_path
    state
    which >"$WORK/answer" &
    sleep 0.3
    run dmsetup suspend --noflush m
    state
    run dmsetup load m --table "0 2048 multipath 3 queue_if_no_path queue_mode $mode 0 1 1 round-robin 0 1 1 $B 1"
    run dmsetup resume m
    wait
    cat "$WORK/answer"
    state
    say fail_path "$B"
    # A flush must end, so what waits fails; a kernel with request queues fails it or keeps it, as it comes.
    if [ $mode = bio ]; then
        which >"$WORK/answer" &
        sleep 0.3
        run dmsetup suspend m
        wait
        cat "$WORK/answer"
    else
        run dmsetup suspend m
    fi
    state
    run dmsetup resume m
    state
    which >"$WORK/answer" &
    sleep 0.3
    run dmsetup suspend --noflush m
    state
    run dmsetup resume m
    state
    say reinstate_path "$B"
    wait
    cat "$WORK/answer"
    run dmsetup suspend --noflush m
    state
    run dmsetup resume m
    state
    quiet dmsetup remove m
done
