# A mirror with its log on a device, made, changed and recovered by whoever has `dmsetup`: the kernel or thinmap.
#
# Sourced after conformance/prelude.sh, with IMAGES naming a directory that holds a.img, b.img (the legs) and log.img, and copies of
# all three of a moment when a write was on its way (crash-a.img and so on).

SECTORS=16384
REGION=64
# Regions: 256, so 32 bytes of bits.

loops() {
    for image in a b log; do
        loop=$(losetup -f --show "$IMAGES/$1$image.img") || echo "= no loop device"
        LOOPS="$loop $LOOPS"
        eval "$image=$loop"
    done
}

# mirror LEG_B WORDS...: the log's further words
mirror() {
    leg=$1
    shift
    quiet dmsetup create m --table "0 $SECTORS mirror disk $((2 + $#)) $log $REGION $* 2 $a 0 $leg 0 1 handle_errors"
}

synced() {
    for _ in $(seq 600); do
        case $(dmsetup status m) in *" 256/256 "*) return ;; esac
        sleep 0.05
    done
    echo "= not in sync: $(dmsetup status m)"
}

bits() { od -A n -t x1 -v -j 1024 -N 32 "$IMAGES/$1log.img" | tr -d ' \n'; echo; }

same() {
    if cmp -s "$IMAGES/$1a.img" "$IMAGES/$1b.img"; then
        echo "legs $1: right"
    else
        echo "legs $1: WRONG"
    fi
}

close_images() {
    tidy_up
    sync
}

make_images() {
    for image in a b; do truncate -s $((SECTORS * 512)) "$IMAGES/$image.img"; done
    truncate -s 1M "$IMAGES/log.img"
    loops
    fill "$a" 0 $SECTORS red
    mirror "$b"
    synced
    fill "$DEVDIR/m" 1000 500 blue
    close_images
    same
    echo "bits $(bits)" | tee "$IMAGES/manifest"
}

# check_images: nothing is to be recovered; a leg that was changed behind the log's back shows it.
check_images() {
    loops
    fill "$b" 0 1 odd
    mirror "$b"
    dmsetup status m
    holds "$b" 0 1 odd
    holds "$DEVDIR/m" 1000 500 blue
    fill "$DEVDIR/m" 0 100 green
    close_images
    same
    echo "bits $(bits)"
    loops
    mirror "$b"
    fill "$DEVDIR/m" 0 100 red
    close_images
    same
}

# crash: copies of a moment when one leg has a write and the other has not, and never will.
crash() {
    loops
    quiet dmsetup create leg --table "0 $SECTORS linear $b 0"
    mirror "$DEVDIR/leg"
    quiet dmsetup load leg --table "0 $SECTORS error"
    quiet dmsetup suspend --noflush leg
    quiet dmsetup resume leg
    pattern white 8 >"$WORK/white"
    dd if="$WORK/white" of="$DEVDIR/m" bs=4096 seek=500 oflag=direct conv=notrunc status=none 2>/dev/null &
    for _ in $(seq 400); do
        case $(dmsetup status m) in *" AD "*) break ;; esac
        sleep 0.05
    done
    dmsetup status m
    sync
    for image in a b log; do cp "$IMAGES/$image.img" "$IMAGES/crash-$image.img"; done
    quiet dmsetup load m --table "0 $SECTORS linear $a 0"
    quiet dmsetup suspend --noflush m
    quiet dmsetup resume m
    wait
    close_images
    echo "bits $(bits crash-)"
    # The next one goes on from two legs that are the same.
    cp "$IMAGES/a.img" "$IMAGES/b.img"
    cp "$IMAGES/crash-log.img" "$IMAGES/log.img"
    loops
    mirror "$b"
    synced
    close_images
}

# recover: the copies. Only the region of that write is copied: what was changed elsewhere stays.
recover() {
    loops crash-
    fill "$b" 100 1 odd
    mirror "$b"
    synced
    holds "$b" 4000 8 white
    holds "$b" 100 1 odd
    fill "$DEVDIR/m" 64 64 red
    close_images
    same crash-
    echo "bits $(bits crash-)"
}
