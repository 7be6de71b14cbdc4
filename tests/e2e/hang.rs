//! A daemon that hangs is followed by another one, as one that dies.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::spin::spin_in_a_turn;
use crate::world::{Ended, World, can_make_block_devices, kill_and_wait};

const LOAD: &[&str] = &[
    "--bsrange=4k-16k",
    "--fsync=64",
    "--time_based",
    "--loops=1000",
];

/// A world with a device and this many seconds until it is taken for hanging.
fn world(hang_secs: u32, keeper: bool) -> World {
    let world = if keeper {
        World::new()
    } else {
        World::without_keeper()
    };
    world.sh(&format!(
        "printf 'queues = 2\n[continuity]\nhang_secs = {hang_secs}\ndeaths_max = 0\n' > config.toml
         thinmap daemon --detach --config config.toml; truncate -s 64M disk.img
         dmsetup create lin --table \"0 131072 linear $PWD/disk.img 0\""
    ));
    world
}

fn wait_for(world: &World, what: &str, is_there: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(120);
    while !is_there() {
        assert!(Instant::now() < end, "no {what}: {}", world.daemon_log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_thread_that_hangs_ends_the_daemon_three_times_an_hour_and_nobody_sees_an_error() {
    let name = "a_thread_that_hangs_ends_the_daemon_three_times_an_hour_and_nobody_sees_an_error";
    if !can_make_block_devices(name) {
        return;
    }
    let world = world(3, true);
    // A round takes longer than the test: it verifies what it wrote, round after round, until it is told to end.
    let seconds = ["--runtime=30"];
    let load = crate::fio::verify(&world, "lin", &[LOAD, &seconds].concat());
    let mut load = Ended(load);
    for _ in 0..3 {
        let pid = world.daemon_pid().expect("a daemon");
        spin_in_a_turn(pid, "thinmap-fuse");
        wait_for(&world, "next daemon", || {
            world.daemon_pid().is_some_and(|next| next != pid)
        });
        assert!(load.0.try_wait().expect("fio").is_none(), "the load ended");
    }
    let log = world.daemon_log();
    assert_eq!(log.matches("This daemon hangs").count(), 3, "{log}");
    assert!(log.contains("thread thinmap-fuse"), "{log}");
    let status = load.0.wait().expect("fio");
    assert!(status.success(), "{}", world.daemon_log());

    // One queue thread less, and a daemon that says so, is better than no daemon.
    let pid = world.daemon_pid().expect("a daemon");
    let load = read_for_ever(&world);
    spin_in_a_turn(pid, "thinmap-fuse");
    wait_for(&world, "word of it", || {
        world.daemon_log().contains("has not helped often enough")
    });
    assert_eq!(world.daemon_pid(), Some(pid));
    // The next daemon has it all.
    kill_and_wait(pid);
    drop(load);
    world.sh("timeout 60 dd if=$M/lin of=/dev/null bs=1M iflag=direct; dmsetup remove lin");
    world.end();
}

/// Reads on the device, several at once, so that every queue thread has turns.
fn read_for_ever(world: &World) -> Ended {
    let device = world.dev_dir().join("lin");
    let mut fio = world.command("fio");
    fio.args(["--name=read", "--direct=1", "--ioengine=libaio"])
        .args(["--iodepth=4", "--numjobs=2", "--rw=randread", "--bs=4k"])
        .args(["--time_based", "--runtime=600", "--thread"])
        .arg(format!("--filename={}", device.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ended(fio.spawn().expect("fio runs"))
}

#[test]
fn a_daemon_without_a_keeper_says_that_it_hangs_and_goes_on() {
    let name = "a_daemon_without_a_keeper_says_that_it_hangs_and_goes_on";
    if !can_make_block_devices(name) {
        return;
    }
    let world = world(2, false);
    let load = read_for_ever(&world);
    let pid = world.daemon_pid().expect("a daemon");
    spin_in_a_turn(pid, "thinmap-fuse");
    wait_for(&world, "word of it", || {
        world.daemon_log().contains("there is no keeper")
    });
    assert_eq!(world.daemon_pid(), Some(pid));
    kill_and_wait(pid);
    drop(load);
    // Cleans up what the dead one left.
    world.sh("dmsetup ls");
    world.end();
}

#[test]
fn a_daemon_that_is_stopped_by_somebody_does_not_hang() {
    if !can_make_block_devices("a_daemon_that_is_stopped_by_somebody_does_not_hang") {
        return;
    }
    let world = world(1, true);
    let pid = world.daemon_pid().expect("a daemon");
    world.sh(&format!("kill -STOP {pid}; sleep 4; kill -CONT {pid}"));
    world.sh("dd if=$M/lin of=/dev/null bs=1M iflag=direct; sleep 2");
    assert_eq!(world.daemon_pid(), Some(pid));
    world.sh("dmsetup remove lin");
    world.end();
}

#[test]
fn a_stop_by_force_does_not_wait_for_a_thread_that_hangs() {
    if !can_make_block_devices("a_stop_by_force_does_not_wait_for_a_thread_that_hangs") {
        return;
    }
    let world = world(2, true);
    let load = read_for_ever(&world);
    let pid = world.daemon_pid().expect("a daemon");
    spin_in_a_turn(pid, "thinmap-fuse");
    // Cut off, as the daemon ends without order.
    let _ = world.try_sh("timeout 60 thinmap --no-autostart stop --force");
    wait_for(&world, "end", || {
        world
            .try_sh("flock -n $RUN/control.lock true")
            .status
            .success()
    });
    drop(load);
    // Cleans up what it left.
    world.sh("dmsetup ls");
    world.end();
}
