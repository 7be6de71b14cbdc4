# A clone, begun and continued by whoever has `dmsetup`: the kernel or thinmap.
#
# Sourced after conformance/prelude.sh, with IMAGES naming a directory that holds metadata.img, dest.img, source.img, model.img, what
# the clone should read as, and the manifest, which has the sum of that.

SECTORS=65000

open_images() {
    for image in metadata dest source; do
        loop=$(losetup -f --show "$IMAGES/$image.img") || echo "= no loop device"
        LOOPS="$loop $LOOPS"
        eval "$image=$loop"
    done
    quiet dmsetup create c --table "0 $SECTORS clone $metadata $dest $source 16 1 no_hydration"
    dmsetup status c
}

close_images() {
    quiet dmsetup remove c
    sha256sum <"$IMAGES/model.img" >"$IMAGES/manifest"
}

make_images() {
    truncate -s 4M "$IMAGES/metadata.img"
    truncate -s $((SECTORS * 512)) "$IMAGES/dest.img"
    head -c $((SECTORS * 512)) /dev/urandom >"$IMAGES/source.img"
    cp "$IMAGES/source.img" "$IMAGES/model.img"
    open_images
}

# change NUMBER: writes of many sizes.
change() {
    for i in 1 2 3 4 5 6 7 8 9; do
        at=$(($1 * 6000 + i * 600))
        count=$((i * i * 3))
        head -c $((count * 512)) /dev/urandom >"$WORK/data"
        dd if="$WORK/data" of="$DEVDIR/c" bs=512 seek=$at conv=notrunc,fsync status=none
        dd if="$WORK/data" of="$IMAGES/model.img" bs=512 seek=$at conv=notrunc status=none
    done
    dmsetup status c
}

# copy_all: until every region has come; then the source is not needed.
copy_all() {
    quiet dmsetup message c 0 hydration_threshold 256
    quiet dmsetup message c 0 hydration_batch_size 64
    quiet dmsetup message c 0 enable_hydration
    tries=0
    until dmsetup status c | grep -q ' 4063/4063 0 ' || [ $tries = 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    dmsetup status c
    dd if=/dev/zero of="$source" bs=1M conv=notrunc,fsync status=none 2>/dev/null
}

check() {
    if cmp -s -n $((SECTORS * 512)) "$DEVDIR/c" "$IMAGES/model.img"; then echo "data: right"; else echo "data: WRONG"; fi
}
