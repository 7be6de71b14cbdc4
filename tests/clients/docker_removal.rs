//! dockerd 20.10 with its devicemapper storage driver: both file systems on both kinds of pool, and removal that must wait.
//! Whatever was made is gone from the pool and from device mapper at the end.

use crate::docker::{DOCKER, NEEDS, POOL};
use crate::support::turn;
use thinmap_tests::world::World;

/// `pooled`: the device names, with the pool's as POOL and the base device's as BASE, and the pool's used data blocks.
const LOOK: &str = r#"
    pool_name() { info 'Pool Name'; }
    used() { dmsetup status $(pool_name) | cut -d' ' -f6; }
    devices() { dmsetup ls | cut -f1 | sed "s/^$(pool_name)\$/POOL/" | sort; }
    # Until a command says so, or for a minute.
    until_says() {
        local wanted=$1; shift
        for try in $(seq 300); do [ "$("$@")" = "$wanted" ] && return 0; sleep 0.2; done
        echo "$* says $("$@"), not $wanted"
    }
"#;

fn docker(world: &World, script: &str) -> String {
    world.sh(&format!("{DOCKER}\n{LOOK}\n{script}"))
}

/// An image, a container that writes, a commit of it, a container of that; then nothing of them.
const LIFE: &str = r#"
    image
    info 'Backing Filesystem'
    before=$(used)
    d run --network none --name writes bb /bin/sh -c 'echo written > /file; dd if=/dev/urandom of=/big bs=1M count=20 2>/dev/null; sync'
    d diff writes | sort | tr '\n' ' '; echo
    d commit writes committed > /dev/null
    run committed /bin/cat /file
    d run -d --network none --name runs committed /bin/sleep 1000 > /dev/null
    stop; start "$@"
    d start runs > /dev/null; d exec runs /bin/cat /file
    d rm -f runs writes > /dev/null; d rmi committed > /dev/null
    devices
    test "$(used)" = $before || echo "$before blocks before, $(used) after"
    d rmi bb > /dev/null
    stop; dmsetup remove_all
"#;

fn life(world: &World, options: &str) -> String {
    docker(world, &format!("set -- {options}\nstart \"$@\"\n{LIFE}"))
}

#[test]
fn docker_on_its_own_loop_devices_with_ext4() {
    let name = "docker_on_its_own_loop_devices_with_ext4";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = life(
        &world,
        "--storage-opt dm.fs=ext4 --storage-opt dm.basesize=1G",
    );
    assert_eq!(said, "ext4\nA /big A /file \nwritten\nwritten\nPOOL\n");
    world.end();
}

#[test]
fn docker_on_a_pool_of_ours_with_xfs() {
    let Some((world, _turn)) = turn("docker_on_a_pool_of_ours_with_xfs", NEEDS) else {
        return;
    };
    world.sh(&POOL.replace("pool create", "pool create; exit"));
    let options = "--storage-opt dm.thinpooldev=docker-pool --storage-opt dm.basesize=1G --storage-opt dm.fs=xfs \
                   --storage-opt dm.blkdiscard=true";
    let said = life(&world, options);
    assert_eq!(said, "xfs\nA /big A /file \nwritten\nwritten\nPOOL\n");
    world.end();
}

/// A container is removed while another mount namespace still has its file system mounted, as happens to every program
/// that starts while it runs. The device can go only when that one lets go.
#[test]
fn a_removed_container_whose_mount_is_held_leaves_no_device() {
    let name = "a_removed_container_whose_mount_is_held_leaves_no_device";
    let Some((world, _turn)) = turn(name, NEEDS) else {
        return;
    };
    let said = docker(
        &world,
        &format!(
            r#"{POOL}
        start $on_pool --storage-opt dm.use_deferred_removal=true --storage-opt dm.use_deferred_deletion=true
        image
        info 'Deferred Removal Enabled'; info 'Deferred Deletion Enabled'
        before=$(used)
        d run -d --network none --name held bb /bin/sh -c 'dd if=/dev/urandom of=/big bs=1M count=20 2>/dev/null; sync; exec sleep 1000' > /dev/null
        until d diff held | grep -q big; do sleep 0.1; done
        unshare --mount --propagation private sleep 1000 & holder=$!
        until [ "$(readlink /proc/$holder/ns/mnt)" != "$(readlink /proc/self/ns/mnt)" ] 2>/dev/null; do sleep 0.02; done
        d rm -f held
        device=$(devices | grep -v POOL)
        dmsetup info $device | sed -n 's/^State: *//p'
        info 'Deferred Deleted Device Count'
        # It is whole for whom still has it.
        stat -c %s /proc/$holder/root/$D/root/devicemapper/mnt/*/rootfs/big
        kill $holder; wait $holder 2>/dev/null || true
        # The device goes by itself, its blocks at the next of dockerd's rounds, every thirty seconds.
        until_says POOL devices
        until_says 0 info 'Deferred Deleted Device Count'
        test "$(used)" = $before || echo "$before blocks before, $(used) after"
        # And so it is when dockerd, or thinmap, ends in between.
        d run -d --network none --name again bb /bin/sleep 1000 > /dev/null
        unshare --mount --propagation private sleep 1000 & holder=$!
        until [ "$(readlink /proc/$holder/ns/mnt)" != "$(readlink /proc/self/ns/mnt)" ] 2>/dev/null; do sleep 0.02; done
        d rm -f again; stop
        kill $holder; wait $holder 2>/dev/null || true
        start $on_pool --storage-opt dm.use_deferred_removal=true --storage-opt dm.use_deferred_deletion=true
        until_says POOL devices
        until_says 0 info 'Deferred Deleted Device Count'
        test "$(used)" = $before || echo "$before blocks before, $(used) after"
        d rmi bb > /dev/null; stop
        dmsetup remove_all
        "#
        ),
    );
    assert_eq!(
        said,
        "true\ntrue\nheld\nACTIVE (DEFERRED REMOVE)\n1\n20971520\nagain\n"
    );
    world.end();
}
