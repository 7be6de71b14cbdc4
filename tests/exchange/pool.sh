# One pool, written, changed and read back by whoever has `dmsetup`: the kernel or thinmap.
#
# Sourced after conformance/prelude.sh, with IMAGES naming a directory that holds meta.img, data.img,
# origin.img, small.img and the manifest: one line "id sectors origin sha256" for each volume.

POOL_SECTORS=131072

open_images() {
    for image in meta data origin small; do
        loop=$(losetup -f --show "$IMAGES/$image.img") || echo "= no loop device"
        LOOPS="$loop $LOOPS"
        eval "$image=$loop"
    done
    quiet dmsetup create pool --table "0 $POOL_SECTORS thin-pool $meta $data 128 0"
}

# volume ID SECTORS [ORIGIN]: activate it as vID.
volume() {
    quiet dmsetup create "v$1" --table "0 $2 thin $DEVDIR/pool $1 $3"
}

# new ID SECTORS [ORIGIN]
new() {
    quiet dmsetup message pool 0 "create_thin $1"
    volume "$@"
}

# snap ID OF SECTORS [ORIGIN]: of an active volume, by the book.
snap() {
    quiet dmsetup suspend "v$2"
    quiet dmsetup message pool 0 "create_snap $1 $2"
    quiet dmsetup resume "v$2"
    volume "$1" "$3" "$4"
}

# note ID SECTORS ORIGIN: a line of the manifest for an active volume.
note() {
    echo "$1 $2 $3 $(sha256sum <"$DEVDIR/v$1" | cut -d' ' -f1)"
}

note_all() {
    while read -r id sectors origin _; do
        [ -n "$origin" ] && note "$id" "$sectors" "$origin"
    done
}

# make_images: ten volumes, snapshots three deep, discards, two external origins and a held
# metadata snapshot.
make_images() {
    truncate -s 4M "$IMAGES/meta.img"
    truncate -s $((POOL_SECTORS * 512)) "$IMAGES/data.img"
    truncate -s 1M "$IMAGES/origin.img"
    truncate -s 100K "$IMAGES/small.img"
    open_images
    fill "$origin" 0 2048 origin
    fill "$small" 0 200 small
    new 1 16384
    fill "$DEVDIR/v1" 0 4000 one
    fill "$DEVDIR/v1" 9000 100 one-b
    snap 2 1 16384
    fill "$DEVDIR/v2" 100 300 two
    snap 3 2 16384
    fill "$DEVDIR/v3" 256 128 three
    fill "$DEVDIR/v3" 12001 13 three-b
    snap 4 3 16384
    fill "$DEVDIR/v4" 0 1 four
    quiet blkdiscard -o 65536 -l 131072 "$DEVDIR/v4"
    quiet dmsetup message pool 0 reserve_metadata_snap
    new 5 2048 "$origin"
    fill "$DEVDIR/v5" 70 9 five
    snap 6 5 2048 "$origin"
    fill "$DEVDIR/v6" 1024 200 six
    new 7 2048 "$small"
    fill "$DEVDIR/v7" 190 4 seven
    new 8 100000
    fill "$DEVDIR/v8" 0 3333 eight
    fill "$DEVDIR/v8" 98000 2000 eight-b
    quiet blkdiscard -o 131072 -l 1000448 "$DEVDIR/v8"
    new 9 64
    fill "$DEVDIR/v9" 0 64 nine
    new 16777215 8192
    fill "$DEVDIR/v1" 128 128 one-c
    quiet dmsetup message pool 0 "set_transaction_id 0 7"
    printf '%s\n' '1 16384 - .' '2 16384 - .' '3 16384 - .' '4 16384 - .' '5 2048 origin .' \
        '6 2048 origin .' '7 2048 small .' '8 100000 - .' '9 64 - .' '16777215 8192 - .' |
        note_all >"$IMAGES/manifest"
    status_lines
    close_images
}

