# verity: table, status before and after corruption, what is read in each mode.
disk A 1M
disk H 1M
fill "$A" 0 2048 red
SALT=0123456789abcdef0123456789ABCDEF

# tree OPTION...: makes the hash tree of A on H; its root.
tree() {
    blkdiscard -z "$H"
    ROOT=$(veritysetup format --no-superblock --hash-offset=8192 "$@" "$A" "$H" | sed -n 's/^Root hash:[ \t]*//p')
    [ -n "$ROOT" ] || echo "= no tree: $*"
}

# open TAIL: creates v with the tree at block 2.
open() { run dmsetup create v --readonly --table "0 2048 verity $1"; }

# reads BLOCK COUNT [BYTES]: what blocks hold.
reads() {
    if dd if="$DEVDIR/v" of="$WORK/read" bs="${3:-4096}" skip="$1" count="$2" iflag=direct status=none 2>/dev/null; then
        echo "read of $1+$2: $(sha256sum <"$WORK/read")"
    else
        echo "read of $1+$2 fails"
    fi
}

# damage DEVICE BLOCK: one byte of it.
damage() { printf X | dd of="$1" bs=1 seek=$(($2 * 4096 + 1000)) conv=notrunc,fsync status=none; }

title 'corrupted data'
tree --salt=$SALT
LINE="1 $A $H 4096 4096 256 2 sha256 $ROOT $SALT"
damage "$A" 5
open "$LINE"
run dmsetup status v
reads 4 1
run dmsetup status v
reads 5 1
run dmsetup status v
run dmsetup table v
reads 0 16
reads 6 1
reads 0 1
run dmsetup suspend v
run dmsetup status v
run dmsetup load v --readonly --table "0 1024 verity $LINE"
run dmsetup status --inactive v
run dmsetup resume v
run dmsetup status v
run dmsetup load v --readonly --table "0 2048 linear $A 0"
quiet dmsetup remove v
open "$LINE 1 ignore_corruption"
reads 5 1
run dmsetup status v
run dmsetup table v
reads 0 16
quiet dmsetup remove v
open "$LINE 1 check_at_most_once"
reads 5 1
reads 4 1
damage "$A" 4
reads 4 1
run dmsetup status v
quiet dmsetup remove v
fill "$A" 0 2048 red

title 'a corrupted tree'
damage "$H" 4
open "$LINE"
reads 200 1
run dmsetup status v
reads 100 1
run dmsetup status v
quiet dmsetup remove v
open "$LINE 1 IGNORE_corruption"
reads 200 1
run dmsetup status v
quiet dmsetup remove v
damage "$H" 2
open "$LINE"
reads 100 1
reads 250 1
run dmsetup status v
quiet dmsetup remove v

title 'blocks of zeroes'
blkdiscard -z "$A"
fill "$A" 0 80 green
tree --salt=$SALT
LINE="1 $A $H 4096 4096 256 2 sha256 $ROOT $SALT"
open "$LINE 1 ignore_zero_blocks"
run dmsetup table v
damage "$A" 200
reads 200 1
reads 0 10
run dmsetup status v
damage "$A" 9
reads 9 1
run dmsetup status v
quiet dmsetup remove v

title 'features in the table'
for features in "0" "1 restart_on_corruption" "1 panic_on_corruption" "1 try_verify_in_tasklet" \
    "4 try_verify_in_tasklet Check_at_most_once ignore_zero_blocks restart_on_corruption" \
    "2 check_at_most_once check_at_most_once" "0 nonsense" "1 ignore_zero_blocks nonsense"; do
    open "$LINE $features"
    run dmsetup table v
    run dmsetup status v
    run dmsetup deps v
    run dmsetup message v 0 hello
    quiet dmsetup remove v
done

title 'writes'
open "$LINE"
run dd if=/dev/zero of="$DEVDIR/v" bs=4096 count=1 oflag=direct conv=notrunc status=none
reads 1 1
quiet dmsetup remove v

title 'part of it, and several lines'
run dmsetup create v --readonly --table "0 80 verity $LINE"
reads 8 1
quiet dmsetup remove v
run dmsetup create v --readonly --table "0 80 verity $LINE
80 80 verity $LINE"
reads 0 8
reads 8 10
run dmsetup table v
quiet dmsetup remove v
blkdiscard -z "$A"
fill "$A" 0 8 blue
ONE=$(head -c 4096 "$A" | sha256sum | cut -d' ' -f1)
run dmsetup create v --readonly --table "0 8 verity 1 $A $H 4096 4096 1 7 sha256 $ONE -"
reads 0 1
run dmsetup status v
quiet dmsetup remove v
run dmsetup ls
