# Integrity lines over an image each, written, changed and read back by whoever has `dmsetup`: the kernel or thinmap.
#
# Sourced after conformance/prelude.sh, with IMAGES naming a directory that holds iN.img, mN.img (tags), and of each line that is
# journaled or has a bitmap the images as they were while the line was in use, cut_iN.img and cut_mN.img; and the manifest: one line "number
# sha256" for each line.

SECTORS=12288
# Number, mode, options; META stands for a device for tags.
LINES="0 D internal_hash:crc32c
1 J internal_hash:crc32c journal_sectors:2000
2 J internal_hash:sha256 journal_sectors:300 interleave_sectors:2048 buffer_sectors:16 fix_padding
3 J internal_hash:hmac(sha256):00112233445566778899aabbccddeeff fix_hmac journal_mac:hmac(sha256):0102030405060708
4 J internal_hash:crc32c journal_mac:crc32c block_size:4096 journal_watermark:90
5 J internal_hash:xxhash64 block_size:1024 META journal_sectors:3000
6 B internal_hash:crc32c sectors_per_bit:64
7 B internal_hash:sha1 META sectors_per_bit:512 block_size:4096
8 J internal_hash:sha256 fix_padding journal_sectors:500 journal_crypt:ctr(aes):00112233445566778899aabbccddeeff journal_mac:sha1
9 J internal_hash:crc32c journal_sectors:900 journal_crypt:cbc(aes):00112233445566778899aabbccddeeff0011223344556677 block_size:4096
10 D internal_hash:crc32 fix_padding recalculate"
LAST=10

# open_line NUMBER PREFIX: the line iNUMBER over the images there that begin so.
open_line() {
    set -- "$1" "$2" $(echo "$LINES" | grep "^$1 ")
    number=$1 prefix=$2 mode=$4
    shift 4
    words=
    count=0
    for image in i m; do
        loop=$(losetup -f --show "$prefix$image$number.img") || echo "= no loop device"
        LOOPS="$loop $LOOPS"
        eval "$image=$loop"
    done
    for word in "$@"; do
        [ "$word" = META ] && word=meta_device:$m
        words="$words $word"
        count=$((count + 1))
    done
    quiet dmsetup create "i$number" --table "0 $SECTORS integrity $i 0 - $mode $count$words"
}

note_all() {
    for number in $(seq 0 $LAST); do
        sync "$DEVDIR/i$number"
        echo "$number $(sha256sum <"$DEVDIR/i$number" | cut -d' ' -f1)"
    done >"$IMAGES/manifest"
}

# cut_all: keeps what the devices hold now, before anything ends in good order.
cut_all() {
    for number in $(seq 1 9); do
        for image in i m; do
            cp "$IMAGES/$image$number.img" "$IMAGES/cut_$image$number.img"
        done
    done
}

close_images() {
    for number in $(seq 0 $LAST); do
        quiet dmsetup remove "i$number"
    done
}

make_images() {
    for number in $(seq 0 $LAST); do
        truncate -s 8M "$IMAGES/i$number.img"
        truncate -s 2M "$IMAGES/m$number.img"
        open_line "$number" "$IMAGES/"
        head -c $((SECTORS * 512)) /dev/urandom | dd of="$DEVDIR/i$number" bs=1M iflag=fullblock oflag=direct conv=fsync status=none
    done
    change_images
}

open_images() {
    for number in $(seq 0 $LAST); do
        open_line "$number" "$IMAGES/"
    done
}

change_images() {
    for number in $(seq 0 $LAST); do
        for at in 3 40 41 300 700; do
            head -c $((at * 40 / 4096 * 4096 + 8192)) /dev/urandom | dd of="$DEVDIR/i$number" bs=4k seek=$((at + number)) iflag=fullblock conv=notrunc,fsync status=none
        done
    done
    note_all
    cut_all
}

check_one() {
    if [ "$(sha256sum <"$DEVDIR/i$1" | cut -d' ' -f1)" = "$2" ]; then
        echo "line $1$3: right"
    else
        echo "line $1$3: WRONG"
    fi
    dmsetup status "i$1" | grep -q "integrity 0 " || dmsetup status "i$1"
}

check_images() {
    while read -r number sum; do
        check_one "$number" "$sum" ''
    done <"$IMAGES/manifest"
}

# check_cut: the same of lines that were not ended.
check_cut() {
    for number in $(seq 1 9); do
        open_line "$number" "$IMAGES/cut_"
        check_one "$number" "$(sed -n "s/^$number //p" "$IMAGES/manifest")" ' after a cut'
        quiet dmsetup remove "i$number"
    done
}
