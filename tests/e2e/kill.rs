//! kill -9 of the daemon under load, again and again: the metadata is clean and every flushed write is there.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{Mode, OFlags};
use thinmap_runtime::IoBuf;

use crate::world::{World, can_make_block_devices};

const SECTORS: u64 = 204_800;
const WRITE_BYTES: usize = 4096;

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
    let mut log = FlushLog::default();
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

/// What was written and flushed, block by block: a generation number each.
#[derive(Default)]
struct FlushLog {
    /// Block to the generation that a flush has covered.
    flushed: HashMap<u64, u64>,
    /// Block to the highest generation ever submitted: anything between the two may be there.
    submitted: HashMap<u64, u64>,
    generation: u64,
    flushes: u64,
}

impl FlushLog {
    /// Writes random blocks and flushes every few, until `stop` or the device fails.
    fn write_until(&mut self, path: &Path, stop: &AtomicBool, seed: u64) {
        let Ok(fd) = open(path, OFlags::RDWR) else {
            return;
        };
        let mut rng = StdRng::seed_from_u64(seed);
        let blocks = SECTORS * 512 / WRITE_BYTES as u64;
        let mut buf = IoBuf::alloc(WRITE_BYTES);
        while !stop.load(Ordering::Relaxed) {
            let mut pending = Vec::new();
            for _ in 0..rng.random_range(1..16) {
                let block = rng.random_range(0..blocks);
                self.generation += 1;
                fill(&mut buf, block, self.generation);
                self.submitted.insert(block, self.generation);
                if rustix::io::pwrite(&fd, buf.as_slice(), block * WRITE_BYTES as u64)
                    != Ok(WRITE_BYTES)
                {
                    return;
                }
                pending.push((block, self.generation));
            }
            if rustix::fs::fdatasync(&fd).is_err() {
                return;
            }
            self.flushes += 1;
            self.flushed.extend(pending);
        }
    }

    /// Every flushed block holds its flushed generation, or one that was submitted later.
    fn verify(&self, path: &Path, round: u32) {
        let fd = open(path, OFlags::RDONLY).expect("the volume opens again");
        let mut buf = IoBuf::alloc(WRITE_BYTES);
        for (block, least) in &self.flushed {
            let read = rustix::io::pread(&fd, buf.as_mut_slice(), block * WRITE_BYTES as u64);
            assert_eq!(read, Ok(WRITE_BYTES), "round {round}: block {block}");
            let (at, generation) = header(&buf);
            let most = self.submitted[block];
            assert!(
                at == *block && (*least..=most).contains(&generation),
                "round {round}: block {block} holds block {at} generation {generation}, not {least}..={most}"
            );
            let mut expected = IoBuf::alloc(WRITE_BYTES);
            fill(&mut expected, *block, generation);
            assert!(
                buf.as_slice() == expected.as_slice(),
                "round {round}: block {block} is torn"
            );
        }
    }
}

fn open(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(
        path,
        flags | OFlags::DIRECT | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn fill(buf: &mut IoBuf, block: u64, generation: u64) {
    let bytes = buf.as_mut_slice();
    for (i, chunk) in bytes.chunks_exact_mut(16).enumerate() {
        chunk[..8].copy_from_slice(&(block + (i as u64) * 3).to_le_bytes());
        chunk[8..].copy_from_slice(&generation.to_le_bytes());
    }
}

fn header(buf: &IoBuf) -> (u64, u64) {
    let word =
        |at: usize| u64::from_le_bytes(buf.as_slice()[at..at + 8].try_into().expect("8 bytes"));
    (word(0), word(8))
}
