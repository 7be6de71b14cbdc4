# era: arguments, messages, status, metadata blocks in use after each step.
disk M 4M
disk O 64M

# settled: the status, when digestion is over and what it freed is free.
settled() {
    same=0
    last=
    while [ $same -lt 5 ]; do
        now=$(dmsetup status e)
        if [ "$now" = "$last" ]; then same=$((same + 1)); else same=0; fi
        last=$now
        sleep 0.1
    done
    # The block of the held root may differ.
    echo "$last" | sed -E 's/ [0-9]+$/ held/'
}
write() { dd if=/dev/zero of="$DEVDIR/e" bs=64k seek="$1" count="$2" oflag=direct conv=notrunc status=none; }
dump() {
    era_check "$M" && echo checked
    era_dump --logical "$M" | grep -v '<superblock' | sha256sum
    era_dump --logical "$M" | grep '<superblock' | sed 's/uuid="[^"]*"//'
}

title 'a new device'
run dmsetup create e --table "0 131072 era $M $O 128"
run dmsetup table e
run dmsetup deps e
settled
write 0 4
settled
write 2 8
settled
run dmsetup message e 0 checkpoint
settled
write 500 100
run dmsetup message e 0 Checkpoint
settled
run dmsetup message e 0 drop_metadata_snap
run dmsetup message e 0 take_metadata_snap
settled
run dmsetup message e 0 take_metadata_snap
write 10 1
run dmsetup message e 0 checkpoint
settled
run dmsetup message e 0 drop_metadata_snap
settled
run dmsetup suspend e
run dmsetup resume e
settled
fill "$DEVDIR/e" 70000 100 red
holds "$O" 70000 100 red
run dmsetup message e 0
run dmsetup message e 0 checkpoint now
run dmsetup message e 0 nothing
settled
quiet dmsetup remove e
dump
title 'opened again, larger and smaller'
run dmsetup create e --table "0 131072 era $M $O 128"
settled
write 1000 20
quiet dmsetup remove e
dump
run dmsetup create e --table "0 65536 era $M $O 128"
settled
write 1 2
quiet dmsetup remove e
dump
run dmsetup create e --table "0 131072 era $M $O 128"
settled
quiet dmsetup remove e
dump
title 'small blocks, many of them'
blkdiscard -z "$M"
run dmsetup create e --table "0 131072 era $M $O 8"
settled
for i in $(seq 0 40); do dd if=/dev/zero of="$DEVDIR/e" bs=4k seek=$((i * 399)) count=1 oflag=direct conv=notrunc status=none; done
settled
run dmsetup message e 0 checkpoint
settled
write 0 1000
settled
run dmsetup message e 0 checkpoint
settled
quiet dmsetup remove e
dump
title 'a size that is no multiple'
blkdiscard -z "$M"
run dmsetup create e --table "0 1001 era $M $O 24"
settled
dd if=/dev/zero of="$DEVDIR/e" bs=512 seek=1000 count=1 conv=notrunc,fsync status=none
quiet dmsetup remove e
dump
title 'every argument wrong in turn'
try bad "0 2048 era"
try bad "0 2048 era $M"
try bad "0 2048 era $M $O"
try bad "0 2048 era $M $O 24 x"
try bad "0 2048 era $WORK/absent $O 24"
try bad "0 2048 era $M $WORK/absent 24"
try bad "0 2048 era $M $O x"
try bad "0 2048 era $M $O 24x"
try bad "0 2048 era $M $O 0"
try bad "0 2048 era $M $O 12"
try bad "0 2048 era $M $O 32"
pattern junk 8 | dd of="$M" conv=notrunc,fsync status=none
try bad "0 2048 era $M $O 24"
run dmsetup ls
run dmsetup target-version era
