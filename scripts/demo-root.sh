# Part of demo.sh: as root, with block devices and mounts.

demo_root() {
    mapper=$THINMAP_DEV_DIR
    sparse_files
    say "losetup makes block devices of them, as the article does."
    for file in metadata data; do
        loop=$(losetup -f --show "$work/$file.img")
        loops+=("$loop")
        printf '$ losetup %s %s\n' "$loop" "$file.img"
    done
    metadata=${loops[0]} data=${loops[1]}

    say "A thin pool: 64 KiB blocks, an event when 65536 of them are left. dmsetup here is thinmap."
    has_no_device_mapper
    run dmsetup create hchen-thin-pool --table "0 20971522 thin-pool $metadata $data 128 65536 1 skip_block_zeroing"
    run dmsetup status hchen-thin-pool

    say "A thin volume of 1 GiB, with ext4 on it. It takes no space until it is written."
    run dmsetup message "$mapper/hchen-thin-pool" 0 "create_thin 0"
    run dmsetup create hchen-thin-volumn-001 --table "0 2097152 thin $mapper/hchen-thin-pool 0"
    run mkfs.ext4 -q "$mapper/hchen-thin-volumn-001"
    mount_as base hchen-thin-volumn-001
    run bash -c "echo 'hello world, I am the base' > $work/mnt/base/id.txt"
    run sync -f "$work/mnt/base"
    used "$work/data.img"

    say "A snapshot of the mounted volume: suspend freezes the file system, so the snapshot is clean."
    snapshot 1 0 hchen-thin-volumn-001
    mount_as snap1 mysnap1
    run bash -c "echo 'I am snap1' >> $work/mnt/snap1/id.txt; echo one > $work/mnt/snap1/snap1.txt"

    say "A snapshot of the snapshot."
    snapshot 2 1 mysnap1
    mount_as snap2 mysnap2
    run bash -c "echo 'I am snap2' >> $work/mnt/snap2/id.txt; echo two > $work/mnt/snap2/snap2.txt"

    say "Who sees which file:"
    for who in base snap1 snap2; do
        printf '%-6s' "$who"; (cd "$work/mnt/$who" && printf ' %s' *.txt; echo)
        sed 's/^/           /' "$work/mnt/$who/id.txt"
    done
    expect base 1; expect snap1 2; expect snap2 3

    say "How little space is really used, for three file systems of 1 GiB each:"
    run dmsetup status
    sync -f "$work/mnt/base"
    used "$work/data.img"
    used "$work/metadata.img"

    say "The tree of devices:"
    run dmsetup ls --tree
    cat <<TREE
and of snapshots:
    base (thin 0)
    └─ snap1 (thin 1), a snapshot of base
       └─ snap2 (thin 2), a snapshot of snap1
TREE

    say "fstrim gives space back, down to the sparse file on the host:"
    run dd if=/dev/urandom of="$work/mnt/base/big" bs=1M count=200 status=none conv=fsync
    used "$work/data.img"
    run rm "$work/mnt/base/big"
    # ext4 frees blocks when its journal commits; only then are they there to be trimmed.
    run sync -f "$work/mnt/base"
    run fstrim "$work/mnt/base"
    dmsetup status hchen-thin-pool >/dev/null
    used "$work/data.img"
    left=$(du -k "$work/data.img" | cut -f1)
    [ "$left" -lt 102400 ] || { echo "the space did not come back: $left KiB" >&2; exit 1; }

    say "Take it all down."
    for mount in "${mounts[@]}"; do run umount "$mount"; done
    run dmsetup remove mysnap2 mysnap1 hchen-thin-volumn-001 hchen-thin-pool
    run "$thinmap" stop
}

mount_as() {
    mkdir -p "$work/mnt/$1"
    mounts=("$work/mnt/$1" "${mounts[@]}")
    run mount "$THINMAP_DEV_DIR/$2" "$work/mnt/$1"
}

# snapshot NEW-ID ORIGIN-ID ORIGIN-DEVICE: the caller suspends the origin, as device mapper asks.
snapshot() {
    run dmsetup suspend "$THINMAP_DEV_DIR/$3"
    run dmsetup message "$THINMAP_DEV_DIR/hchen-thin-pool" 0 "create_snap $1 $2"
    run dmsetup resume "$THINMAP_DEV_DIR/$3"
    run dmsetup create "mysnap$1" --table "0 2097152 thin $THINMAP_DEV_DIR/hchen-thin-pool $1"
}

# expect WHO LINES: the demo is a test too
expect() {
    lines=$(wc -l < "$work/mnt/$1/id.txt")
    [ "$lines" = "$2" ] || { echo "$1 has $lines lines in id.txt, not $2" >&2; exit 1; }
}
