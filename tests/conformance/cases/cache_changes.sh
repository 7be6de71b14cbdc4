# cache: writes past it, tables loaded over each other, sizes that change.
disk M 4M
disk C 8M
disk O 32M
fill "$O" 0 16384 origin

# write BLOCK COUNT WORD: so many whole blocks of 64 KiB.
write() { pattern "$3" $(($2 * 128)) | dd of="$DEVDIR/c" bs=64k seek="$1" iflag=fullblock oflag=direct conv=notrunc status=none; }
read_at() { dd if="$DEVDIR/c" bs=64k skip="$1" count="$2" iflag=direct status=none | sha256sum; }
on_origin() { dd if="$O" bs=64k skip="$1" count="$2" iflag=direct status=none | sha256sum; }
# The value of a hint depends on when the policy looked.
dump() {
    cache_check "$M" && echo checked
    cache_dump "$M" | sed 's/uuid="[^"]*"//; s/ data="[^"]*"//'
}
clean() {
    tries=0
    until dmsetup status c | cut -d' ' -f14 | grep -qx 0 || [ $tries = 150 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
}
# change TABLE: another table for c.
change() {
    run dmsetup load c --table "$1"
    run dmsetup suspend c
    run dmsetup resume c
}

title 'tables loaded over each other'
run dmsetup create c --table "0 65536 cache $M $C $O 128 1 writeback smq 2 migration_threshold 0"
write 10 8 red
change "0 65536 cache $M $C $O 128 1 writethrough smq 2 migration_threshold 0"
run dmsetup status c
write 10 1 green
run dmsetup status c
read_at 10 8
on_origin 10 8
change "0 65536 cache $M $C $O 128 0 cleaner 0"
clean
run dmsetup status c
on_origin 10 8
change "0 65536 cache $M $C $O 128 1 passthrough smq 2 migration_threshold 0"
run dmsetup status c
title 'writes past it'
pattern blue 8 | dd of="$DEVDIR/c" bs=4k seek=161 oflag=direct conv=notrunc status=none
run dmsetup status c
read_at 10 8
on_origin 10 8
write 12 2 violet
write 30 1 violet
run dmsetup status c
on_origin 12 2
change "0 65536 cache $M $C $O 128 1 writeback smq 2 migration_threshold 0"
run dmsetup status c
read_at 10 8
run dmsetup status c
write 40 3 black
run dmsetup status c
quiet dmsetup remove c
dump
title 'a larger cache, a larger origin'
disk D 16M
dd if="$C" of="$D" bs=1M status=none
disk P 64M
dd if="$O" of="$P" bs=1M conv=fsync status=none
run dmsetup create c --table "0 131072 cache $M $D $P 128 1 writeback smq 2 migration_threshold 0"
run dmsetup status c
write 1000 2 white
run dmsetup status c
read_at 40 3
quiet dmsetup remove c
dump
title 'a smaller one'
run dmsetup create c --table "0 131072 cache $M $D $P 128 0 cleaner 0"
clean
quiet dmsetup remove c
dd if="$D" of="$C" bs=1M count=8 conv=fsync status=none
run dmsetup create c --table "0 131072 cache $M $C $P 128 1 writeback smq 2 migration_threshold 0"
run dmsetup status c
read_at 40 3
read_at 1000 2
quiet dmsetup remove c
dump
