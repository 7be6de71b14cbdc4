//! Integrity lines under a file system, as a user has them: the daemon is killed, and nothing that was answered is lost or damaged.

use crate::world::{World, can_make_block_devices};

const KILLS: u32 = 4;

fn under_a_file_system(mode: &str) {
    let world = World::lasting();
    world.sh(&format!(
        "truncate -s 80M a.img
         dmsetup create i --table \"0 131072 integrity $PWD/a.img 0 - {mode}\"
         dd if=/dev/zero of=$M/i bs=1M count=64 oflag=direct status=none
         mkfs.ext4 -q -E nodiscard $M/i; mkdir mnt; mount $M/i mnt"
    ));
    for round in 0..KILLS {
        // Written back while the daemon dies, and after that.
        world.sh(&format!(
            "head -c 4M /dev/urandom > f{round}; cp f{round} mnt/; sync -d mnt/f{round}
             head -c 2M /dev/urandom > g{round}; cp g{round} mnt/
             (dd if=g{round} of=mnt/h{round} bs=64k oflag=direct status=none; echo done > h{round}) >/dev/null 2>&1 &"
        ));
        world.kill_daemon();
        world.sh(&format!(
            "timeout 60 sh -c 'until [ -e h{round} ]; do sleep 0.1; done'; cmp g{round} mnt/h{round}"
        ));
    }
    let said = world.sh(&format!(
        "timeout 100 umount mnt; timeout 100 fsck.ext4 -fn $M/i >/dev/null 2>&1; mount $M/i mnt
         for round in $(seq 0 {}); do cmp f$round mnt/f$round; cmp g$round mnt/g$round; cmp g$round mnt/h$round; done
         dmsetup status i | cut -d' ' -f4
         timeout 100 umount mnt; dmsetup remove i",
        KILLS - 1
    ));
    assert_eq!(said, "0\n", "{mode}");
    world.end();
}

#[test]
fn a_killed_daemon_leaves_journal_and_tags() {
    if can_make_block_devices("a_killed_daemon_leaves_journal_and_tags") {
        under_a_file_system("J 2 internal_hash:crc32c block_size:4096");
        under_a_file_system("D 2 internal_hash:crc32c block_size:4096");
        under_a_file_system("B 2 internal_hash:crc32c block_size:4096");
    }
}
