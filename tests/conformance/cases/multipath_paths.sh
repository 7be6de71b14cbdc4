# multipath: which path is taken, by group and selector; messages, events.
# Each disk holds another pattern, so that a read tells which path it took.
for name in A B C; do
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
