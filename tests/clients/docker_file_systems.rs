//! dockerd 20.10 with its devicemapper storage driver: both file systems on both kinds of pool.
//! Whatever was made is gone from the pool and from device mapper at the end.

use crate::docker::{DOCKER, NEEDS, POOL};
use crate::support::turn;
use thinmap_tests::world::World;

/// `devices`: the names, with the pool's as POOL; `used`: the used of all data blocks of the pool.
pub const LOOK: &str = r#"
    pool_name() { info 'Pool Name'; }
    used() { dmsetup status $(pool_name) | cut -d' ' -f6; }
    devices() { dmsetup ls | cut -f1 | sed "s/^$(pool_name)\$/POOL/" | sort; }
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
