//! containerd 1.6 with its devmapper snapshotter, which runs the `dmsetup` on its PATH: Debian's through the shim, and ours.

use crate::support::turn;
use thinmap_tests::world::World;

const NEEDS: &[&str] = &[
    "/usr/bin/containerd",
    "/usr/bin/ctr",
    "/usr/sbin/runc",
    "/bin/busybox",
    "/usr/sbin/mkfs.ext4",
];

/// `start` and `stop` are for containerd, which needs its pool first; `c` is for its client. `img.tar` is an image `bb` of
/// busybox and nothing else.
const CONTAINERD: &str = r#"
    D=$PWD/containerd; mkdir -p $D/bin
    truncate -s 8G data.img; truncate -s 64M meta.img
    blocks=16384
    pool() { dmsetup $1 ctrd-pool --table "0 $((blocks * 128)) thin-pool $PWD/meta.img $PWD/data.img 128 0 2 skip_block_zeroing error_if_no_space"; }
    used() { dmsetup status ctrd-pool | cut -d' ' -f6; }
    cat > $D/config.toml <<CONFIG
version = 2
root = "$D/root"
state = "$D/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "$D/sock"
[plugins."io.containerd.snapshotter.v1.devmapper"]
  root_path = "$D/devmapper"
  pool_name = "ctrd-pool"
  base_image_size = "512MB"
  discard_blocks = true
  async_remove = true
CONFIG
    c() { /usr/bin/ctr --address $D/sock "$@"; }
    start() {
        "$@" /usr/bin/containerd --config $D/config.toml >>$D/log 2>&1 &
        containerd=$!
        for try in $(seq 100); do
            c version >/dev/null 2>&1 && break
            sleep 0.1
        done
        c plugins ls | awk '$2 == "devmapper" { print $4 }'
    }
    stop() {
        [ -n "${containerd:-}" ] || return 0
        kill $containerd 2>/dev/null || true; wait $containerd 2>/dev/null || true; containerd=
    }
    down() {
        stop
        awk '{print $5}' /proc/self/mountinfo | grep "^$D/" | sort -r | xargs -r umount -l 2>/dev/null || true
    }
    trap down EXIT
    image() {
        mkdir -p rootfs/bin; cp /bin/busybox rootfs/bin/
        for applet in sh cat dd sync ls; do ln -sf busybox rootfs/bin/$applet; done
        tar -C rootfs -cf layer.tar .
        local digest=$(sha256sum < layer.tar | cut -d' ' -f1)
        echo '{"architecture":"amd64","os":"linux","config":{"Cmd":["/bin/sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:'$digest'"]}}' > config.json
        echo '[{"Config":"config.json","RepoTags":["bb:latest"],"Layers":["layer.tar"]}]' > manifest.json
        tar -cf img.tar config.json manifest.json layer.tar
    }
    BB=docker.io/library/bb:latest
    s() { c snapshots --snapshotter devmapper "$@"; }
    # ctr prints a mount command, with an empty list of options that mount does not take.
    at() { mount "$(s mounts m $1 | grep -o '/dev/mapper/[^ ]*')" m; }
    # A removal that finds its device in use for a moment more is tried again at the next garbage collection, which nothing else
    # asks for here.
    collect() { c leases create --id nudge > /dev/null; c leases rm --sync nudge > /dev/null; }
    # Removal goes on in the background. A containerd that is stopped meanwhile takes what is half removed for faulty when it
    # starts again and leaves it there for good. So until no device is active but the pool and those of active snapshots.
    idle() {
        for try in $(seq 100); do
            [ $(dmsetup ls | wc -l) = $((1 + $(s ls | grep -c Active))) ] && sleep 0.3 && return 0
            sleep 0.1; collect
        done
        dmsetup ls; s ls; tail -20 $D/log
    }
    # Until nothing but the pool is left, or for ten seconds.
    settle() {
        for try in $(seq 100); do
            [ "$(dmsetup ls | cut -f1)" = ctrd-pool ] && [ "$(used)" = "$1" ] && return 0
            sleep 0.1; collect
        done
        dmsetup ls; used; tail -20 $D/log
    }
"#;

/// The whole life of an image and its containers; `how` runs containerd.
fn life(world: &World, how: &str) -> String {
    world.sh(&format!(
        r#"{CONTAINERD}
        pool create
        empty=$(used)
        image
        start {how}
        c images import --snapshotter devmapper img.tar > /dev/null
        one() {{
            c run --rm --snapshotter devmapper $BB run$1 /bin/sh -c "echo $1 > /number; dd if=/dev/urandom of=/big bs=1M count=4 2>/dev/null; cat /number"
        }}
        for n in 1 2 3 4 5 6 7 8; do one $n > out.$n & pids="${{pids:-}} $!"; done
        for pid in $pids; do wait $pid; done
        cat out.?
        # A snapshot written and committed carries what was written; its child sees it.
        chain=$(s ls | awk '$NF == "Committed" {{ print $1 }}')
        s prepare work $chain > /dev/null
        mkdir m; at work; echo committed > m/file; umount m
        s commit layer work; s prepare child layer > /dev/null
        at child; cat m/file; umount m
        # containerd starts again and knows its snapshots.
        idle; stop; start {how}
        at child; cat m/file; umount m
        s rm child; s rm layer
        c images rm --sync $BB > /dev/null
        settle $empty
        stop
        dmsetup remove ctrd-pool
        "#
    ))
}

const LIFE: &str = "ok\n1\n2\n3\n4\n5\n6\n7\n8\ncommitted\nok\ncommitted\n";

#[test]
fn containerd_with_debians_dmsetup_through_the_shim() {
    let Some((world, _turn)) = turn("containerd_with_debians_dmsetup_through_the_shim", NEEDS)
    else {
        return;
    };
    // Without our own dmsetup before it on the PATH.
    let said = life(
        &world,
        "env PATH=/usr/sbin:/usr/bin:/sbin:/bin $(command -v thinmap) run --",
    );
    assert_eq!(said, LIFE);
    world.end();
}

#[test]
fn containerd_with_our_dmsetup_on_its_path() {
    let Some((world, _turn)) = turn("containerd_with_our_dmsetup_on_its_path", NEEDS) else {
        return;
    };
    assert_eq!(life(&world, "env"), LIFE);
    world.end();
}

#[test]
fn containerd_over_a_restart_of_thinmap_and_a_full_pool() {
    let name = "containerd_over_a_restart_of_thinmap_and_a_full_pool";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = world.sh(&format!(
        r#"{CONTAINERD}
        blocks=700; pool create
        image
        start env
        c images import --snapshotter devmapper img.tar > /dev/null
        chain=$(s ls | awk '$NF == "Committed" {{ print $1 }}')
        s prepare work $chain > /dev/null
        mkdir m; at work; echo kept > m/file; umount m
        # Its devices go with our daemon; containerd makes them anew from its own records.
        stop; thinmap stop --force; pool create; start env
        at work; cat m/file; umount m
        # Full: the write fails, what was there stays, and more room is enough.
        at work; head -c 64M /dev/urandom > m/big 2>/dev/null && sync -f m 2>/dev/null || echo full; cat m/file; umount m
        blocks=16384; pool reload; dmsetup resume ctrd-pool
        at work; head -c 64M /dev/zero > m/big; sync -f m; cat m/file; umount m
        s rm work; c images rm --sync $BB > /dev/null
        settle 0/16384
        stop
        dmsetup remove ctrd-pool
        "#
    ));
    assert_eq!(said, "ok\nok\nkept\nfull\nkept\nkept\n");
    world.end();
}
