# Era metadata, written, changed and read by whoever has `dmsetup`: the kernel or thinmap.
#
# Sourced after conformance/prelude.sh, with IMAGES naming a directory that holds metadata.img, origin.img and the manifest: one line
# "block era" for each block of the origin, as it should be.

BLOCKS=2000

attach_images() {
    for image in metadata origin; do
        loop=$(losetup -f --show "$IMAGES/$image.img") || echo "= no loop device"
        LOOPS="$loop $LOOPS"
        eval "$image=$loop"
    done
}

open_images() {
    quiet dmsetup create e --table "0 $((BLOCKS * 64)) era $metadata $origin 64"
}

close_images() {
    quiet dmsetup remove e
    blockdev --flushbufs "$metadata"
}

# dump: a line for each block, of metadata that nobody uses.
dump() {
    era_check -q "$metadata" || echo "= damaged"
    era_dump --logical "$metadata" | sed -n 's/.*<era block="\([0-9]*\)" era="\([0-9]*\)".*/\1 \2/p'
}

# write FIRST COUNT: blocks, noted with the era that the status tells.
write() {
    era=$(dmsetup status e | cut -d' ' -f6)
    dd if=/dev/urandom of="$DEVDIR/e" bs=32k seek="$1" count="$2" oflag=direct conv=notrunc status=none
    awk -v first="$1" -v end=$(($1 + $2)) -v era="$era" \
        '$1 >= first && $1 < end { $2 = era } { print }' "$IMAGES/manifest" >"$WORK/manifest"
    mv "$WORK/manifest" "$IMAGES/manifest"
}

make_images() {
    truncate -s 4M "$IMAGES/metadata.img"
    truncate -s $((BLOCKS * 32768)) "$IMAGES/origin.img"
    seq -f '%.0f 0' 0 $((BLOCKS - 1)) >"$IMAGES/manifest"
    attach_images
    open_images
}

# change NUMBER: some eras that depend on it, a metadata snapshot that stays.
change() {
    write $(($1 * 100)) 150
    quiet dmsetup message e 0 checkpoint
    write $(($1 * 37 + 900)) 40
    quiet dmsetup message e 0 checkpoint
    case $(dmsetup status e) in
    *' -') ;;
    *) quiet dmsetup message e 0 drop_metadata_snap ;;
    esac
    write 1999 1
    quiet dmsetup message e 0 take_metadata_snap
    write $(($1 * 11)) 5
}

check() {
    if dump | cmp -s - "$IMAGES/manifest"; then echo "eras: right"; else echo "eras: WRONG"; fi
}
