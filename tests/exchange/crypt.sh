# Encrypted mappings over one image, written, changed and read back by whoever has `dmsetup`: the kernel or thinmap.
#
# Sourced after conformance/prelude.sh, with IMAGES naming a directory that holds crypt.img and the manifest: one line "number
# sha256" for each mapping.

SECTORS=2048
K32=00112233445566778899aabbccddeeff0f1e2d3c4b5a69788796a5b4c3d2e1f0
K64=${K32}8f7e6d5c4b3a29180706f5e4d3c2b1a0102030405060708090a0b0c0d0e0f001
# 192 bits.
K48=$(printf %.48s "$K64")

# Number, cipher, key, IV offset, features.
MAPPINGS="0 aes-xts-plain64 $K64 0
1 aes-xts-plain64 $K32 4294967040
2 aes-xts-plain $K64 4294967040
3 aes-xts-plain64be $K64 5
4 aes-cbc-essiv:sha256 $K32 123456789
5 aes-cbc-plain64 $K48 9
6 aes-cbc-benbi $K32 0
7 aes-cbc-eboiv $K32 77
8 aes-ecb $K32 0
9 aes-xts-plain64 $K64 8 1 sector_size:4096
10 aes-xts-plain64 $K64 8 2 sector_size:4096 iv_large_sectors
11 aes-cbc-essiv:sha256 $K32 4294967040 2 sector_size:1024 iv_large_sectors
12 aes-xts-plain64 $K64 2 3 sector_size:1024 no_read_workqueue no_write_workqueue
13 capi:xts(aes)-plain64 $K48$K48 3"
COUNT=14

open_images() {
    loop=$(losetup -f --show "$IMAGES/crypt.img") || echo "= no loop device"
    LOOPS="$loop $LOOPS"
    while read -r number cipher key offset features; do
        quiet dmsetup create "c$number" --table \
            "0 $SECTORS crypt $cipher $key $offset $loop $((number * SECTORS)) $features"
    done <<EOF
$MAPPINGS
EOF
}

note_all() {
    : >"$IMAGES/manifest"
    for number in $(seq 0 $((COUNT - 1))); do
        echo "$number $(sha256sum <"$DEVDIR/c$number" | cut -d' ' -f1)" >>"$IMAGES/manifest"
    done
}

make_images() {
    truncate -s $((COUNT * SECTORS * 512)) "$IMAGES/crypt.img"
    open_images
    for number in $(seq 0 $((COUNT - 1))); do
        # Large requests and small ones.
        head -c 1M /dev/urandom | dd of="$DEVDIR/c$number" bs=1M iflag=fullblock oflag=direct status=none
        head -c 20k /dev/urandom | dd of="$DEVDIR/c$number" bs=4k seek=33 iflag=fullblock oflag=direct conv=notrunc status=none
    done
    note_all
}

check_images() {
    open_images
    while read -r number sum; do
        if [ "$(sha256sum <"$DEVDIR/c$number" | cut -d' ' -f1)" = "$sum" ]; then
            echo "mapping $number: right"
        else
            echo "mapping $number: WRONG"
        fi
    done <"$IMAGES/manifest"
}

change_images() {
    for number in $(seq 0 $((COUNT - 1))); do
        head -c 100k /dev/urandom | dd of="$DEVDIR/c$number" bs=4k seek=$((50 + number)) conv=notrunc,fsync status=none
    done
    note_all
}

close_images() {
    for number in $(seq 0 $((COUNT - 1))); do
        quiet dmsetup remove "c$number"
    done
}
