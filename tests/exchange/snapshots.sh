# Snapshots of one origin, written, changed, merged and read back by whoever has `dmsetup`: the kernel or thinmap.
#
# Sourced after conformance/prelude.sh, with IMAGES naming a directory that holds origin.img, a.img, b.img, c.img (COW devices with
# chunks of 1, 8 and 64 sectors) and the manifest: one line "name sha256" for each device.

SECTORS=16384

open_images() {
    for image in origin a b c; do
        loop=$(losetup -f --show "$IMAGES/$image.img") || echo "= no loop device"
        LOOPS="$loop $LOOPS"
        eval "$image=$loop"
    done
    quiet dmsetup create o --table "0 $SECTORS snapshot-origin $origin"
}

# snapshot NAME DEVICE KIND CHUNK
snapshot() {
    quiet dmsetup suspend o
    quiet dmsetup create "$1" --table "0 $SECTORS snapshot $origin $2 $3 $4"
    quiet dmsetup resume o
}

# random DEVICE SECTOR COUNT
random() {
    head -c $(($3 * 512)) /dev/urandom |
        dd of="$DEVDIR/$1" bs=512 seek="$2" iflag=fullblock conv=notrunc,fsync status=none
}

sum() { sha256sum <"$DEVDIR/$1" | cut -d' ' -f1; }

note_all() {
    for name in "$@"; do echo "$name $(sum "$name")"; done >"$IMAGES/manifest"
    dmsetup status
}

make_images() {
    truncate -s $((SECTORS * 512)) "$IMAGES/origin.img"
    truncate -s 8M "$IMAGES/a.img"
    truncate -s 16M "$IMAGES/b.img"
    truncate -s 16M "$IMAGES/c.img"
    open_images
    random o 0 $SECTORS
    snapshot a "$a" P 1
    random o 0 500
    random a 8000 100
    snapshot b "$b" PO 8
    random o 400 3000
    random b 100 64
    random b 9000 1
    snapshot c "$c" P 64
    random o 3000 1000
    random o 12001 77
    random c 0 200
    note_all o a b c
    close_images
}

# check_images: every device opened and compared with the manifest.
check_images() {
    open_images
    snapshot a "$a" P 1
    snapshot b "$b" PO 8
    snapshot c "$c" P 64
    compare
    dmsetup status
}

compare() {
    while read -r name sum; do
        if [ "$(sum "$name")" = "$sum" ]; then
            echo "device $name: right"
        else
            echo "device $name: WRONG"
        fi
    done <"$IMAGES/manifest"
}

# change_images: after check_images, which leaves everything active. More exceptions in each store, over the ends of areas.
change_images() {
    random o 5000 2500
    random a 300 900
    random b 9000 300
    random c 64 64
    random c 15000 1384
    note_all o a b c
}

# begin_merge: one snapshot's merge is begun. Its device is taken down as soon as something was merged, or all of it.
begin_merge() {
    open_images
    snapshot a "$a" P 1
    snapshot c "$c" P 64
    quiet dmsetup load o --table "0 $SECTORS snapshot-merge $origin $b P 8"
    quiet dmsetup suspend o
    quiet dmsetup resume o
    for name in o a c; do echo "$name $(sum "$name")"; done >"$IMAGES/manifest"
    close_images
}

# end_merge: and is brought to its end.
end_merge() {
    open_images
    snapshot a "$a" P 1
    snapshot c "$c" P 64
    quiet dmsetup load o --table "0 $SECTORS snapshot-merge $origin $b P 8"
    quiet dmsetup suspend o
    quiet dmsetup resume o
    compare
    for _ in $(seq 600); do
        case $(dmsetup status o) in *" 16/32768 16") break ;; esac
        sleep 0.05
    done
    dmsetup status o
    quiet dmsetup load o --table "0 $SECTORS snapshot-origin $origin"
    quiet dmsetup suspend o
    quiet dmsetup resume o
    compare
    close_images
}

close_images() {
    tidy_up
    sync
}
