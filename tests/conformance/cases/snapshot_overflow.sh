# Snapshots that are full, or whose devices fail: Invalid, Overflow, events.
T=$DEVDIR
# snap NAME TABLE: a snapshot by the book, with its origin suspended. (A kernel looks for snapshots when an origin is resumed.)
snap() {
    quiet dmsetup suspend o
    quiet dmsetup create "$1" --table "$2"
    quiet dmsetup resume o
}
disk O 1M
disk C 40K
disk C2 40K
disk C3 40K
fill "$O" 0 2048 red
put() { run dd if=/dev/zero of="$T/$1" bs=4k seek="$2" count="$3" oflag=direct status=none; }
get() { run dd if="$T/$1" of=/dev/null bs=4k skip="$2" count="$3" iflag=direct status=none; }
quiet dmsetup create o --table "0 2048 snapshot-origin $O"
title 'P: a write to the snapshot'
snap s "0 2048 snapshot $O $C P 8"
put s 0 7
run dmsetup status s
put s 7 1
run dmsetup status s
put s 8 1
run dmsetup status s
run dmsetup info -c --noheadings -o name,events s
get s 0 1
put s 0 1
put o 20 1
get o 20 1
run dmsetup remove s
snap s "0 2048 snapshot $O $C P 8"
run dmsetup status s
run dmsetup table s
get s 0 1
title 'reloaded'
run dmsetup load s --table "0 2048 snapshot $O $C P 8"
run dmsetup resume s
run dmsetup status s
run dmsetup remove s
title 'PO: a write to the snapshot, then to the origin'
snap s "0 2048 snapshot $O $C2 PO 8"
put s 0 8
put s 9 2
run dmsetup status s
run dmsetup info -c --noheadings -o name,events s
get s 0 1
put s 0 1
zeroed "$T/s" 0 64
put o 0 8
run dmsetup status s
put o 30 1
run dmsetup status s
run dmsetup info -c --noheadings -o name,events s
get s 0 1
run dmsetup remove s
title 'N'
snap s "0 2048 snapshot $O $C3 N 8"
put o 40 10
run dmsetup status s
put o 50 1
run dmsetup status s
get s 0 1
run dmsetup info -c --noheadings -o name,events s
run dmsetup remove s
title 'the COW device fails'
disk D 1M
quiet dmsetup create cow --table "0 1024 linear $D 0"
snap s "0 2048 snapshot $O $T/cow P 8"
put o 60 2
run dmsetup status s
quiet dmsetup suspend cow
quiet dmsetup load cow --table "0 1024 error"
quiet dmsetup resume cow
put o 60 1
run dmsetup status s
put o 70 1
run dmsetup status s
get o 70 1
get s 0 1
run dmsetup info -c --noheadings -o name,events s
quiet dmsetup load cow --table "0 1024 linear $D 0"
quiet dmsetup suspend cow
quiet dmsetup resume cow
run dmsetup status s
run dmsetup remove s
title 'the origin cannot be read'
disk E 1M
quiet dmsetup create base --table "0 1024 linear $O 0
1024 1024 error"
quiet dmsetup create o2 --table "0 2048 snapshot-origin $T/base"
quiet dmsetup suspend o2
quiet dmsetup create s --table "0 2048 snapshot $T/base $E P 8"
quiet dmsetup resume o2
put o2 1 1
run dmsetup status s
put s 130 1
run dmsetup status s
put o2 140 1
run dmsetup status s
