//! dockerd 20.10 with its devicemapper storage driver, through the shim.

use crate::support::turn;
use thinmap_tests::world::World;

pub const NEEDS: &[&str] = &[
    "/usr/sbin/dockerd",
    "/usr/bin/docker",
    "/usr/sbin/runc",
    "/bin/busybox",
    "/usr/sbin/mkfs.xfs",
];

/// `start OPTIONS` and `stop` are for the Docker daemon, `d` for its client; `bb` is an image of busybox and nothing else.
pub const DOCKER: &str = r#"
    D=$PWD/docker; mkdir -p $D
    export DOCKER_HOST=unix://$D/sock
    d() { /usr/bin/docker "$@"; }
    start() {
        thinmap run -- /usr/sbin/dockerd --data-root $D/root --exec-root $D/exec --host $DOCKER_HOST --pidfile $D/pid \
            --iptables=false --bridge=none --storage-driver devicemapper \
            --storage-opt dm.override_udev_sync_check=true "$@" >>$D/log 2>&1 &
        for try in $(seq 150); do
            d version >/dev/null 2>&1 && return 0
            sleep 0.2
        done
        echo "dockerd does not answer" >&2; tail -30 $D/log >&2; return 1
    }
    stop() {
        [ -e $D/pid ] || return 0
        local pid=$(cat $D/pid)
        kill $pid 2>/dev/null || true
        for try in $(seq 300); do [ -e /proc/$pid ] || break; sleep 0.1; done
        rm -f $D/pid
    }
    # What dockerd mounted in here, itself or for a container that did not end, goes with it.
    down() {
        d ps -q 2>/dev/null | xargs -r timeout 20 /usr/bin/docker kill >/dev/null 2>&1 || true
        stop
        awk '{print $5}' /proc/self/mountinfo | grep "^$D/" | sort -r | xargs -r umount -l 2>/dev/null || true
    }
    trap down EXIT
    image() {
        mkdir -p rootfs/bin; cp /bin/busybox rootfs/bin/
        for applet in sh cat dd sync sleep ls mkdir rm; do ln -sf busybox rootfs/bin/$applet; done
        tar -C rootfs -c . | d import - bb >/dev/null
    }
    run() { d run --rm --network none "$@"; }
    info() { d info 2>/dev/null | sed -n "s/^ *$1: //p"; }
"#;

fn docker(world: &World, script: &str) -> String {
    world.sh(&format!("{DOCKER}\n{script}"))
}

