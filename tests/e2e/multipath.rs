//! fio verifies a device while paths to it are taken away and come back; requests wait for a path, or fail, as they were told.

use std::time::{Duration, Instant};

use crate::fio;
use crate::world::{World, can_make_block_devices};

const SECTORS: u64 = 131_072;

/// Four paths to one file, two of which break below or by message and are reinstated, in turns: no request fails.
#[test]
fn fio_verifies_over_four_paths_of_which_two_fail_and_come_back() {
    if !can_make_block_devices("fio_verifies_over_four_paths_of_which_two_fail_and_come_back") {
        return;
    }
    let world = World::without_keeper();
    let paths: String = (0..4)
        .map(|nr| format!("dmsetup create p{nr} --table \"0 {SECTORS} linear $PWD/disk 0\"\n"))
        .collect();
    world.sh(&format!(
        "truncate -s {bytes} disk
         {paths}
         dmsetup create m --table \"0 {SECTORS} multipath 0 0 1 1 service-time 0 4 2 $M/p0 1 1 $M/p1 1 1 $M/p2 1 1 $M/p3 1 1\"",
        bytes = SECTORS * 512
    ));
    let mut load = fio::verify(
        &world,
        "m",
        &[
            "--bsrange=512-64k",
            "--fsync=64",
            "--size=64m",
            "--io_size=384m",
        ],
    );
    let began = Instant::now();
    let mut rounds = 0;
    while load.try_wait().expect("fio").is_none() {
        let late = began.elapsed() > Duration::from_secs(300);
        assert!(!late, "fio does not end: {}", world.sh("dmsetup status m"));
        rounds += 1;
        // Two of four, others each time; one breaks on the device below.
        let (broken, told) = (rounds % 4, (rounds + 1 + rounds / 4 % 3) % 4);
        world.sh(&format!(
            "swap() {{ dmsetup load p{broken} --table \"$1\"; dmsetup suspend --noflush --nolockfs p{broken}; dmsetup resume p{broken}; }}
             dmsetup message m 0 \"fail_path $M/p{told}\"
             swap '0 {SECTORS} error'
             sleep 0.05
             dmsetup status m >>seen
             swap \"0 {SECTORS} linear $PWD/disk 0\"
             dmsetup message m 0 \"reinstate_path $M/p{broken}\"
             dmsetup message m 0 \"reinstate_path $M/p{told}\""
        ));
    }
    let output = load.wait_with_output().expect("fio");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", world.daemon_log());
    assert!(rounds > 1, "only {rounds} rounds");
    let failures = world.sh("grep -c ' F [0-9].* F [0-9]' seen || true");
    let failures: u32 = failures.trim().parse().expect("a number");
    assert!(
        failures > 0,
        "two paths were never down at once: {}",
        world.sh("cat seen")
    );
    world.sh("for name in m p0 p1 p2 p3; do dmsetup remove $name; done");
    world.end();
}

#[test]
fn requests_wait_for_a_path_or_fail_as_they_were_told() {
    if !can_make_block_devices("requests_wait_for_a_path_or_fail_as_they_were_told") {
        return;
    }
    let world = World::without_keeper();
    world.sh(&format!(
        "truncate -s {bytes} disk; head -c 1M /dev/urandom >data
         dmsetup create p --table \"0 {SECTORS} linear $PWD/disk 0\"
         dmsetup create m --table \"0 {SECTORS} multipath 1 queue_if_no_path 0 1 1 round-robin 0 1 0 $M/p\"
         put() {{ dd if=data of=$M/m bs=64k seek=$1 oflag=direct status=none; }}
         dmsetup load p --table '0 {SECTORS} error'; dmsetup suspend p; dmsetup resume p
         dmsetup wait m 0 & waits=$!
         put 0 & writer=$!
         wait $waits
         dmsetup status m | grep ' F 1'
         kill -0 $writer
         dmsetup load p --table \"0 {SECTORS} linear $PWD/disk 0\"; dmsetup suspend p; dmsetup resume p
         dmsetup message m 0 \"reinstate_path $M/p\"
         wait $writer
         cmp -n 1M disk data
         : without a path, told not to wait
         dmsetup message m 0 \"fail_path $M/p\"
         put 16 & writer=$!
         dmsetup message m 0 fail_if_no_path
         ! wait $writer
         ! put 32 2>/dev/null
         : a suspend keeps what waits, a table with a path sends it
         dmsetup message m 0 queue_if_no_path
         put 48 & writer=$!
         dmsetup suspend --noflush --nolockfs m
         dmsetup load m --table \"0 {SECTORS} multipath 1 queue_if_no_path 0 1 1 queue-length 0 1 0 $PWD/disk\"
         dmsetup resume m
         wait $writer
         cmp -n 1M -i 3145728:0 disk data
         : and a removal fails it
         dmsetup message m 0 \"fail_path $PWD/disk\"
         dd if=data of=$M/m bs=64k seek=64 oflag=direct status=none & writer=$!
         until grep -q '^State:.D' /proc/$writer/status; do sleep 0.01; done
         thinmap stop --force
         ! wait $writer",
        bytes = SECTORS * 512
    ));
    world.end();
}
