# A snapshot is merged back: as a new device, by handover from a suspended one, beside another snapshot, by steps.
T=$DEVDIR
disk O 2M
disk C 4M
disk C2 4M
# snap NAME TABLE: a snapshot by the book, with its origin suspended. (A kernel looks for snapshots when an origin is resumed.)
snap() {
    quiet dmsetup suspend o
    quiet dmsetup create "$1" --table "$2"
    quiet dmsetup resume o
}
# merged NAME: wait until nothing is left.
merged() {
    for _ in $(seq 400); do
        set -- "$1" $(dmsetup status "$1")
        [ "${5%/*}" = "$6" ] && break
        sleep 0.05
    done
    run dmsetup status "$1"
}
fill "$O" 0 4096 red
quiet dmsetup create o --table "0 4096 snapshot-origin $O"
snap s "0 4096 snapshot $O $C P 8"
fill "$T/o" 0 1024 blue
fill "$T/s" 2048 64 pink
fill "$T/o" 3000 100 blue
run dmsetup status
title 'another snapshot, from later'
snap later "0 4096 snapshot $O $C2 P 32"
title 'refused while the source lives'
quiet dmsetup load o --table "0 4096 snapshot-merge $O $C P 8"
run dmsetup table --inactive o
run dmsetup status --inactive o
run dmsetup load o --table "0 4096 snapshot-merge $O $C P 8"
quiet dmsetup suspend o
run dmsetup resume o
run dmsetup info -c --noheadings -o name,suspended
title 'handover'
run dmsetup suspend s
run dmsetup resume o
merged o
run dmsetup status s
run dmsetup table
holds "$T/o" 0 2048 red
holds "$T/o" 2048 64 pink
run dmsetup resume s
run dmsetup status s
run dd if="$T/s" of=/dev/null bs=4k count=1 iflag=direct status=none
run dmsetup remove s
title 'the other one has what was there before the merge'
holds "$T/later" 0 1024 blue
run dmsetup status later
title 'writes, then the origin alone'
fill "$T/o" 512 64 green
run dmsetup suspend o
run dmsetup load o --table "0 4096 snapshot-origin $O"
run dmsetup resume o
sha256sum <"$T/o"
sha256sum <"$T/later"
quiet dmsetup remove later
title 'merged without a source'
quiet dmsetup create s --table "0 4096 snapshot $O $C P 8"
run dmsetup status s
fill "$T/s" 100 1000 white
quiet dmsetup remove s
quiet dmsetup remove o
run dmsetup create o --table "0 4096 snapshot-merge $O $C P 8"
holds "$T/o" 100 1000 white
merged o
holds "$T/o" 100 1000 white
run dmsetup message o 0 hello
title 'one at a time'
quiet dd if=/dev/zero of="$C2" bs=4k count=1 conv=fsync
quiet dmsetup create s2 --table "0 4096 snapshot $O $C2 P 8"
run dmsetup load o --table "0 4096 snapshot-merge $O $C2 P 8"
quiet dmsetup remove s2
quiet dmsetup create n --table "0 4096 snapshot $O $C2 N 8"
quiet dmsetup remove o
run dmsetup create o --table "0 4096 snapshot-merge $O $C2 P 8"
quiet dmsetup remove n
title 'an invalid one'
disk S 24K
quiet dmsetup create o --table "0 4096 snapshot-origin $O"
snap s "0 4096 snapshot $O $S P 8"
fill "$T/o" 0 64 over
run dmsetup status s
quiet dmsetup remove s
quiet dmsetup load o --table "0 4096 snapshot-merge $O $S P 8"
quiet dmsetup suspend o
run dmsetup resume o
run dmsetup status o
holds "$T/o" 0 64 over
fill "$T/o" 8 8 more
holds "$T/o" 8 8 more
title 'a merge that fails'
disk F 1M
quiet dmsetup remove o
quiet dmsetup create cow --table "0 2048 linear $F 0"
quiet dmsetup create s --table "0 4096 snapshot $O $T/cow P 8"
fill "$T/s" 0 512 keep
quiet dmsetup remove s
quiet dmsetup create o --notable
quiet dmsetup load o --table "0 4096 snapshot-merge $O $T/cow P 8"
quiet dmsetup suspend cow
quiet dmsetup load cow --table "0 24 linear $F 0
24 2024 error"
quiet dmsetup resume cow
run dmsetup resume o
for _ in $(seq 100); do
    dmsetup status o | grep -q failed && break
    sleep 0.05
done
run dmsetup status o
