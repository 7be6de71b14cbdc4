# A cache, filled, changed, cleaned and read by whoever has `dmsetup`: the kernel or thinmap.
#
# Sourced after conformance/prelude.sh, with IMAGES naming a directory that holds metadata.img, cache.img, origin.img, model.img, what
# the cache should read as, features, those of its table, and the manifest, which has the sum of the model.

SECTORS=65000

# open_as FEATURES POLICY: a line over the images.
open_as() {
    quiet dmsetup create c --table "0 $SECTORS cache $metadata $cache $origin 128 $1 $2"
    dmsetup status c
}

attach_images() {
    for image in metadata cache origin; do
        loop=$(losetup -f --show "$IMAGES/$image.img") || echo "= no loop device"
        LOOPS="$loop $LOOPS"
        eval "$image=$loop"
    done
}

open_images() {
    attach_images
    open_as "$(cat "$IMAGES/features")" "smq 2 migration_threshold 0"
}

close_images() {
    quiet dmsetup remove c
    cache_check "$metadata" >/dev/null && echo "metadata: right"
    sha256sum <"$IMAGES/model.img" >"$IMAGES/manifest"
}

# crash: the images as a power cut would leave them, whatever is done later.
crash() {
    sync "$DEVDIR/c"
    mkdir "$IMAGES/crash"
    for image in metadata cache origin; do cp --sparse=always "$IMAGES/$image.img" "$IMAGES/crash/"; done
    quiet dmsetup remove c
    mv "$IMAGES"/crash/* "$IMAGES/"
    rmdir "$IMAGES/crash"
    sha256sum <"$IMAGES/model.img" >"$IMAGES/manifest"
}

# make_images FEATURES
make_images() {
    echo "$1" >"$IMAGES/features"
    truncate -s 4M "$IMAGES/metadata.img"
    truncate -s 8M "$IMAGES/cache.img"
    head -c $((SECTORS * 512)) /dev/urandom >"$IMAGES/origin.img"
    cp "$IMAGES/origin.img" "$IMAGES/model.img"
    open_images
}

# store BYTES_OF_A_BLOCK BLOCK COUNT: random data, to the cache and to the model.
store() {
    head -c $(($1 * $3)) /dev/urandom >"$WORK/data"
    dd if="$WORK/data" of="$DEVDIR/c" bs="$1" seek="$2" oflag=direct conv=notrunc status=none
    dd if="$WORK/data" of="$IMAGES/model.img" bs="$1" seek="$2" conv=notrunc status=none
}

# change NUMBER: whole blocks, which come into the cache, and parts of blocks there and elsewhere.
change() {
    for i in 1 2 3 4 5 6; do
        store 65536 $(($1 * 61 + i * 7)) $((i % 3 + 1))
        store 4096 $(($1 * 976 + i * 113)) $i
        store 512 $((1000 * i + $1 * 7)) $((i * 9))
    done
    sync "$DEVDIR/c"
    dmsetup status c
}

# all_clean: everything is written to the origin, and that alone is right.
all_clean() {
    tries=0
    until dmsetup status c | cut -d' ' -f14 | grep -qx 0 || [ $tries = 150 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    dmsetup status c
    quiet dmsetup remove c
    if cmp -s -n $((SECTORS * 512)) "$origin" "$IMAGES/model.img"; then echo "origin: right"; else echo "origin: WRONG"; fi
}

check() {
    if cmp -s -n $((SECTORS * 512)) "$DEVDIR/c" "$IMAGES/model.img"; then echo "data: right"; else echo "data: WRONG"; fi
}
