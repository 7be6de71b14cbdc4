//! kill -9 of the daemon under load, again and again: the metadata is clean and every flushed write is there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::flush_log::FlushLog;
use crate::world::{World, can_make_block_devices};

const SECTORS: u64 = 204_800;

#[test]
fn fifty_kills_under_load_lose_no_flushed_write() {
    if !can_make_block_devices("fifty_kills_under_load_lose_no_flushed_write") {
        return;
    }
    let rounds: u32 = std::env::var("THINMAP_KILLS")
        .map_or(50, |n| n.parse().expect("THINMAP_KILLS is a number"));
    let world = World::without_keeper();
    world.make_pool("2G", "");
    world.make_thin(0, "fio-vol", SECTORS);
    world.make_thin(1, "log-vol", SECTORS);
    let mut log = FlushLog::new(SECTORS);
    let mut rng = StdRng::seed_from_u64(20_261_123);
    for round in 1..=rounds {
        let load = start_load(&world);
        let stop = AtomicBool::new(false);
        let wait = Duration::from_millis(rng.random_range(50..500));
        let snapshot = round + 1;
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                log.write_until(&world.dev_dir().join("log-vol"), &stop, u64::from(round))
            });
            std::thread::sleep(wait);
            // Snapshots break sharing under the load, so that commits are busy when the daemon dies.
            world.try_sh(&format!(
                "dmsetup message pool 0 'create_snap {snapshot} 0'"
            ));
            world.kill_daemon();
            stop.store(true, Ordering::Relaxed);
            writer
                .join()
                .expect("the writer ends with an error, not a panic");
        });
        end_load(load);
        world.sh("thin_check meta.img");
        world.sh(
            "dmsetup create pool --table \"0 4194304 thin-pool $PWD/meta.img $PWD/data.img 128 0\"
             dmsetup create fio-vol --table \"0 204800 thin $M/pool 0\"
             dmsetup create log-vol --table \"0 204800 thin $M/pool 1\"",
        );
        world.try_sh(&format!("dmsetup message pool 0 'delete {snapshot}'"));
        log.verify(&world.dev_dir().join("log-vol"), round);
    }
    assert!(
        log.flushes > u64::from(rounds),
        "only {} flushes in all rounds",
        log.flushes
    );
    println!(
        "{rounds} kills, {} flushed writes, {} flushes",
        log.flushed.len(),
        log.flushes
    );
    world.sh("dmsetup remove_all; thin_check meta.img");
    world.end();
}

fn start_load(world: &World) -> std::process::Child {
    world
        .command("fio")
        .args([
            "--name=load",
            "--direct=1",
            "--ioengine=libaio",
            "--iodepth=16",
            "--rw=randwrite",
        ])
        .args([
            "--bsrange=4k-128k",
            "--size=100m",
            "--time_based",
            "--runtime=60",
            "--fsync=16",
        ])
        .arg(format!(
            "--filename={}",
            world.dev_dir().join("fio-vol").display()
        ))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("fio runs")
}

fn end_load(mut load: std::process::Child) {
    for _ in 0..300 {
        if load.try_wait().expect("fio").is_some() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let _ = load.kill();
    let _ = load.wait();
    panic!("fio hangs on a device whose daemon is dead");
}
