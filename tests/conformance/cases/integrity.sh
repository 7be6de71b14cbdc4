# integrity: modes D and J with tags of its own; tables, status, what is on the devices, wrong tags.
disk A 16M
disk B 16M
disk M 4M

# bytes DEVICE SECTOR COUNT: what is there, in short.
bytes() { dd if="$1" bs=1M skip=$(($2 * 512)) count=$(($3 * 512)) iflag=direct,skip_bytes,count_bytes,fullblock status=none | sha256sum; }
# superblock DEVICE: its first 48 bytes.
superblock() { dd if="$1" bs=4096 count=1 iflag=direct status=none | head -c 48 | od -An -v -tx1; }
# damage DEVICE SECTOR: other data, behind the line's back.
damage() { printf x | dd of="$1" bs=1 seek=$(($2 * 512 + 5)) conv=notrunc,fsync status=none; }
# blocks NAME SECTOR COUNT: each block read on its own, and whether that worked.
blocks() {
    at=$2
    while [ "$at" -lt $(($2 + $3)) ]; do
        if dd if="$DEVDIR/$1" of=/dev/null bs=4096 skip=$((at / 8)) count=1 iflag=direct status=none 2>"$WORK/.err"; then
            echo "$at: read"
        else
            echo "$at: $(sed 's/.*: //' "$WORK/.err" | head -1)"
        fi
        at=$((at + 8))
    done
}
blank() { blkdiscard -fz "$1" 2>/dev/null; }
# same NAME SECTOR COUNT SEED: as holds, past the page cache, which reads what was not asked for.
same() {
    pattern "$4" "$3" >"$WORK/.want"
    if dd if="$DEVDIR/$1" bs=$(($3 * 512)) skip=$(($2 * 512)) count=1 iflag=direct,skip_bytes,fullblock status=none 2>"$WORK/.err" | cmp -s - "$WORK/.want"; then
        echo "$1 $2+$3 holds $4"
    else
        echo "$1 $2+$3 does NOT hold $4 $(sed 's/.*: //' "$WORK/.err" | head -1)"
    fi
}
write() {
    pattern "$4" "$3" | dd of="$DEVDIR/$1" bs=$(($3 * 512)) seek=$(($2 * 512)) oflag=direct,seek_bytes iflag=fullblock conv=notrunc,fsync status=none
}

title 'mode D, formatted by the table'
run dmsetup create i --table "0 8192 integrity $A 0 - D 1 internal_hash:crc32c"
run dmsetup table i
run dmsetup status i
run dmsetup deps i
superblock "$A"
bytes "$A" 8 248
# Nothing has a tag yet.
blocks i 0 8
run dmsetup status i
write i 0 64 one
write i 4000 200 two
same i 0 64 one
same i 4000 200 two
run dmsetup status i
quiet dmsetup remove i
bytes "$A" 0 32768
title 'opened again, a block damaged'
damage "$A" 512
at=$(grep -abo -m1 'seed one line 00000000000000000129' "$WORK/A.img" | cut -d: -f1)
echo "sector 8 of the line is $((at / 512)) of the device"
damage "$A" $((at / 512))
run dmsetup create i --table "0 8192 integrity $A 0 4 D 1 internal_hash:crc32c"
blocks i 0 24
run dmsetup status i
write i 8 8 three
blocks i 8 8
same i 8 8 three
quiet dmsetup remove i
title 'mode R reads all'
damage "$A" 264
run dmsetup create i --table "0 8192 integrity $A 0 4 R 1 internal_hash:crc32c"
run dmsetup table i
blocks i 2000 8
run dd if=/dev/zero of="$DEVDIR/i" bs=4k count=1 oflag=direct status=none
run dmsetup status i
quiet dmsetup remove i
title 'mode J'
blank "$A"
run dmsetup create i --table "0 8192 integrity $A 0 - J 6 internal_hash:sha256 journal_sectors:1024 interleave_sectors:1000 buffer_sectors:64 journal_watermark:70 commit_time:500"
run dmsetup table i
superblock "$A"
bytes "$A" 8 1000
write i 0 64 one
write i 100 3000 two
write i 120 8 three
same i 0 64 one
same i 100 20 two
run dmsetup suspend i
superblock "$A"
run dmsetup status i
run dmsetup resume i
same i 120 8 three
quiet dmsetup remove i
bytes "$A" 2000 30768
run dmsetup create i --table "0 8192 integrity $A 0 32 D 1 internal_hash:sha256"
run dmsetup table i
same i 120 8 three
same i 0 64 one
quiet dmsetup remove i
title 'larger blocks, padding as it should be, other hashes'
blank "$A"
run dmsetup create i --table "0 8192 integrity $A 16 - J 3 internal_hash:crc32 block_size:4096 fix_padding"
run dmsetup table i
run blockdev --getss --getpbsz "$DEVDIR/i"
dd if="$A" bs=512 skip=16 count=1 status=none | head -c 48 | od -An -v -tx1
write i 0 64 one
same i 0 64 one
quiet dmsetup remove i
bytes "$A" 0 32768
for hash in xxhash64 sha1 sha512 crc32c:12345678 crc32:00000001 'hmac(sha256):000102030405060708090a0b0c0d0e0f'; do
    blank "$A"
    run dmsetup create i --table "0 8192 integrity $A 0 - D 2 internal_hash:$hash block_size:1024"
    run dmsetup table i
    write i 0 64 one
    write i 3000 64 two
    same i 3000 64 two
    quiet dmsetup remove i
    bytes "$A" 0 32768
done
title 'tags longer and shorter than the hash'
for size in 1 3 40; do
    blank "$A"
    run dmsetup create i --table "0 8192 integrity $A 0 $size J 1 internal_hash:sha256"
    run dmsetup table i
    write i 0 640 one
    same i 0 640 one
    quiet dmsetup remove i
    bytes "$A" 256 32512
done
title 'tags without a hash'
blank "$A"
run dmsetup create i --table "0 8192 integrity $A 0 8 J 0"
run dmsetup table i
write i 0 64 one
same i 0 64 one
quiet dmsetup remove i
bytes "$A" 256 32512
title 'a device for the tags'
for mode in D J; do
    blank "$A"
    blank "$M"
    run dmsetup create i --table "0 32768 integrity $A 0 - $mode 2 internal_hash:crc32c meta_device:$M"
    run dmsetup table i
    run dmsetup deps i
    run dmsetup status i
    write i 0 64 one
    write i 32000 768 two
    same i 32000 768 two
    quiet dmsetup remove i
    superblock "$M"
    bytes "$M" 256 7936
    holds "$A" 0 64 one
done
