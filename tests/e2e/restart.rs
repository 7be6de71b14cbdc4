//! After a stop or a kill nothing comes back by itself and nothing stale is left; the same tables find all that was flushed.

use crate::world::{World, can_make_block_devices};

const TABLES: &str =
    "dmsetup create pool --table \"0 2097152 thin-pool $PWD/meta.img $PWD/data.img 128 0\"
     dmsetup create vol --table \"0 204800 thin $M/pool 0\"";

fn pool_with_flushed_data(world: &World) {
    world.make_pool("1G", "");
    world.make_thin(0, "vol", 204_800);
    world.sh("head -c 50M /dev/urandom > content
         dd if=content of=$M/vol bs=1M oflag=direct conv=fsync status=none");
}

#[test]
fn after_a_clean_stop_the_same_tables_find_everything() {
    if !can_make_block_devices("after_a_clean_stop_the_same_tables_find_everything") {
        return;
    }
    let world = World::new();
    pool_with_flushed_data(&world);
    world.sh("thinmap stop");
    assert_eq!(world.leftovers(), Vec::<String>::new());
    world.sh("thin_check meta.img");
    assert_eq!(world.sh("dmsetup ls"), "No devices found\n");
    world.sh(TABLES);
    world.sh("cmp -n 52428800 content $M/vol");
    world.sh("dmsetup remove_all");
    world.end();
}

#[test]
fn after_kill_9_the_same_tables_find_what_was_flushed() {
    if !can_make_block_devices("after_kill_9_the_same_tables_find_what_was_flushed") {
        return;
    }
    let world = World::without_keeper();
    pool_with_flushed_data(&world);
    world.kill_daemon();
    assert_eq!(world.sh("dmsetup ls"), "No devices found\n");
    let left = world.leftovers();
    let stale: Vec<&String> = left.iter().filter(|l| !l.contains("/run/fuse ")).collect();
    assert!(stale.is_empty(), "stale after the restart: {stale:#?}");
    world.sh("thin_check meta.img");
    world.sh(TABLES);
    world.sh("cmp -n 52428800 content $M/vol; dmsetup remove_all");
    world.end();
}

#[test]
fn kill_9_under_a_mounted_file_system_leaves_nothing_that_hangs() {
    if !can_make_block_devices("kill_9_under_a_mounted_file_system_leaves_nothing_that_hangs") {
        return;
    }
    let world = World::without_keeper();
    world.make_pool("1G", "");
    world.make_thin(0, "vol", 1_048_576);
    world.sh("mkfs.ext4 -q $M/vol; mkdir mnt; mount $M/vol mnt
         echo precious > mnt/file; sync mnt/file; sync -f mnt");
    world.kill_daemon();
    // The dead mount goes without hanging; the journal brings the file back.
    world.sh("timeout 60 umount -l mnt; timeout 60 dmsetup ls");
    world.sh("thin_check meta.img");
    world.sh(&TABLES.replace("204800", "1048576"));
    world.sh("mount $M/vol mnt; grep precious mnt/file; umount mnt; fsck.ext4 -fn $M/vol; dmsetup remove_all");
    world.end();
}

#[test]
fn a_stop_with_open_devices_is_refused_and_says_which() {
    if !can_make_block_devices("a_stop_with_open_devices_is_refused_and_says_which") {
        return;
    }
    let world = World::new();
    world.sh("truncate -s 64M disk.img
         dmsetup create busy-one --table \"0 131072 linear $PWD/disk.img 0\"
         mkfs.ext4 -q $M/busy-one; mkdir mnt; mount $M/busy-one mnt");
    let error = world.fails("thinmap stop");
    assert!(error.contains("busy-one"), "{error}");
    let error = world.fails("dmsetup remove busy-one");
    assert!(error.contains("Device or resource busy"), "{error}");
    world.sh(
        "dmsetup remove --deferred busy-one; dmsetup info busy-one | grep -q 'DEFERRED REMOVE'",
    );
    world.sh("umount mnt; for i in $(seq 50); do dmsetup info busy-one >/dev/null 2>&1 || exit 0; sleep 0.1; done; exit 1");
    world.end();
}

/// Users that go on writing, and devices that somebody has suspended, must not keep a daemon that was told to end.
#[test]
fn a_signal_ends_the_daemon_under_writers_and_suspended_devices() {
    if !can_make_block_devices("a_signal_ends_the_daemon_under_writers_and_suspended_devices") {
        return;
    }
    for (signal, suspended) in [("TERM", None), ("INT", Some("pool")), ("HUP", Some("vol"))] {
        let world = World::new();
        world.make_pool("1G", "");
        world.make_thin(0, "vol", 1_048_576);
        world.sh("mkfs.ext4 -q $M/vol; mkdir mnt; mount $M/vol mnt
             head -c 20M /dev/urandom > content; cp content mnt/kept; sync -f mnt
             (dd if=/dev/zero of=mnt/more bs=1M count=300 2>/dev/null || true) & sleep 0.2");
        if let Some(name) = suspended {
            world.sh(&format!("timeout 60 dmsetup suspend --nolockfs {name}"));
        }
        let pid = world.daemon_pid().expect("a running daemon");
        // The lock is held for the daemon's life; the unmount writes back what it can no longer write.
        world.sh(&format!(
            "kill -{signal} {pid}
             timeout 60 umount -l mnt || true
             timeout 60 flock $RUN/control.lock true"
        ));
        world.sh("thin_check meta.img");
        world.sh(&TABLES.replace("204800", "1048576"));
        world.sh("mount $M/vol mnt; cmp content mnt/kept; umount mnt; fsck.ext4 -fn $M/vol; dmsetup remove_all");
        world.end();
    }
}

/// Loop devices are the same in every mount namespace, paths are not.
#[test]
fn a_daemon_of_another_mount_namespace_at_the_same_path_is_left_alone() {
    let name = "a_daemon_of_another_mount_namespace_at_the_same_path_is_left_alone";
    if !can_make_block_devices(name) {
        return;
    }
    let world = World::without_keeper();
    // As in a container: the run directory at the same path is another directory.
    let elsewhere = "
        mkdir -p run mapper; mount -t tmpfs -o mode=700 elsewhere run; mount -t tmpfs elsewhere mapper
        truncate -s 8M other.img
        dmsetup create other --table \"0 16384 linear $PWD/other.img 0\"
        echo elsewhere | dd of=$M/other bs=512 conv=sync oflag=direct status=none
        touch is_up; until [ -e is_over ]; do sleep 0.05; done
        dd if=$M/other bs=512 count=1 iflag=direct status=none | grep -q elsewhere && echo whole
        dmsetup remove other; thinmap stop";
    let elsewhere = world
        .command("unshare")
        .args(["--mount", "bash", "-euc", elsewhere])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("unshare");
    world.sh("for try in $(seq 200); do [ -e is_up ] && break; sleep 0.05; done; [ -e is_up ]");
    pool_with_flushed_data(&world);
    world.kill_daemon();
    world.sh(TABLES);
    world.sh("cmp -n 52428800 content $M/vol; dmsetup remove_all; touch is_over");
    let said = elsewhere.wait_with_output().expect("the other namespace");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "whole\n");
    assert!(said.status.success());
    world.end();
}
