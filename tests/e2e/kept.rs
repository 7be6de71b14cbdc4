//! What is in memory only when a daemon is killed, and what nobody flushed, is there for the next one: a clone's regions, a transient
//! snapshot's exceptions.

use crate::world::{World, can_make_block_devices, kill_and_wait};

#[test]
fn clones_and_transient_snapshots_survive_deaths_of_the_daemon() {
    if !can_make_block_devices("clones_and_transient_snapshots_survive_deaths_of_the_daemon") {
        return;
    }
    let world = World::lasting();
    world.sh(
        "head -c 16M /dev/urandom >source.img; cp source.img origin.img; cp source.img copy
         truncate -s 16M dest.img; truncate -s 4M meta.img; truncate -s 32M cow.img
         dmsetup create c --table \"0 32768 clone $PWD/meta.img $PWD/dest.img $PWD/source.img 8 1 no_hydration\"
         dmsetup create o --table \"0 32768 snapshot-origin $PWD/origin.img\"
         dmsetup create s --table \"0 32768 snapshot $PWD/origin.img $PWD/cow.img N 8\"",
    );
    for round in 0..4 {
        // Direct, so that the write is answered by the daemon, and not flushed.
        world.sh(&format!(
            "head -c 3M /dev/urandom >part
             for to in c o copy; do
                 [ $to = copy ] && file=copy || file=$M/$to
                 [ $to = copy ] && how= || how=oflag=direct
                 dd if=part of=$file bs=64k seek=$(({round} * 53)) conv=notrunc $how status=none
             done"
        ));
        kill_and_wait(world.daemon_pid().expect("a daemon"));
        world.sh("cmp copy $M/c; cmp copy $M/o; cmp source.img $M/s");
    }
    assert_eq!(
        world.sh("dmsetup status s"),
        "0 32768 snapshot 24576/65536 0\n"
    );
    world.sh("dmsetup remove s; dmsetup remove o; dmsetup remove c; cmp copy origin.img");
    world.end();
}
