# integrity: bitmap mode, recalculation, discards, signed journals, changes of mode and size.
disk A 16M
disk B 16M
disk M 4M

bytes() { dd if="$1" bs=1M skip=$(($2 * 512)) count=$(($3 * 512)) iflag=direct,skip_bytes,count_bytes,fullblock status=none | sha256sum; }
superblock() { dd if="$1" bs=4096 count=1 iflag=direct status=none | head -c 48 | od -An -v -tx1; }
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
# recalculated NAME: wait until it is.
recalculated() {
    tries=0
    until dmsetup status "$1" | grep -q ' \([0-9]*\) \1$' || [ $tries = 300 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
    run dmsetup status "$1"
}

title 'mode B'
run dmsetup create i --table "0 8192 integrity $A 0 - B 3 internal_hash:crc32c sectors_per_bit:1000 bitmap_flush_interval:60000"
run dmsetup table i
superblock "$A"
write i 0 64 one
write i 5000 64 two
# The bitmap: a bit for each 512 sectors of the device's 32328.
dd if="$A" bs=4096 skip=1 count=1 iflag=direct status=none | head -c 8 | od -An -v -tx1
same i 0 64 one
cp "$WORK/A.img" "$WORK/cut.img"
run dmsetup suspend i
superblock "$A"
bytes "$A" 0 32768
run dmsetup resume i
superblock "$A"
same i 5000 64 two
quiet dmsetup remove i
superblock "$A"
title 'a bitmap that was left'
cp "$WORK/cut.img" "$WORK/A.img"
run dmsetup create i --table "0 8192 integrity $A 0 4 B 3 internal_hash:crc32c sectors_per_bit:1000 bitmap_flush_interval:60000"
recalculated i
run dmsetup table i
same i 5000 64 two
quiet dmsetup remove i
superblock "$A"
title 'left, and opened with other bits, and in J'
cp "$WORK/cut.img" "$WORK/A.img"
run dmsetup create i --table "0 8192 integrity $A 0 4 B 2 internal_hash:crc32c sectors_per_bit:64"
recalculated i
same i 0 64 one
quiet dmsetup remove i
cp "$WORK/cut.img" "$WORK/A.img"
run dmsetup create i --table "0 8192 integrity $A 0 4 J 1 internal_hash:crc32c"
recalculated i
same i 0 64 one
write i 0 64 three
quiet dmsetup remove i
superblock "$A"
title recalculation
for mode in D J B; do
    blank "$A"
    run dmsetup create i --table "0 8192 integrity $A 0 - $mode 2 internal_hash:crc32c recalculate"
    recalculated i
    run dmsetup table i
    zeroed "$DEVDIR/i" 0 8192
    write i 8 64 one
    quiet dmsetup remove i
    superblock "$A"
    bytes "$A" 8 32760
    run dmsetup create i --table "0 8192 integrity $A 0 4 $mode 2 internal_hash:crc32c reset_recalculate"
    recalculated i
    run dmsetup table i
    same i 8 64 one
    quiet dmsetup remove i
done
title 'recalculation with a key'
blank "$A"
run dmsetup create i --table "0 8192 integrity $A 0 - J 2 internal_hash:hmac(sha256):00ff recalculate"
run dmsetup create i --table "0 8192 integrity $A 0 - J 3 internal_hash:hmac(sha256):00ff recalculate legacy_recalculate"
recalculated i
run dmsetup table i
quiet dmsetup remove i
blank "$A"
run dmsetup create i --table "0 8192 integrity $A 0 - J 4 internal_hash:hmac(sha256):00ff recalculate fix_hmac journal_mac:hmac(sha256):11"
recalculated i
quiet dmsetup remove i
try bad "0 8192 integrity $A 0 32 J 3 internal_hash:hmac(sha256):00ff fix_hmac journal_mac:hmac(sha256):12"
title 'signed journals'
blank "$A"
run dmsetup create i --table "0 8192 integrity $A 0 - J 3 internal_hash:crc32c journal_mac:hmac(sha256):00112233 journal_sectors:600"
run dmsetup table i
superblock "$A"
bytes "$A" 8 600
write i 0 640 one
cp "$WORK/A.img" "$WORK/cut.img"
quiet dmsetup remove i
bytes "$A" 0 32768
cp "$WORK/cut.img" "$WORK/A.img"
run dmsetup create i --table "0 8192 integrity $A 0 4 J 2 internal_hash:crc32c journal_mac:hmac(sha256):00112233"
same i 0 640 one
quiet dmsetup remove i
cp "$WORK/cut.img" "$WORK/A.img"
run dmsetup create i --table "0 8192 integrity $A 0 4 J 2 internal_hash:crc32c journal_mac:hmac(sha256):00112234"
run dd if="$DEVDIR/i" of=/dev/null bs=4k count=1 iflag=direct status=none
quiet dmsetup remove i
title 'encrypted journals'
for cipher in 'ctr(aes):000102030405060708090a0b0c0d0e0f' 'cbc(aes):000102030405060708090a0b0c0d0e0f1011121314151617'; do
    blank "$A"
    run dmsetup create i --table "0 8192 integrity $A 0 - J 4 internal_hash:crc32c journal_mac:crc32c journal_crypt:$cipher journal_sectors:600"
    run dmsetup table i
    bytes "$A" 8 600
    write i 0 640 one
    cp "$WORK/A.img" "$WORK/cut.img"
    quiet dmsetup remove i
    bytes "$A" 0 32768
    cp "$WORK/cut.img" "$WORK/A.img"
    run dmsetup create i --table "0 8192 integrity $A 0 4 D 3 internal_hash:crc32c journal_mac:crc32c journal_crypt:$cipher"
    same i 0 640 one
    quiet dmsetup remove i
done
blank "$A"
try bad "0 8192 integrity $A 0 - J 2 internal_hash:crc32c journal_crypt:nothing"
try bad "0 8192 integrity $A 0 - J 2 internal_hash:crc32c journal_crypt:cbc(aes):00"
title 'a journal that is damaged'
blank "$A"
run dmsetup create i --table "0 8192 integrity $A 0 - J 2 internal_hash:crc32c journal_sectors:600"
write i 0 64 one
cp "$WORK/A.img" "$WORK/cut.img"
quiet dmsetup remove i
# The first block in the journal.
cp "$WORK/cut.img" "$WORK/A.img"
printf x | dd of="$A" bs=1 seek=$(((8 + 8) * 512 + 3)) conv=notrunc,fsync status=none
run dmsetup create i --table "0 8192 integrity $A 0 4 J 1 internal_hash:crc32c"
run dd if="$DEVDIR/i" of=/dev/null bs=4k count=1 iflag=direct status=none
quiet dmsetup remove i
# A commit id that is none.
cp "$WORK/cut.img" "$WORK/A.img"
printf x | dd of="$A" bs=1 seek=$(((8 + 20) * 512 + 509)) conv=notrunc,fsync status=none
run dmsetup create i --table "0 8192 integrity $A 0 4 J 1 internal_hash:crc32c"
run dd if="$DEVDIR/i" of=/dev/null bs=4k count=1 iflag=direct status=none
quiet dmsetup remove i
title discards
for mode in D J B; do
    blank "$A"
    run dmsetup create i --table "0 8192 integrity $A 0 - $mode 2 internal_hash:crc32c allow_discards"
    run dmsetup table i
    write i 0 64 one
    same i 0 64 one
    quiet dmsetup remove i
done
title 'another size'
blank "$M"
run dmsetup create i --table "0 8192 integrity $B 0 - J 2 internal_hash:crc32c meta_device:$M"
write i 0 64 one
quiet dmsetup remove i
superblock "$M"
truncate -s 20M "$WORK/B.img"
losetup -c "$B"
run dmsetup create i --table "0 40960 integrity $B 0 - J 2 internal_hash:crc32c meta_device:$M"
run dmsetup status i
same i 0 64 one
quiet dmsetup remove i
superblock "$M"
