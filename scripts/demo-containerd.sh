#!/usr/bin/env bash
# Debian's containerd, unmodified, with its devmapper snapshotter on thinmap: with Debian's dmsetup, then with ours.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/demo-clients.sh
own_namespaces scripts/demo-containerd.sh "$@"
own_world containerd
export CONTAINERD_ADDRESS=$work/containerd.sock CONTAINERD_SNAPSHOTTER=devmapper

clean_up() {
    status=$?
    set +e
    [ $status = 0 ] || grep -vE 'level=(info|debug)' "$work/containerd.log" 2>/dev/null | tail -n 20 >&2
    ctr tasks ls --quiet 2>/dev/null | xargs -r -n1 timeout 5 ctr tasks rm --force >/dev/null 2>&1
    stop_containerd
    # What runs on without containerd, and what is mounted for it.
    pkill -KILL -f "^/usr/bin/containerd-shim-runc-v2 .* -address $work/"
    umount -l "$work/mount" 2>/dev/null
    awk -v work="$work/state/" 'index($5, work) == 1 {print $5}' /proc/self/mountinfo | sort -r | xargs -r umount -l
    leave_world
    [ $status = 0 ] || echo "the containerd demo failed (exit code $status)" >&2
    exit $status
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

containerd=
# start_containerd [PROGRAM...]: through a program, or by itself.
start_containerd() {
    printf '%s$%s containerd --config config.toml &%s\n' "$bold" "$(typed "$@")" "$plain"
    # Out of the way of a Ctrl-C, which is for the demo.
    setsid "$@" containerd --config "$work/config.toml" >>"$work/containerd.log" 2>&1 &
    containerd=$!
    until ctr version >/dev/null 2>&1; do
        kill -0 $containerd 2>/dev/null || wrong "containerd ended"
        sleep 0.1
    done
    [ "$(ctr plugins ls | awk '$2 == "devmapper" {print $4}')" = ok ] || wrong "the devmapper snapshotter does not run"
}
stop_containerd() {
    [ -n "$containerd" ] || return 0
    kill $containerd
    wait $containerd || true
    containerd=
}

# The file's space on the host, and the pool's used data blocks.
used_kib() { sync -f "$work/data.img"; du -k "$work/data.img" | cut -f1; }
used() { printf '%s MiB of the data file are really used on the host\n' $(($(used_kib) / 1024)); }
blocks() { thinmap run -- dmsetup status --target thin-pool | cut -d' ' -f7; }
# What nobody refers to any more; containerd does so by itself, sooner or later.
collect_garbage() { quietly ctr leases delete --sync "$(ctr leases create)"; }
# containerd removes snapshots in the background (async_remove).
only_the_pool_is_left() {
    for try in $(seq 200); do
        [ "$(thinmap run -- dmsetup ls | cut -f1)" != pool ] || [ "$(blocks)" != "$no_blocks" ] || return 0
        sleep 0.1
    done
    thinmap run -- dmsetup ls
    wrong "after twenty seconds there is more than the pool, or $(blocks) blocks are used"
}
# Not by what comes out of ctr: on a busy machine its output may be lost.
is_called() { echo "cat /name; [ \$(cat /name) = $1 ]"; }
busy() { echo "echo $1 > /name; dd if=/dev/urandom of=/big bs=1M count=$2 2>/dev/null; sync; echo > /ready; while :; do /bin/busybox sleep 1; done"; }
# start NAME MIB: a container that writes and goes on.
start() { quietly ctr run --detach --cgroup "/$cgroup/$1" $image "$1" sh -c "$(busy "$@")"; }
ready() { until ctr tasks exec --exec-id look "$1" cat /ready >/dev/null 2>&1; do sleep 0.1; done; }

say "A pool for containerd, which makes none itself: Debian's dmsetup on two sparse files."
has_no_device_mapper
run truncate -s 10G "$work/data.img"
run truncate -s 64M "$work/meta.img"
run thinmap run -- dmsetup --version
run thinmap run -- dmsetup create pool \
    --table "0 20971520 thin-pool $work/meta.img $work/data.img 128 0 2 skip_block_zeroing error_if_no_space"
no_blocks=$(blocks)

say "containerd, as Debian ships it, with what its devmapper snapshotter must be told. It runs the dmsetup in its path: Debian's."
cat >"$work/config.toml" <<CONFIG
version = 2
root = "$work/root"
state = "$work/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$CONTAINERD_ADDRESS"
[plugins."io.containerd.snapshotter.v1.devmapper"]
  root_path = "$work/devmapper"
  pool_name = "pool"
  base_image_size = "512MB"
  discard_blocks = true
  async_remove = true
CONFIG
sed -n '/devmapper/,$p' "$work/config.toml"
start_containerd thinmap run --
run ctr version
ctr plugins ls | grep -E '^TYPE|devmapper'

say "A small image, made on the spot of busybox alone, imported and unpacked into a thin device."
image=docker.io/library/small:latest
busybox_root
tar -C "$work/rootfs" -cf "$work/layer.tar" .
digest=$(sha256sum <"$work/layer.tar" | cut -d' ' -f1)
cat >"$work/config.json" <<JSON
{"architecture":"amd64","os":"linux","config":{"Cmd":["/bin/sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:$digest"]}}
JSON
echo '[{"Config":"config.json","RepoTags":["small:latest"],"Layers":["layer.tar"]}]' >"$work/manifest.json"
tar -C "$work" -cf "$work/small.tar" config.json manifest.json layer.tar
run ctr images import --no-unpack "$work/small.tar"
run ctr images ls -q
empty=$(used_kib)

say "Containers that write, at once, without a network. Each gets a thin snapshot of the image."
start ann 60
start bob 1
start cyd 60
for name in ann bob cyd; do ready $name; done
run ctr tasks ls
run ctr snapshots ls
run thinmap run -- dmsetup ls
run ctr tasks exec --exec-id see cyd sh -c "$(is_called cyd)"

say "The pool's figures: used blocks of metadata, and of data at 64 KiB."
run thinmap run -- dmsetup status pool
used
full=$(used_kib)

say "A container's snapshot is committed; another container gets it for its root, and sees what the first one wrote."
run ctr tasks rm --force bob
run ctr snapshots commit written bob
quietly ctr containers rm --keep-snapshot bob
quietly ctr snapshots prepare again written
mkdir "$work/mount"
device=$(ctr snapshots mounts "$work/mount" again | grep -o '/dev/mapper/[^ ]*')
run mount "$device" "$work/mount"
run ctr run --rm --cgroup "/$cgroup/dan" --rootfs "$work/mount" dan /bin/sh -c "$(is_called bob)"
run umount "$work/mount"

# The image goes together with the last container: containerd discards the blocks of active devices, and the image has none.
# Collected after its containers, its own 28 MiB would be free in the pool, but stay on the host until they are used again.
say "All of it removed. Its devices go, and the space goes back to the pool (discard_blocks) and to the host."
run ctr snapshots rm again
run ctr snapshots rm written
run ctr images rm $image
run ctr tasks rm --force ann cyd
run ctr containers rm ann cyd
collect_garbage
only_the_pool_is_left
run ctr snapshots ls
run thinmap run -- dmsetup ls
run thinmap run -- dmsetup status pool
used
after=$(used_kib)
[ "$full" -gt $((empty + 100 * 1024)) ] && [ "$after" -lt $((empty + 20 * 1024)) ] \
    || wrong "the space did not come back: $empty KiB empty, $full KiB full, $after KiB after"

say "Once more with thinmap's own dmsetup first in the path: containerd runs as it is, nothing is preloaded."
stop_containerd
run ln -s thinmap "$work/bin/dmsetup"
start_containerd
quietly ctr images import --no-unpack "$work/small.tar"
start eve 40
start fay 40
for name in eve fay; do ready $name; done
run dmsetup ls --tree
run dmsetup status pool
run ctr tasks exec --exec-id see eve sh -c "$(is_called eve)"
quietly ctr images rm $image
quietly ctr tasks rm --force eve fay
quietly ctr containers rm eve fay
collect_garbage
only_the_pool_is_left
used

say "Take it all down."
stop_containerd
run dmsetup remove pool
run thinmap stop
nothing_left

say "Done, and nothing is left behind. docs/clients/containerd.md says what else works and what differs."
