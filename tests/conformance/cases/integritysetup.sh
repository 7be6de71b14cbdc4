# integritysetup on a kernel and here: what it makes, opens and says.
disk A 16M
disk B 20M

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

title integritysetup
i() {
    printf '$ integritysetup'
    printf ' %s' "$@"
    printf '\n'
    $VIA integritysetup -q "$@" >"$WORK/.out" 2>"$WORK/.err" </dev/null
    code=$?
    note_output
}
blank "$A"
i format "$A"
superblock "$A"
i dump "$A"
i open "$A" i
run dmsetup table i
run dmsetup status i
$VIA integritysetup status i | grep -v 'device:\|size:'
write i 0 64 one
same i 0 64 one
i close i
i format "$A" --integrity sha256 --tag-size 32 --sector-size 4096 --journal-size 300000
i open "$A" i --integrity sha256 --journal-watermark 40 --journal-commit-time 3000
run dmsetup table i
i close i
i open "$A" i --integrity crc32c
i close i
i open "$A" i --integrity sha256 --integrity-no-journal
run dmsetup table i
i close i
i open "$A" i --integrity sha256 --integrity-bitmap-mode --bitmap-sectors-per-bit 128
run dmsetup table i
i close i
head -c 32 /dev/zero | tr '\0' k >"$WORK/key"
i format "$A" --integrity hmac-sha256 --integrity-key-file "$WORK/key" --integrity-key-size 32 --no-wipe
i open "$A" i --integrity hmac-sha256 --integrity-key-file "$WORK/key" --integrity-key-size 32
run dmsetup table i
i close i
i format "$A" --data-device "$B" --no-wipe
i open "$A" i --data-device "$B" --integrity-recalculate
recalculated i
run dmsetup table i
i close i
run dmsetup ls
