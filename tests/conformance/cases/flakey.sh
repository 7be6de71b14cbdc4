# flakey: arguments, table, what fails while up and while down. Intervals of days: no case waits for one.
disk A 4M
LONG=1000000
title 'up'
run dmsetup create f --table "0 2048 flakey $A 16 $LONG 0"
run dmsetup table f
run dmsetup status f
run dmsetup deps f
fill "$DEVDIR/f" 0 64 red
holds "$A" 16 64 red
quiet dmsetup remove f
run dmsetup create f --table "0 2048 flakey $A 0 $LONG 1 2 drop_writes"
run dmsetup create f --table "0 2048 flakey $A 0 $LONG 1 1 drop_writes"
fill "$DEVDIR/f" 100 8 green
holds "$A" 100 8 green
quiet dmsetup remove f

# down FEATURES...: what reads and writes of a device do that is down.
down() {
    fill "$A" 0 64 below
    run dmsetup create f --table "0 2048 flakey $A 0 0 $LONG $1"
    run dmsetup table f
    run dmsetup status f
    case $1 in
    *corrupt_bio_byte*\ [rR]\ *) word='corrupted read' ;;
    *) word=read ;;
    esac
    # The first block only: how reads after it are put together is the host's affair.
    echo "$word: $(dd if="$DEVDIR/f" bs=4k count=1 iflag=direct status=none 2>/dev/null | sha256sum)"
    pattern over 8 >"$WORK/data"
    dd if="$WORK/data" of="$DEVDIR/f" bs=4k seek=1 oflag=direct conv=notrunc status=none 2>/dev/null
    echo "write: $?"
    echo "$word: $(dd if="$DEVDIR/f" bs=4k count=1 iflag=direct status=none 2>/dev/null | sha256sum)"
    quiet dmsetup remove f
    echo "below: $(dd if="$A" bs=4k count=8 iflag=direct status=none | sha256sum)"
}
title 'down'
down ''
down 0
down '1 drop_writes'
down '1 error_writes'
down '1 Error_Writes'
down '5 corrupt_bio_byte 1 r 65 0'
down '5 corrupt_bio_byte 4096 R 0 0'
down '5 corrupt_bio_byte 513 w 255 0'
down '5 corrupt_bio_byte 5000 r 65 0'
down '6 drop_writes corrupt_bio_byte 32 r 1 0'
down '6 corrupt_bio_byte 32 r 1 0 error_writes'
down '5 corrupt_bio_byte 3 w 88 1'
down '5 corrupt_bio_byte 3 r 88 1'
down '5 corrupt_bio_byte 3 w 88 2'
down '0 what comes here is not looked at'
title 'a table that changes while data is written'
run dmsetup create f --table "0 2048 flakey $A 0 $LONG 0"
fill "$DEVDIR/f" 0 64 first
run dmsetup suspend --nolockfs f
run dmsetup load f --table "0 2048 flakey $A 0 0 $LONG 1 drop_writes"
run dmsetup resume f
run dmsetup table f
fill "$DEVDIR/f" 0 64 second
run dmsetup load f --table "0 2048 flakey $A 0 $LONG 0"
run dmsetup suspend --nolockfs f
run dmsetup resume f
echo 3 >/proc/sys/vm/drop_caches
blockdev --flushbufs "$DEVDIR/f"
holds "$A" 0 64 first
run dmsetup message f 0 hello
quiet dmsetup remove f
title 'every argument wrong in turn'
try bad "0 2048 flakey"
try bad "0 2048 flakey $A"
try bad "0 2048 flakey $A 0"
try bad "0 2048 flakey $A 0 1"
try bad "0 2048 flakey $WORK/absent 0 1 1"
try bad "0 2048 flakey $A x 1 1"
try bad "0 2048 flakey $A 8192 1 1"
try bad "0 2048 flakey $A 0 x 1"
try bad "0 2048 flakey $A 0 -1 1"
try bad "0 2048 flakey $A 0 1 x"
try bad "0 2048 flakey $A 0 0 0"
try bad "0 2048 flakey $A 0 4294967295 1"
try good "0 2048 flakey $A 0 4294967295 0"
try bad "0 2048 flakey $A 0 1 1 x"
try bad "0 2048 flakey $A 0 1 1 7 a b c d e f g"
try bad "0 2048 flakey $A 0 1 1 1"
try bad "0 2048 flakey $A 0 1 1 2 drop_writes"
try bad "0 2048 flakey $A 0 1 1 1 nothing"
try bad "0 2048 flakey $A 0 1 1 2 drop_writes drop_writes"
try bad "0 2048 flakey $A 0 1 1 2 error_writes error_writes"
try bad "0 2048 flakey $A 0 1 1 2 drop_writes error_writes"
try bad "0 2048 flakey $A 0 1 1 2 error_writes drop_writes"
try bad "0 2048 flakey $A 0 1 1 1 corrupt_bio_byte"
try bad "0 2048 flakey $A 0 1 1 1 corrupt_bio_byte 1 r 1 0"
try bad "0 2048 flakey $A 0 1 1 2 corrupt_bio_byte 1"
try bad "0 2048 flakey $A 0 1 1 2 corrupt_bio_byte 1 r 1 0"
try bad "0 2048 flakey $A 0 1 1 3 corrupt_bio_byte 1 r"
try bad "0 2048 flakey $A 0 1 1 4 corrupt_bio_byte 1 r 1"
try bad "0 2048 flakey $A 0 1 1 5 corrupt_bio_byte 0 r 1 0"
try bad "0 2048 flakey $A 0 1 1 5 corrupt_bio_byte x r 1 0"
try bad "0 2048 flakey $A 0 1 1 5 corrupt_bio_byte 1 x 1 0"
try bad "0 2048 flakey $A 0 1 1 5 corrupt_bio_byte 1 r 256 0"
try bad "0 2048 flakey $A 0 1 1 5 corrupt_bio_byte 1 r x 0"
try bad "0 2048 flakey $A 0 1 1 5 corrupt_bio_byte 1 r 1 x"
try bad "0 2048 flakey $A 0 1 1 6 drop_writes corrupt_bio_byte 1 w 1 0"
try bad "0 2048 flakey $A 0 1 1 6 error_writes corrupt_bio_byte 1 w 1 0"
run dmsetup ls
run dmsetup target-version flakey
