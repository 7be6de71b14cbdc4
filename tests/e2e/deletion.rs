//! A volume of millions of blocks deleted in the background: answered at once, beside other I/O, through kills, to the end.

use crate::world::{World, can_make_block_devices};

/// Mapped blocks of the volume: 160 GiB in blocks of 64 KiB.
const BLOCKS: u64 = 2_500_000;

/// The metadata of a pool with volume 1, as thin_restore makes it, and sparse data behind it.
fn restore(world: &World) {
    let xml = format!(
        r#"<superblock uuid="" time="0" transaction="0" data_block_size="128" nr_data_blocks="{}">
  <device dev_id="1" mapped_blocks="{BLOCKS}" transaction="0" creation_time="0" snap_time="0">
    <range_mapping origin_begin="0" data_begin="0" length="{BLOCKS}" time="0"/>
  </device>
</superblock>
"#,
        BLOCKS + 1000
    );
    std::fs::write(world.path().join("pool.xml"), xml).expect("pool.xml");
    world.sh(&format!(
        "truncate -s 128M meta.img; truncate -s $(( ({BLOCKS} + 1000) * 65536 )) data.img
         thin_restore --input pool.xml --output meta.img"
    ));
}

fn open(world: &World) {
    world.sh(&format!(
        "dmsetup create pool --table \"0 $(( ({BLOCKS} + 1000) * 128 )) thin-pool $PWD/meta.img $PWD/data.img 128 0\""
    ));
}

/// Used data blocks.
fn used(world: &World) -> u64 {
    let status = world.sh("dmsetup status pool");
    let field = status.split(' ').nth(5).unwrap_or_default();
    let used = field.split('/').next().unwrap_or_default();
    used.parse()
        .unwrap_or_else(|_| panic!("a pool's status: {status}"))
}

#[test]
fn a_large_volume_is_deleted_beside_other_work_and_through_kills() {
    if !can_make_block_devices("a_large_volume_is_deleted_beside_other_work_and_through_kills") {
        return;
    }
    let world = World::without_keeper();
    restore(&world);
    open(&world);
    assert_eq!(used(&world), BLOCKS);
    world.make_thin(2, "other", 16_384);
    world.sh("head -c 4M /dev/urandom >content");
    // In a suspended pool messages are obeyed and nothing else is done: the kill comes half-way for sure.
    world.sh("dmsetup suspend pool; dmsetup message pool 0 'delete 1'; dmsetup message pool 0 'create_thin 1'");
    world.kill_daemon();
    world.sh("thin_check meta.img");
    let dump = world.sh("thin_dump meta.img | grep '<device '");
    assert!(dump.contains("dev_id=\"16777215\""), "{dump}");

    // The next pool goes on by itself, whatever else is done in it; and the next one after another kill.
    open(&world);
    world.sh("dmsetup create other --table \"0 16384 thin $M/pool 2\"
         dd if=content of=$M/other bs=64K oflag=direct conv=fsync status=none");
    world.fails("dmsetup create gone --table \"0 128 thin $M/pool 16777215\"");
    world.kill_daemon();
    world.sh("thin_check meta.img");
    open(&world);
    world.sh("dmsetup create other --table \"0 16384 thin $M/pool 2\"
         cmp -n 4194304 content $M/other
         dmsetup create again --table \"0 16384 thin $M/pool 1\"
         dd if=content of=$M/again bs=64K oflag=direct conv=fsync status=none
         dmsetup message pool 0 'create_snap 3 2'; dmsetup message pool 0 'delete 3'");
    // 64 blocks in each of the two.
    for _ in 0..1200 {
        if used(&world) == 128 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(used(&world), 128, "all of the space is back");
    world.sh("cmp -n 4194304 content $M/again; cmp -n 4194304 content $M/other");
    world.sh("dmsetup remove_all; thin_check meta.img");
    let dump = world.sh("thin_dump meta.img | grep '<device '");
    assert_eq!(dump.lines().count(), 2, "{dump}");
    world.end();
}
