# A write cache, filled, read and written back by whoever has `dmsetup`: the kernel or thinmap.
#
# Sourced after conformance/prelude.sh, with IMAGES naming a directory that holds origin.img, cache.img, model.img, what the line should
# read as, and the manifest, which has the sum of that.

SECTORS=65536

open_images() {
    for image in origin cache; do
        loop=$(losetup -f --show "$IMAGES/$image.img") || echo "= no loop device"
        LOOPS="$loop $LOOPS"
        eval "$image=$loop"
    done
    quiet dmsetup create w --table "0 $SECTORS writecache s $origin $cache ${BLOCK:-4096} 4 start_sector 16 pause_writeback 0"
    dmsetup status w | cut -d ' ' -f 1-7
}

close_images() {
    dmsetup status w | cut -d ' ' -f 1-7
    quiet dmsetup remove w
    sha256sum <"$IMAGES/model.img" >"$IMAGES/manifest"
}

make_images() {
    truncate -s 16M "$IMAGES/cache.img"
    head -c $((SECTORS * 512)) /dev/urandom >"$IMAGES/origin.img"
    cp "$IMAGES/origin.img" "$IMAGES/model.img"
    open_images
}

# change NUMBER: writes of many sizes, over each other; less than half of the cache.
change() {
    for i in 1 2 3 4 5 6 7 8 9; do
        at=$((($1 * 700 + i * 60) % 8000))
        count=$((i * i / 2 + 1))
        head -c $((count * 4096)) /dev/urandom >"$WORK/data"
        dd if="$WORK/data" of="$DEVDIR/w" bs=4096 seek=$at oflag=direct conv=notrunc,fsync status=none
        dd if="$WORK/data" of="$IMAGES/model.img" bs=4096 seek=$at conv=notrunc status=none
    done
}

check() {
    dd if="$DEVDIR/w" bs=1M iflag=direct status=none >"$WORK/found"
    if cmp -s "$WORK/found" "$IMAGES/model.img"; then echo "data: right"; else echo "data: WRONG"; fi
}

# written_back: the origin alone has everything.
written_back() {
    quiet dmsetup message w 0 flush
    dd if="$origin" bs=1M iflag=direct status=none >"$WORK/found"
    if cmp -s "$WORK/found" "$IMAGES/model.img"; then echo "data: right"; else echo "data: WRONG"; fi
}
