# multipath: a path that fails by itself, and what happens without one.
# Each disk holds another pattern, so that a read tells which path it took.
for name in A B; do
    disk $name 4M
    eval "fill \$$name 0 64 $name"
done
# which: the path that the next request takes.
which() {
    got=$(dd if="$DEVDIR/m" bs=4k count=1 iflag=direct status=none 2>/dev/null | head -c 6 | tr -d '\0')
    echo "path ${got#seed }"
}
say() { run dmsetup message m 0 "$@"; }
state() { run dmsetup status m; run dmsetup table m; }
title 'a path that fails by itself'
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
    # Once was enough in rq mode: the kernel does not always find out of it.
    if [ $mode = bio ]; then
        which >"$WORK/answer" &
        sleep 0.3
        run dmsetup suspend --noflush m
        state
        run dmsetup resume m
        state
        say reinstate_path "$B"
        wait
        cat "$WORK/answer"
    else
        say reinstate_path "$B"
    fi
    run dmsetup suspend --noflush m
    state
    run dmsetup resume m
    state
    quiet dmsetup remove m
done