#[test]
fn docker_on_its_own_loop_devices_makes_and_removes_fifty_of_everything() {
    let name = "docker_on_its_own_loop_devices_makes_and_removes_fifty_of_everything";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = docker(
        &world,
        r#"
        start
        image
        info 'Storage Driver'; info 'Pool Blocksize'; info 'Backing Filesystem'
        info 'Data Space Total'; info 'Metadata Space Total'
        pool=$(info 'Pool Name')
        set -- $(dmsetup status $pool); blocks=${6%/*}
        # Docker prints units of 1000 with four digits.
        expected=$(awk "BEGIN { printf \"%.4g\", $blocks * 65536 / 1e6 }")
        case $(info 'Data Space Used') in ${expected}MB) ;; *) echo "used: $(info 'Data Space Used'), $blocks blocks" ;; esac
        space() { du -B1M $D/root/devicemapper/devicemapper/data | cut -f1; }
        empty=$(space); empty_blocks=$(dmsetup status $pool | cut -d' ' -f6)
        one() {
            d run --network none --name c$1 bb /bin/sh -c "echo $1 > /number; dd if=/dev/urandom of=/big bs=1M count=2 2>/dev/null"
            d commit c$1 image$1 >/dev/null
            test "$(run image$1 /bin/cat /number)" = $1
            d diff c$1 | grep -qx 'A /number'
        }
        export -f one run d; export DOCKER_HOST
        seq 50 | xargs -P 6 -I {} bash -euc 'one {}'
        test $(d ps -aq | wc -l) = 50; test $(d images -q | wc -l) = 51
        full=$(space); test $full -gt $((empty + 100)) || echo "space: $empty, full $full"
        # Across a restart of dockerd, all is there.
        stop; start
        test "$(run image37 /bin/cat /number)" = 37
        test "$(d start -a c12; d diff c12 | grep -c number)" = 1
        d ps -aq | xargs -P 6 -n 5 /usr/bin/docker rm >/dev/null
        seq 50 | sed 's/^/image/' | xargs -P 6 -n 5 /usr/bin/docker rmi >/dev/null
        info 'Deferred Deleted Device Count'
        dmsetup ls | sort | sed "s/$pool/POOL/" | cut -f1
        # As in the kernel, a block that stops being shared by being overwritten is free without being discarded.
        after=$(space); test $after -lt $((empty + (full - empty) / 3)) || echo "space: $empty, full $full, after $after"
        test $(dmsetup status $pool | cut -d' ' -f6) = $empty_blocks
        d rmi bb >/dev/null; stop
        # dockerd leaves its pool to its next start.
        dmsetup remove_all
        "#,
    );
    assert_eq!(
        said,
        "devicemapper\n65.54kB\nxfs\n107.4GB\n2.147GB\n0\nPOOL\n"
    );
    world.end();
}

/// A pool of our own, `docker-pool`, 2 GiB.
pub const POOL: &str = r#"
    truncate -s 8G data.img; truncate -s 64M meta.img
    sectors=$((2 << 21))
    pool() { dmsetup $1 docker-pool --table "0 $sectors thin-pool $PWD/meta.img $PWD/data.img 128 0 1 error_if_no_space"; }
    pool create
    on_pool="--storage-opt dm.thinpooldev=docker-pool --storage-opt dm.basesize=1G --storage-opt dm.fs=ext4"
"#;

#[test]
fn docker_on_a_pool_of_ours_survives_restarts_of_both_daemons() {
    let name = "docker_on_a_pool_of_ours_survives_restarts_of_both_daemons";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = docker(
        &world,
        &format!(
            r#"{POOL}
        start $on_pool
        image
        info 'Backing Filesystem'; info 'Pool Name'; info 'Data Space Total'
        d run --network none --name keep bb /bin/sh -c 'echo kept > /file'
        stop
        # The devices that dockerd left go with our daemon; the pool is the admin's to bring back.
        thinmap stop
        pool create
        start $on_pool
        d start -a keep; d cp keep:/file - | tar -xO
        d commit keep kept > /dev/null; run kept /bin/cat /file
        # A container that still runs cannot be pulled from under: removal by force ends it first.
        d run -d --network none --name busy bb /bin/sleep 1000 > /dev/null
        d rm busy 2>&1 | grep -c 'cannot remove a running container' || true
        d rm -f busy
        d rm keep > /dev/null; d rmi kept bb > /dev/null
        stop
        dmsetup ls | cut -f1
        dmsetup remove_all
        "#
        ),
    );
    assert_eq!(
        said,
        "ext4\ndocker-pool\n2.147GB\nkept\nkept\n1\nbusy\ndocker-pool\n"
    );
    world.end();
}

#[test]
fn a_full_pool_refuses_containers_and_recovers_when_it_grows() {
    let name = "a_full_pool_refuses_containers_and_recovers_when_it_grows";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = docker(
        &world,
        &format!(
            r#"{POOL}
        start $on_pool --storage-opt dm.min_free_space=40%
        image
        fill() {{ d run --network none --name $1 bb /bin/sh -c "dd if=/dev/urandom of=/big bs=1M count=$2 conv=fsync 2>&1; sync"; }}
        fill first 900 > /dev/null
        fill second 500 > /dev/null
        # Less than 40 % is free now: dockerd makes no new container.
        d create bb /bin/sh > created 2>&1 || true; grep -o 'less than minimum required' created | head -1
        stop; start $on_pool --storage-opt dm.min_free_space=0%
        fill third 900 > third.out 2>&1 || true
        # Which of its writes fails first, and so how the container says it, is a matter of when write-back runs.
        grep -qi -e 'no space left' -e 'i/o error' -e 'input/output error' -e 'read-only file system' third.out \
            && echo 'the third container saw the end' || tail -c 1000 third.out
        dmsetup status docker-pool | cut -d' ' -f8
        # Room again: more data, and the pool takes writes by itself.
        sectors=$((6 << 21)); pool reload; dmsetup resume docker-pool
        dmsetup status docker-pool | cut -d' ' -f8
        d rm -f third > /dev/null
        fill fourth 200 > /dev/null; d diff fourth
        # What was there before the end is whole.
        d start -a first > /dev/null; d ps -aq | xargs /usr/bin/docker rm -f > /dev/null; d rmi bb > /dev/null
        stop
        dmsetup ls | cut -f1
        dmsetup remove_all
        "#
        ),
    );
    assert_eq!(
        said,
        "less than minimum required\nthe third container saw the end\nout_of_data_space\nrw\nA /big\ndocker-pool\n"
    );
    world.end();
}
