//! The daemon over FUSE's io_uring, where the kernel lets it be switched on for the daemon's start.

use std::path::Path;

use crate::world::{World, can_make_block_devices};

const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

struct Restore(String);

impl Drop for Restore {
    fn drop(&mut self) {
        std::fs::write(PARAMETER, self.0.trim()).expect("restore the parameter");
    }
}

/// Starts a daemon, its mount made while the parameter is `value`; its number of io_urings.
fn start(world: &World, value: &str) -> Option<usize> {
    let before = Restore(std::fs::read_to_string(PARAMETER).ok()?);
    if std::fs::write(PARAMETER, value).is_err() {
        return None;
    }
    world.sh("dmsetup ls");
    drop(before);
    let pid = world.daemon_pid().expect("a running daemon");
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors");
    let links = links.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    Some(
        links
            .filter(|link| link == Path::new("anon_inode:[io_uring]"))
            .count(),
    )
}

#[test]
fn a_daemon_over_io_uring_serves_suspends_is_killed_and_stops() {
    if !can_make_block_devices("a_daemon_over_io_uring_serves_suspends_is_killed_and_stops") {
        return;
    }
    let plain = World::without_keeper();
    let Some(without) = start(&plain, "N") else {
        return eprintln!("skipped: {PARAMETER} cannot be set here");
    };
    plain.end();
    let world = World::without_keeper();
    let rings = start(&world, "Y").expect("as before");
    assert!(rings > without, "{rings} io_urings, {without} without");

    world.make_pool("1G", "");
    world.make_thin(0, "vol", 204_800);
    world.sh("head -c 50M /dev/urandom > content
         dd if=content of=$M/vol bs=1M oflag=direct conv=fsync status=none
         cmp -n 52428800 content $M/vol");
    // A suspended device keeps its requests, others go on, and all of them end after the resume.
    world.make_thin(1, "other", 204_800);
    world.sh("dmsetup suspend vol
         (dd if=/dev/zero of=$M/vol bs=4k count=64 seek=12800 oflag=direct status=none; touch written) &
         dd if=content of=$M/other bs=64k oflag=direct conv=fsync status=none
         cmp -n 52428800 content $M/other; test ! -e written
         dmsetup resume vol; wait; test -e written");
    world.sh("dmsetup remove other; cmp -n 52428800 content $M/vol");

    world.kill_daemon();
    assert!(start(&world, "Y").expect("as before") > without);
    world.sh("thin_check meta.img
         dmsetup create pool --table \"0 2097152 thin-pool $PWD/meta.img $PWD/data.img 128 0\"
         dmsetup create vol --table \"0 204800 thin $M/pool 0\"
         cmp -n 52428800 content $M/vol
         thinmap stop");
    assert_eq!(world.leftovers(), Vec::<String>::new());
    world.sh("thin_check meta.img");
}
