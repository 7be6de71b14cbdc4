# log-writes: arguments, status, marks, and the log's bytes.
disk A 4M
disk B 8M

# logged COUNT: wait until the status tells so many entries.
logged() {
    tries=0
    until dmsetup status w | grep -q "log-writes $1 " || [ $tries = 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    run dmsetup status w
}

# entries: the log, an entry a line.
entries() {
    dd if="$B" bs=512 count=1 status=none | head -c 28 | od -An -v -tx1
    at=1
    while :; do
        set -- $(dd if="$B" bs=512 skip=$at count=1 status=none | head -c 32 | od -An -v -tu8)
        flags=$3
        [ "$((flags | $2))" = 0 ] && break
        if [ "$((flags & 8))" != 0 ]; then
            echo "$at: mark $(dd if="$B" bs=512 skip=$at count=1 status=none | tail -c +33 | head -c "$4")"
        else
            data=$(dd if="$B" bs=512 skip=$((at + 1)) count="$2" status=none | sha256sum)
            [ "$((flags & 4))" != 0 ] && data='- no data'
            echo "$at: $1+$2 flags $flags text $4 ${data%% *}"
        fi
        [ "$((flags & 4))" = 0 ] && at=$((at + $2))
        at=$((at + 1))
        case $(dd if="$B" bs=512 skip=$((at - 1 )) count=1 status=none | tail -c +33 | head -c 17) in
        dm-log-writes-end) break ;;
        esac
    done
}
write() {
    pattern "$3" "$2" | dd of="$DEVDIR/w" bs=$(($2 * 512)) seek=$(($1 * 512)) oflag=direct,seek_bytes iflag=fullblock conv=notrunc status=none
}
flush() { dd if=/dev/null of="$DEVDIR/w" bs=512 conv=notrunc,fsync status=none; }

title 'writes, flushes and marks'
run dmsetup create w --table "0 8192 log-writes $A $B"
run dmsetup table w
run dmsetup status w
run dmsetup deps w
write 8 8 one
write 64 16 two
run dmsetup status w
run dmsetup message w 0 mark early
logged 1
flush
logged 4
write 8 8 three
run dmsetup message w 0 Mark after-three
logged 5
flush
logged 7
holds "$A" 64 16 two
run dmsetup message w 0 mark end
logged 8
run dmsetup suspend --nolockfs w
run dmsetup status w
run dmsetup resume w
quiet dmsetup remove w
entries
title 'what is left at the end'
run dmsetup create w --table "0 8192 log-writes $A $B and words that nobody reads"
write 0 8 four
quiet dmsetup remove w
entries
title 'messages that are wrong, a mark that is too long'
run dmsetup create w --table "0 8192 log-writes $A $B"
run dmsetup message w 0 mark
run dmsetup message w 0 mark a b
run dmsetup message w 0 note a
run dmsetup message w 0 mark "$(head -c 600 /dev/zero | tr '\0' m)"
logged 1
quiet dmsetup remove w
dd if="$B" bs=512 skip=1 count=1 status=none | sha256sum
title 'a log that is full'
disk S 16k
run dmsetup create w --table "0 8192 log-writes $A $S"
write 0 16 five
flush
logged 2
write 0 16 six
flush
tries=0
until dmsetup status w | grep -q disabled || [ $tries = 100 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
run dmsetup status w
write 0 16 seven
holds "$A" 0 16 seven
quiet dmsetup remove w
title 'every argument wrong in turn'
try bad "0 2048 log-writes"
try bad "0 2048 log-writes $A"
try bad "0 2048 log-writes $WORK/absent $B"
try bad "0 2048 log-writes $A $WORK/absent"
try bad "0 16384 log-writes $A $B"
run dmsetup ls
run dmsetup target-version log-writes
