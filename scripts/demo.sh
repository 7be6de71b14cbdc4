#!/usr/bin/env bash
# The classic thin-provisioning session, on a machine whose kernel needs no device mapper.
# As root: real block devices, file systems and mounts. As anybody else: the same over NBD.
set -euo pipefail
cd "$(dirname "$0")/.."
thinmap=$PWD/target/release/thinmap
work=$(mktemp -d /tmp/thinmap-demo.XXXXXX)
mkdir "$work/bin" "$work/run"
ln -s "$thinmap" "$work/bin/dmsetup"
export PATH=$work/bin:$PATH
# A world of its own: a thinmap that already runs on this machine is not touched.
export THINMAP_RUN_DIR=$work/run/thinmap THINMAP_DEV_DIR=$work/mapper

. scripts/demo-words.sh

loops=() mounts=()
clean_up() {
    status=$?
    set +e
    for mount in "${mounts[@]}"; do mountpoint -q "$mount" && umount "$mount"; done
    "$thinmap" stop --force >/dev/null 2>&1
    for loop in "${loops[@]}"; do losetup -d "$loop" 2>/dev/null; done
    rm -rf "$work"
    [ $status = 0 ] || echo "the demo failed (exit code $status)" >&2
    exit $status
}
trap clean_up EXIT

# "real" space of a sparse file, and of the two together
used() { du -h --apparent-size "$1" | cut -f1 | tr -d '\n'; printf ' apparent, '; du -h "$1" | cut -f1 | tr -d '\n'; echo " really used: ${1##*/}"; }

sparse_files() {
    say "A pool lives in two sparse files: 10 GiB for data, 1 TiB (far too much) for metadata."
    run dd if=/dev/zero of="$work/data.img" bs=1K count=1 seek=10M status=none
    run dd if=/dev/zero of="$work/metadata.img" bs=1K count=1 seek=1G status=none
    used "$work/data.img"
    used "$work/metadata.img"
}

. scripts/demo-root.sh
. scripts/demo-user.sh

if [ "$(id -u)" = 0 ] && [ -e /dev/fuse ] && [ -e /dev/loop-control ]; then
    demo_root
else
    demo_user
fi

say "Done, and nothing is left behind. README.md, 'Your own session', goes on from here."