# check_images: every volume opened and compared with the manifest.
check_images() {
    open_images
    while read -r id sectors outside sum; do
        case $outside in
        origin) volume "$id" "$sectors" "$origin" ;;
        small) volume "$id" "$sectors" "$small" ;;
        *) volume "$id" "$sectors" ;;
        esac
        if [ "$(sha256sum <"$DEVDIR/v$id" | cut -d' ' -f1)" = "$sum" ]; then
            echo "volume $id: right"
        else
            echo "volume $id: WRONG"
        fi
    done <"$IMAGES/manifest"
    status_lines
}

# change_images: new volumes, snapshots, deletes, overwrites; after check_images, which leaves
# everything active.
change_images() {
    fill "$DEVDIR/v1" 64 1000 one-changed
    fill "$DEVDIR/v2" 0 1 two-changed
    snap 10 4 16384
    fill "$DEVDIR/v10" 300 700 ten
    fill "$DEVDIR/v4" 300 7 four-changed
    new 11 5000
    fill "$DEVDIR/v11" 1 4998 eleven
    quiet dmsetup remove v3
    quiet dmsetup message pool 0 "delete 3"
    quiet dmsetup remove v9
    quiet dmsetup message pool 0 "delete 9"
    quiet blkdiscard -o 0 -l 1048576 "$DEVDIR/v8"
    fill "$DEVDIR/v16777215" 8000 192 last
    fill "$DEVDIR/v6" 0 100 six-changed
    quiet dmsetup message pool 0 release_metadata_snap
    quiet dmsetup message pool 0 reserve_metadata_snap
    quiet dmsetup message pool 0 "set_transaction_id 7 8"
    printf '%s\n' '1 16384 - .' '2 16384 - .' '4 16384 - .' '5 2048 origin .' '6 2048 origin .' \
        '7 2048 small .' '8 100000 - .' '10 16384 - .' '11 5000 - .' '16777215 8192 - .' |
        note_all >"$IMAGES/manifest"
    status_lines
}

# The held root's place is the allocator's own business; that there is one is not.
status_lines() {
    dmsetup status | sed -E 's/(thin-pool [0-9]+ [0-9]+\/[0-9]+ [0-9]+\/[0-9]+ )[0-9]+ /\1HELD /'
}

close_images() {
    tidy_up
    sync
}

# large_pool: meta.img and data.img alone, as a pool of the data image's size.
large_pool() {
    for image in meta data; do
        loop=$(losetup -f --show "$IMAGES/$image.img") || echo "= no loop device"
        LOOPS="$loop $LOOPS"
        eval "$image=$loop"
    done
    sectors=$(($(stat -c %s "$IMAGES/data.img") / 512))
    quiet dmsetup create pool --table "0 $sectors thin-pool $meta $data 128 0"
}

# begin_deletion: volume 1 is condemned; while the pool is suspended nothing more is done.
begin_deletion() {
    large_pool
    quiet dmsetup suspend pool
    quiet dmsetup message pool 0 "delete 1"
    status_lines
    quiet dmsetup remove pool
}

# use_condemned: the volume under the highest id is one like any other.
use_condemned() {
    volume 16777215 8192
    quiet dd if="$DEVDIR/v16777215" of=/dev/null bs=1M count=1
    quiet dmsetup remove v16777215
    new 2 8192
    fill "$DEVDIR/v2" 0 8 two
}

# delete_condemned: and can be deleted as any other.
delete_condemned() {
    quiet dmsetup message pool 0 "delete 16777215"
    new 2 8192
    fill "$DEVDIR/v2" 0 8 two
}

# end_deletion: thinmap goes on by itself, until volume 2's one block is all there is.
end_deletion() {
    large_pool
    for _ in $(seq 600); do
        case $(dmsetup status pool) in *" 1/"*) break ;; esac
        sleep 0.1
    done
    status_lines
}
