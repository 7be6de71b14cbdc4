# Verity images, formatted by veritysetup, opened and read by whoever has `dmsetup`: the kernel or thinmap.
#
# Sourced after conformance/prelude.sh, with IMAGES naming a directory that holds data and tree of each image, and the manifest: one
# line "number sha256 table" for each, with the table as the side has it that made the image.

SALT=0123456789abcdeffedcba9876543210
# Number, blocks of 4096 bytes, options of veritysetup.
FORMATS="0 700 --hash=sha256 --salt=$SALT
1 700 --hash=sha256 --format=0 --salt=$SALT
2 700 --hash=sha1 --data-block-size=1024 --hash-block-size=512 --salt=-
3 2100 --hash=sha512 --hash-block-size=1024 --salt=$SALT$SALT
4 700 --hash=sha1 --format=0 --hash-block-size=1024 --salt=$SALT
5 1 --hash=sha256 --salt=$SALT
6 17000 --hash=sha256 --salt=-"

# attach NUMBER: loop devices of an image, in DATA and TREE.
attach() {
    DATA=$(losetup -f --show "$IMAGES/$1.data") TREE=$(losetup -f --show "$IMAGES/$1.tree") || echo "= no loop device"
    LOOPS="$DATA $TREE $LOOPS"
}

make_image() {
    head -c $(($2 * 4096)) /dev/urandom >"$IMAGES/$1.data"
    # Blocks of zeroes among them.
    dd if=/dev/zero of="$IMAGES/$1.data" bs=4096 seek=$(($2 / 3)) count=$(($2 / 9)) conv=notrunc status=none
    # With a superblock, which takes at least a sector: the tree begins at the hash block behind it.
    root=$(veritysetup format $3 "$IMAGES/$1.data" "$IMAGES/$1.tree" | tee "$WORK/format" | sed -n 's/^Root hash:[ \t]*//p')
    said() { sed -n "s/^$1:[ \t]*//p" "$WORK/format" | cut -d' ' -f1; }
    hash=$(said 'Hash algorithm')
    attach "$1"
    first=$((512 / $(said 'Hash block size')))
    quiet dmsetup create "v$1" --readonly --table "0 $(($2 * 8)) verity $(said 'Hash type') $DATA $TREE \
$(said 'Data block size') $(said 'Hash block size') $(said 'Data blocks') $((first > 1 ? first : 1)) $hash $root $(said Salt)"
    table=$(dmsetup table "v$1" | sed 's/[0-9]*:[0-9]* [0-9]*:[0-9]*/DATA TREE/')
    echo "$1 $(sha256sum <"$DEVDIR/v$1" | cut -d' ' -f1) $table" >>"$IMAGES/manifest"
    quiet dmsetup remove "v$1"
}

make_images() {
    while read -r number blocks options; do make_image "$number" "$blocks" "$options"; done <<EOF
$FORMATS
EOF
}

check_images() {
    while read -r number sum table; do
        attach "$number"
        quiet dmsetup create "v$number" --readonly --table "$(echo "$table" | sed "s|DATA TREE|$DATA $TREE|")"
        status=$(dmsetup status "v$number" | cut -d' ' -f4)
        if [ "$(sha256sum <"$DEVDIR/v$number" | cut -d' ' -f1)" = "$sum" ] && [ "$status" = V ]; then
            echo "image $number: right"
        else
            echo "image $number: WRONG"
        fi
        quiet dmsetup remove "v$number"
    done <"$IMAGES/manifest"
}
