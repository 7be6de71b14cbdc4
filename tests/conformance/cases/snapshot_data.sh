# Snapshots of one origin: what is read after writes to both sides, and what the status says.
T=$DEVDIR
# snap NAME TABLE: a snapshot by the book, with its origin suspended. (A kernel looks for snapshots when an origin is resumed.)
snap() {
    quiet dmsetup suspend o
    quiet dmsetup create "$1" --table "$2"
    quiet dmsetup resume o
}
disk O 4M
disk C 2M
disk C2 2M
disk C3 4M
disk C4 2M
fill "$O" 0 8192 red
quiet dmsetup create o --table "0 8192 snapshot-origin $O"
snap s "0 8192 snapshot $O $C P 8"
run dmsetup status
holds "$T/s" 0 8192 red
fill "$T/o" 0 64 blue
run dmsetup status s
holds "$T/o" 0 64 blue
title 'another one, with larger chunks, of the origin as it is now'
snap s2 "0 8192 snapshot $O $C2 PO 64"
fill "$T/o" 0 128 green
fill "$T/o" 4096 8 green
run dmsetup status
holds "$T/s2" 0 64 blue
holds "$T/o" 0 128 green
title 'written themselves'
fill "$T/s" 1024 256 pink
fill "$T/s2" 1032 8 pink
run dmsetup status
holds "$T/s" 1024 256 pink
holds "$T/s2" 1032 8 pink
fill "$T/o" 1024 64 white
holds "$T/s" 1024 256 pink
run dmsetup status
title 'transient, small chunks, a part of the origin'
snap s3 "0 2048 snapshot $O $C3 N 8"
fill "$T/o" 1024 2048 black
run dmsetup status
run dmsetup table
holds "$T/o" 1024 2048 black
holds "$T/s3" 1024 64 white
run dmsetup remove s3
title 'removed and back'
run dmsetup remove s
run dmsetup remove s2
quiet dmsetup suspend o
run dmsetup create s --table "0 8192 snapshot $O $C P 16"
run dmsetup create s2 --table "0 8192 snapshot $O $C2 P 0"
quiet dmsetup resume o
run dmsetup table
run dmsetup status
sha256sum <"$T/s"
sha256sum <"$T/s2"
sha256sum <"$T/o"
title 'the same table again, loaded over it'
quiet dmsetup load s --table "0 8192 snapshot $O $C P 8 1 discard_zeroes_cow"
run dmsetup table --inactive s
run dmsetup status --inactive s
run dmsetup load s --table "0 8192 snapshot $O $C P 8"
quiet dmsetup resume s
run dmsetup table s
run dmsetup status s
fill "$T/o" 7000 8 last
run dmsetup status s
sha256sum <"$T/s"
title 'areas follow one another'
snap s4 "0 8192 snapshot $O $C4 P 1"
fill "$T/o" 0 1000 small
run dmsetup status s4
quiet dmsetup remove s4
snap s4 "0 8192 snapshot $O $C4 P 1"
run dmsetup status s4
sha256sum <"$T/s4"
