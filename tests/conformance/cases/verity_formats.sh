# verity: formats, algorithms, block sizes: table, limits, what is read.
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

# round FORMAT ALGORITHM DATA_BLOCK HASH_BLOCK SALT
round() {
    tree --format="$1" --hash="$2" --data-block-size="$3" --hash-block-size="$4" --salt="$5"
    open "$1 $A $H $3 $4 $((1048576 / $3)) $((8192 / $4)) $2 $ROOT $5"
    run dmsetup table v
    run blockdev --getro --getss --getpbsz --getsz "$DEVDIR/v"
    reads 0 1 1048576
    reads 255 1 4096
    run dmsetup status v
    quiet dmsetup remove v
}
round 1 sha256 4096 4096 $SALT
round 1 sha256 4096 4096 -
round 1 sha256 512 512 $SALT
round 1 sha256 1024 4096 -
round 1 sha256 4096 1024 $SALT
round 0 sha256 4096 4096 $SALT
round 1 sha1 4096 4096 $SALT
round 0 sha1 4096 4096 $SALT
round 0 sha1 2048 1024 -
round 1 sha512 4096 4096 ${SALT}00ff
round 1 sha512 4096 512 -
round 1 rmd160 4096 4096 $SALT
round 0 rmd160 4096 4096 $SALT
run dmsetup ls
