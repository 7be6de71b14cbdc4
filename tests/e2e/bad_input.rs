//! Bad input: the kernel's errno, an error that names the thing at fault, and everything else goes on.

use crate::world::{World, can_make_block_devices};

/// A world with a pool and a volume that must go on working whatever else happens.
fn world_with_a_witness() -> World {
    let world = World::new();
    world.make_pool("256M", "");
    world.make_thin(0, "witness", 20_480);
    world.sh("echo here | dd of=$M/witness bs=512 conv=sync oflag=direct status=none");
    world
}

#[track_caller]
fn witness_goes_on(world: World) {
    world.sh("dd if=$M/witness bs=512 count=1 iflag=direct status=none | grep -q here");
    world.sh("dmsetup status pool | grep -q ' rw '; dmsetup remove_all; thin_check meta.img");
    world.end();
}

#[test]
fn wrong_tables_leave_no_device() {
    if !can_make_block_devices("wrong_tables_leave_no_device") {
        return;
    }
    let world = world_with_a_witness();
    world.sh("truncate -s 64M d2.img; truncate -s 16M m2.img");
    let wrong = [
        // (table, part of what is said)
        ("0 2097152 thin-pool", "Invalid argument count"),
        ("0 131072 thin-pool $PWD/m2.img", "Invalid argument count"),
        (
            "0 131072 thin-pool $PWD/missing.img $PWD/d2.img 128 0",
            "missing.img",
        ),
        (
            "0 131072 thin-pool $PWD/m2.img $PWD/missing.img 128 0",
            "missing.img",
        ),
        (
            "0 131072 thin-pool $PWD/m2.img $PWD/d2.img 127 0",
            "Invalid block size",
        ),
        (
            "0 131072 thin-pool $PWD/m2.img $PWD/d2.img 64 0",
            "Invalid block size",
        ),
        (
            "0 131072 thin-pool $PWD/m2.img $PWD/d2.img 4194304 0",
            "Invalid block size",
        ),
        (
            "0 131072 thin-pool $PWD/m2.img $PWD/d2.img x 0",
            "Invalid block size",
        ),
        (
            "0 131072 thin-pool $PWD/m2.img $PWD/d2.img 128 x",
            "Invalid low water mark",
        ),
        (
            "0 131072 thin-pool $PWD/m2.img $PWD/d2.img 128 0 1 no_such_feature",
            "feature",
        ),
        (
            "0 131072 thin-pool $PWD/m2.img $PWD/d2.img 128 0 5 a b c d e",
            "feature",
        ),
        (
            "0 131072 thin-pool $PWD/m2.img $PWD/d2.img 128 0 2 skip_block_zeroing",
            "feature",
        ),
        (
            "0 131072 thin-pool $PWD/m2.img $PWD/m2.img 128 0",
            "metadata",
        ),
        ("0 131072 thin-pool $PWD/meta.img $PWD/d2.img 128 0", ""),
        ("0 20480 thin", "Invalid argument count"),
        ("0 20480 thin $M/no-pool 0", "no-pool"),
        ("0 20480 thin $PWD/d2.img 0", "pool"),
        ("0 20480 thin $M/pool 16777216", "Invalid device id"),
        ("0 20480 thin $M/pool x", "Invalid device id"),
        ("0 20480 thin $M/pool 77", ""),
        ("0 20480 linear $PWD/d2.img", "Invalid argument count"),
        ("0 20480 linear $PWD/d2.img -1", "Invalid device sector"),
        ("0 20480 linear $PWD/d2.img 131071", "too small"),
        (
            "0 20480 striped 2 128 $PWD/d2.img 0",
            "Not enough destinations",
        ),
        ("0 20480 striped 0 128", "stripe count"),
        ("0 20480 no-such-target", "unknown target type"),
        ("5 20480 zero", "Gap"),
        ("0 0 zero", "zero"),
    ];
    for (table, says) in wrong {
        let error = world.fails(&format!("dmsetup create wrong --table \"{table}\""));
        assert!(error.contains("ioctl on wrong"), "{table}: {error}");
        assert!(
            error.contains(says),
            "{table}: does not say '{says}': {error}"
        );
        world.fails("dmsetup info wrong");
    }
    world.sh("test -z \"$(ls $M | grep wrong || true)\"");
    witness_goes_on(world);
}

#[test]
fn wrong_messages_are_refused() {
    if !can_make_block_devices("wrong_messages_are_refused") {
        return;
    }
    let world = world_with_a_witness();
    for (message, errno) in [
        ("create_thin 0", "File exists"),
        ("create_thin 16777216", "Invalid argument"),
        ("create_thin", "Invalid argument"),
        ("create_snap 1", "Invalid argument"),
        ("create_snap 1 99", "No data available"),
        ("create_snap 0 0", "File exists"),
        ("delete 99", "No data available"),
        ("delete 0", "Device or resource busy"),
        ("set_transaction_id 5 6", "Invalid argument"),
        ("release_metadata_snap", "Invalid argument"),
        ("no_such_message", "Invalid argument"),
    ] {
        let error = world.fails(&format!("dmsetup message pool 0 '{message}'"));
        assert!(error.contains(errno), "{message}: {error}");
    }
    world.fails("dmsetup message no-such-device 0 'create_thin 1'");
    witness_goes_on(world);
}

#[test]
fn busy_and_corrupt_devices_are_refused() {
    if !can_make_block_devices("busy_and_corrupt_devices_are_refused") {
        return;
    }
    let world = world_with_a_witness();
    // A mounted device is busy.
    world.sh(
        "truncate -s 64M mounted.img; mkfs.ext4 -q mounted.img; mkdir mnt
         loop=$(losetup -f --show mounted.img); echo $loop > loop; mount $loop mnt",
    );
    let error = world.fails("dmsetup create wrong --table \"0 2048 linear $(cat loop) 0\"");
    world.sh("umount mnt; losetup -d $(cat loop)");
    assert!(error.contains("Device or resource busy"), "{error}");

    // A corrupted superblock.
    world.sh("truncate -s 64M d2.img; head -c 16M /dev/urandom > m2.img");
    let error = world
        .fails("dmsetup create wrong --table \"0 131072 thin-pool $PWD/m2.img $PWD/d2.img 128 0\"");
    assert!(error.contains("ioctl on wrong"), "{error}");

    // A data file cut short under a pool: errors above, no hang, the daemon lives.
    world.sh("truncate -s 64M d3.img; truncate -s 16M m3.img
         dmsetup create p3 --table \"0 131072 thin-pool $PWD/m3.img $PWD/d3.img 128 0\"
         dmsetup message p3 0 'create_thin 0'; dmsetup create v3 --table \"0 20480 thin $M/p3 0\"
         dd if=/dev/urandom of=$M/v3 bs=1M count=8 oflag=direct status=none
         truncate -s 64K d3.img");
    world.fails("timeout 60 dd if=$M/v3 of=/dev/null bs=1M count=8 iflag=direct");
    world.sh("dmsetup remove v3; dmsetup remove p3");
    witness_goes_on(world);
}
