//! What is in memory only when a daemon is killed, and what nobody flushed, is there for the next one: a clone's regions, a transient
//! snapshot's exceptions; and a daemon that nothing is kept for goes on.

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
        world.kill_daemon();
        world.sh("cmp copy $M/c; cmp copy $M/o; cmp source.img $M/s");
    }
    assert_eq!(
        world.sh("dmsetup status s"),
        "0 32768 snapshot 24576/65536 0\n"
    );
    world.sh("dmsetup remove s; dmsetup remove o; dmsetup remove c; cmp copy origin.img");
    world.end();
}

/// The tables of two devices: a merge that was loaded and is to take over the other one's snapshot.
#[test]
fn a_merge_that_waits_for_its_snapshot_comes_back() {
    if !can_make_block_devices("a_merge_that_waits_for_its_snapshot_comes_back") {
        return;
    }
    let world = World::lasting();
    let before = world.sh(
        "head -c 16M /dev/urandom >origin.img; truncate -s 16M cow.img
         head -c 1M /dev/urandom >part
         dmsetup create o --table \"0 32768 snapshot-origin $PWD/origin.img\"
         dmsetup create s --table \"0 32768 snapshot $PWD/origin.img $PWD/cow.img P 8\"
         dd if=part of=$M/s bs=1M oflag=direct status=none
         dmsetup reload o --table \"0 32768 snapshot-merge $PWD/origin.img $PWD/cow.img P 8\"
         dmsetup table",
    );
    world.kill_daemon();
    assert_eq!(world.sh("dmsetup table"), before);
    world.sh(
        "cmp -n 1048576 part $M/s; dmsetup suspend s; dmsetup resume o; dmsetup remove s
         for i in $(seq 100); do dmsetup status o | grep -q ' 16/' && break; sleep 0.1; done
         cmp -n 1048576 part $M/o; dmsetup remove o; cmp -n 1048576 part origin.img",
    );
    world.end();
}

#[test]
fn a_daemon_goes_on_when_its_keeper_is_gone() {
    if !can_make_block_devices("a_daemon_goes_on_when_its_keeper_is_gone") {
        return;
    }
    let world = World::lasting();
    world.sh(
        "truncate -s 16M source.img dest.img origin.img cow.img; truncate -s 4M meta.img
         dmsetup create c --table \"0 32768 clone $PWD/meta.img $PWD/dest.img $PWD/source.img 8\"",
    );
    let keeper = world.sh("thinmap ping | sed -n 's/^keeper: *//p'");
    kill_and_wait(keeper.trim().parse().expect("the keeper's process"));
    world.sh("sleep 0.2; dmsetup suspend c; dmsetup resume c
         dmsetup create s --table \"0 32768 snapshot $PWD/origin.img $PWD/cow.img N 8\"
         dd if=/dev/urandom of=$M/c bs=64k count=4 oflag=direct status=none
         dmsetup remove s; dmsetup remove c");
    world.end();
}
