//! A write cache under load: blocks come and go, daemons die, and nothing is wrong, above or on the origin.

use std::time::Duration;

use crate::fio;
use crate::world::{World, can_make_block_devices};

/// fio checks what it wrote on a cache much smaller than that, over six deaths of the daemon.
#[test]
fn fio_verifies_a_write_cache_whose_daemon_dies() {
    if !can_make_block_devices("fio_verifies_a_write_cache_whose_daemon_dies") {
        return;
    }
    let world = World::lasting();
    world.sh(
        "truncate -s 256M origin.img; truncate -s 32M cache.img
         dmsetup create w --table \"0 524288 writecache s $PWD/origin.img $PWD/cache.img 4096 4 pause_writeback 0 autocommit_time 3000\"",
    );
    let load = fio::verify(
        &world,
        "w",
        &[
            "--bsrange=4k-128k",
            "--blockalign=4k",
            "--fsync=64",
            "--size=192m",
            "--io_size=384m",
        ],
    );
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(400));
        world.kill_daemon();
        // The next one serves when this is answered.
        world.sh("dmsetup status w");
    }
    let output = load.wait_with_output().expect("fio");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", world.daemon_log());
    let said = world.sh("sha256sum <$M/w >before
         dmsetup message w 0 flush; dmsetup status w | cut -d' ' -f4-7
         dmsetup suspend w; dmsetup remove w
         sha256sum <origin.img | cmp - before && echo the origin has everything");
    assert_eq!(said, "0 8160 8160 0\nthe origin has everything\n");
    world.end();
}

/// Taken away as the page says, with a file system mounted; the origin alone has every file.
#[test]
fn a_write_cache_is_taken_away_under_a_mounted_file_system() {
    if !can_make_block_devices("a_write_cache_is_taken_away_under_a_mounted_file_system") {
        return;
    }
    let world = World::new();
    let said = world.sh(
        "truncate -s 256M origin.img; truncate -s 64M cache.img; mkdir mnt
         dmsetup create w --table \"0 524288 writecache s $PWD/origin.img $PWD/cache.img 4096 0\"
         mkfs.ext4 -q $M/w; mount $M/w mnt
         head -c 40M /dev/urandom >mnt/x; sync; sum=$(sha256sum <mnt/x)
         [ $(dmsetup status w | cut -d' ' -f6) -lt 10000 ]
         dmsetup message w 0 flush_on_suspend
         dmsetup load w --table \"0 524288 linear $PWD/origin.img 0\"
         dmsetup suspend w; dmsetup resume w
         head -c 5M /dev/urandom >mnt/y; sync
         test \"$(sha256sum <mnt/x)\" = \"$sum\"; sum=$(cat mnt/x mnt/y | sha256sum)
         umount mnt; dmsetup remove w
         dmsetup create o --table \"0 524288 linear $PWD/origin.img 0\"
         fsck.ext4 -fn $M/o >fsck 2>&1; mount $M/o mnt
         test \"$(cat mnt/x mnt/y | sha256sum)\" = \"$sum\" && echo everything is there
         umount mnt; dmsetup remove o",
    );
    assert_eq!(said, "everything is there\n");
    world.end();
}
