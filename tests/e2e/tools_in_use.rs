//! The thin tools keep their hands off what a pool uses, by whatever name it is called.

use std::time::{Duration, Instant};

use crate::thin_tools::with_a_volume;
use crate::world::{World, can_make_block_devices};

/// A pool on mapped devices, as lvm2 makes them, with a volume; its metadata as text and as a copy.
fn pool_on_mapped_devices(world: &World) {
    world.sh(
        "truncate -s 16M meta.img; truncate -s 64M data.img
         dmsetup create tmeta --table \"0 32768 linear $PWD/meta.img 0\"
         dmsetup create tdata --table \"0 131072 linear $PWD/data.img 0\"
         dmsetup create pool --table \"0 131072 thin-pool $M/tmeta $M/tdata 128 0\"
         dmsetup message pool 0 'create_thin 1'
         dmsetup create one --table \"0 16384 thin $M/pool 1\"
         dd if=/dev/urandom of=$M/one bs=64K count=20 oflag=direct conv=fsync status=none
         thinmap dump pool > pool.xml; truncate -s 16M copy.img; thinmap restore -q -i pool.xml --nr-data-blocks 1024 -o copy.img",
    );
}

/// Each command refuses a device in use, and changes nothing.
fn assert_refused(world: &World, commands: &[&str]) {
    let sums = || world.sh("sync; md5sum meta.img data.img");
    let before = sums();
    for command in commands {
        let error = world.fails(command);
        assert!(error.contains("in use"), "{command}: {error}");
    }
    assert_eq!(sums(), before);
}

#[test]
fn tables_that_only_the_daemon_knows_are_users_too() {
    if !can_make_block_devices("tables_that_only_the_daemon_knows_are_users_too") {
        return;
    }
    let world = World::without_keeper();
    pool_on_mapped_devices(&world);
    let commands = [
        "thinmap restore -i pool.xml -o $M/tmeta",
        "thinmap repair -i copy.img -o $M/tmeta",
        "thinmap repair -i $M/tmeta -o copy.img",
        "thinmap check --auto-repair $M/tmeta",
        "thinmap check $M/tmeta",
        "thinmap dump $M/tmeta",
        "thinmap dump -r $M/tmeta",
        "thinmap ls $M/tmeta",
        "thinmap dump -o $M/tmeta copy.img",
        "thinmap trim --metadata-dev copy.img --data-dev $M/tdata",
        "thinmap trim --metadata-dev copy.img --data-dev $M/pool",
        "thinmap trim --metadata-dev $M/tmeta --data-dev data.img",
    ];
    assert_refused(&world, &commands);
    // A volume that is mounted uses its pool.
    world.sh("mkfs.ext4 -q $M/one; mkdir mnt; mount $M/one mnt");
    assert_refused(
        &world,
        &["thinmap trim --metadata-dev copy.img --data-dev $M/pool"],
    );
    world.sh(
        "umount mnt; dmsetup message pool 0 reserve_metadata_snap; thinmap dump -m $M/tmeta >/dev/null
         dmsetup message pool 0 release_metadata_snap; dmsetup remove one; dmsetup remove pool
         thinmap check --auto-repair $M/tmeta; thinmap trim -q --metadata-dev $M/tmeta --data-dev $M/tdata
         thinmap restore -q -i pool.xml --nr-data-blocks 1024 -o $M/tmeta; thinmap check -q $M/tmeta",
    );

    // Of a daemon that does not answer nobody knows; other files are no business of its.
    let pid = world.daemon_pid().expect("a daemon");
    world.sh(&format!("kill -STOP {pid}"));
    let begin = Instant::now();
    let (waits, passes) = (
        world.try_sh("timeout 60 thinmap check $M/tmeta"),
        world.try_sh(
            "timeout 60 thinmap check -q copy.img; truncate -s 16M other.img
             timeout 60 thinmap repair -q -i copy.img -o other.img; timeout 60 thinmap dump -o out.xml other.img",
        ),
    );
    world.sh(&format!("kill -CONT {pid}"));
    assert!(begin.elapsed() < Duration::from_secs(50));
    let error = String::from_utf8_lossy(&waits.stderr);
    assert!(error.contains("does not answer"), "{error}");
    let error = String::from_utf8_lossy(&passes.stderr);
    assert!(passes.status.success(), "{error}");
    world.end();
}

#[test]
fn a_loop_device_and_its_file_are_one() {
    let Some(world) = with_a_volume("a_loop_device_and_its_file_are_one") else {
        return;
    };
    world.sh("thinmap dump pool > pool.xml; truncate -s 16M copy.img
         thinmap restore -q -i pool.xml --nr-data-blocks 1024 -o copy.img
         losetup -f --show meta.img > meta.loop; losetup -f --show data.img > data.loop");
    // The pool has locked the files.
    let commands = [
        "thinmap repair -i copy.img -o $(cat meta.loop)",
        "thinmap restore -i pool.xml -o $(cat meta.loop)",
        "thinmap check $(cat meta.loop)",
        "thinmap dump -o $(cat meta.loop) copy.img",
        "thinmap dump -o meta.img copy.img",
        "thinmap trim --metadata-dev copy.img --data-dev $(cat data.loop)",
        "thinmap trim --metadata-dev copy.img --data-dev data.img",
    ];
    assert_refused(&world, &commands);
    world.sh("dmsetup remove one; dmsetup remove pool; thinmap check -q $(cat meta.loop)");
    // Nobody has locked them now, but the loop devices are there.
    let commands = [
        "thinmap restore -i pool.xml -o meta.img",
        "thinmap dump -o meta.img copy.img",
        "thinmap trim --metadata-dev copy.img --data-dev data.img",
    ];
    assert_refused(&world, &commands);
    world.sh(
        "thinmap trim -q --metadata-dev copy.img --data-dev $(cat data.loop)
         losetup -d $(cat meta.loop) $(cat data.loop)
         thinmap trim -q --metadata-dev copy.img --data-dev data.img; thinmap dump -o meta.img copy.img",
    );
    world.end();
}
