# Part of demo.sh: without root there are no mounts; volumes are reached over NBD.

demo_user() {
    for tool in nbdcopy mke2fs debugfs; do
        command -v "$tool" >/dev/null || [ -x "/sbin/$tool" ] || {
            echo "this part of the demo needs $tool (packages libnbd-bin and e2fsprogs)" >&2; exit 1; }
    done
    PATH=$PATH:/sbin:/usr/sbin
    sparse_files
    say "Not root: the pool stands on the files themselves, and volumes are reached over NBD."
    run dmsetup create pool --table "0 20971520 thin-pool $work/metadata.img $work/data.img 128 65536 1 skip_block_zeroing"
    run dmsetup message pool 0 "create_thin 0"
    run dmsetup create base --table "0 2097152 thin $THINMAP_DEV_DIR/pool 0"
    run dmsetup status

    say "An ext4 file system, made in a file and copied to the volume through its NBD export."
    echo 'hello world, I am the base' > "$work/id.txt"
    edit_new "$work/fs.img"
    copy_in base
    used "$work/data.img"

    say "A snapshot, and a snapshot of the snapshot, each changed on its own."
    fork 1 0 base snap1 "I am snap1"
    fork 2 1 snap1 snap2 "I am snap2"

    say "Who sees what:"
    lines=0
    for who in base snap1 snap2; do
        copy_out "$who"
        echo "$who:"
        debugfs -R 'cat id.txt' "$work/fs.img" 2>/dev/null | sed 's/^/    /'
        lines=$((lines + 1))
        [ "$(debugfs -R 'cat id.txt' "$work/fs.img" 2>/dev/null | wc -l)" = "$lines" ] || { echo "wrong content in $who" >&2; exit 1; }
    done
    say "How little space is really used:"
    run dmsetup status
    used "$work/data.img"
    run dmsetup ls --tree
    say "Take it all down."
    run dmsetup remove snap2 snap1 base pool
    run "$thinmap" stop
}

uri() { echo "nbd+unix:///$1?socket=$THINMAP_RUN_DIR/nbd.sock"; }
copy_in() { run nbdcopy --flush "$work/fs.img" "$(uri "$1")"; }
copy_out() { rm -f "$work/fs.img"; nbdcopy "$(uri "$1")" "$work/fs.img"; }

edit_new() {
    truncate -s 1G "$1"
    run mke2fs -q -t ext4 "$1"
    debugfs -w -R "write $work/id.txt id.txt" "$1" 2>/dev/null >/dev/null
}

# fork NEW-ID ORIGIN-ID ORIGIN NEW TEXT
fork() {
    run dmsetup suspend "$3"
    run dmsetup message pool 0 "create_snap $1 $2"
    run dmsetup resume "$3"
    run dmsetup create "$4" --table "0 2097152 thin $THINMAP_DEV_DIR/pool $1"
    copy_out "$4"
    debugfs -R 'cat id.txt' "$work/fs.img" 2>/dev/null > "$work/id.txt"
    echo "$5" >> "$work/id.txt"
    debugfs -w -f - "$work/fs.img" >/dev/null 2>&1 <<EOF
rm id.txt
write $work/id.txt id.txt
EOF
    copy_in "$4"
}
