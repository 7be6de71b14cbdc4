//! A pool filled to the brim for data, then for metadata, under load, then grown: no flushed write is lost, no flush fails, and
//! nothing has to be checked.

use std::time::Instant;

use crate::flush_log::FlushLog;
use crate::world::{World, can_make_block_devices};

/// 1 GiB each, of which the first data device holds a few per cent and the first metadata device maps a tenth.
const VOLUME_SECTORS: u64 = 2_097_152;
const VOLUMES: u32 = 3;
const REFUSALS: u32 = 10;

#[test]
fn a_pool_filled_to_the_brim_under_load_and_grown_loses_no_flushed_write() {
    if !can_make_block_devices(
        "a_pool_filled_to_the_brim_under_load_and_grown_loses_no_flushed_write",
    ) {
        return;
    }
    let rounds: u32 = std::env::var("THINMAP_FULL_ROUNDS")
        .map_or(3, |n| n.parse().expect("THINMAP_FULL_ROUNDS is a number"));
    let world = World::new();
    let began = Instant::now();
    let (mut flushes, mut blocks, mut snapshots) = (0, 0, 0);
    for round in 1..=rounds {
        let mut logs: Vec<FlushLog> = (0..VOLUMES)
            .map(|_| FlushLog::new(VOLUME_SECTORS))
            .collect();
        snapshots += fill_and_grow(&world, round, &mut logs);
        flushes += logs.iter().map(|log| log.flushes).sum::<u64>();
        blocks += logs.iter().map(|log| log.flushed.len()).sum::<usize>();
    }
    println!(
        "{rounds} rounds full for data, then for metadata, then grown: {blocks} flushed blocks verified, {flushes} flushes, \
         {snapshots} snapshots taken meanwhile, {:.1} s",
        began.elapsed().as_secs_f64()
    );
    world.end();
}

fn fill_and_grow(world: &World, round: u32, logs: &mut [FlushLog]) -> u32 {
    world.sh("rm -f meta.img data.img; truncate -s 256K meta.img; truncate -s 48M data.img");
    let sectors = |mebibytes: u64| mebibytes * 2048;
    let table = |mebibytes| {
        let sectors = sectors(mebibytes);
        format!("0 {sectors} thin-pool $PWD/meta.img $PWD/data.img 128 64 1 error_if_no_space")
    };
    world.sh(&format!("dmsetup create pool --table \"{}\"", table(48)));
    for id in 0..VOLUMES {
        world.make_thin(id, &format!("vol{id}"), VOLUME_SECTORS);
    }
    world.make_thin(5, "filler", VOLUME_SECTORS);
    let mut snapshots = load(world, round, logs, 1000);
    at_the_brim(world, round, logs, "out_of_data_space");

    world.sh(&format!(
        "truncate -s 8G data.img; dmsetup load pool --table \"{}\"; dmsetup resume pool",
        table(8192)
    ));
    snapshots += load(world, round, logs, 2000);
    at_the_brim(world, round, logs, "ro");

    // What frees works at 100 %, by itself leads back, and costs nobody anything.
    world.sh("dmsetup message pool 0 'create_thin 9' && exit 1; dmsetup message pool 0 'delete 2' && exit 1
        dmsetup remove vol2; dmsetup message pool 0 'delete 2'; dmsetup message pool 0 'set_transaction_id 0 1'");
    let status = status(world);
    assert!(
        status.contains(" rw ") && status.starts_with("1 "),
        "round {round}: {status}"
    );
    verify(world, round, &logs[..2]);

    load(world, round, &mut logs[..2], 3000);
    at_the_brim(world, round, &logs[..2], "ro");
    world.sh(&format!(
        "truncate -s 8M meta.img; dmsetup load pool --table \"{}\"; dmsetup resume pool
         dd if=/dev/zero of=$M/vol0 bs=4K count=1 seek=262143 oflag=direct conv=fsync status=none",
        table(8192)
    ));
    let status = self::status(world);
    assert!(
        status.contains("/2048 ") && status.contains(" rw "),
        "round {round}: {status}"
    );
    // The last block was just written over.
    logs[0].flushed.remove(&262_143);
    verify(world, round, &logs[..2]);
    world.sh("dmsetup remove_all; thin_check meta.img");
    snapshots
}

/// A writer on each volume until it is refused, beside snapshots that come and go. Gives how many.
fn load(world: &World, round: u32, logs: &mut [FlushLog], first_snapshot: u32) -> u32 {
    let volumes = u32::try_from(logs.len()).expect("few");
    let mut id = first_snapshot;
    std::thread::scope(|scope| {
        let writers: Vec<_> = logs
            .iter_mut()
            .enumerate()
            .map(|(n, log)| {
                let path = world.dev_dir().join(format!("vol{n}"));
                let seed = u64::from(round) * 10_000 + u64::from(first_snapshot) + n as u64;
                scope.spawn(move || log.write_until_refused(&path, REFUSALS, seed))
            })
            .collect();
        while !writers
            .iter()
            .all(std::thread::ScopedJoinHandle::is_finished)
        {
            // A pool without room refuses it.
            world.try_sh(&format!(
                "dmsetup message pool 0 'create_snap {id} {}'",
                id % volumes
            ));
            id += 1;
            if id > first_snapshot + 3 {
                world.try_sh(&format!("dmsetup message pool 0 'delete {}'", id - 3));
            }
        }
        for writer in writers {
            writer.join().expect("the writer ends");
        }
    });
    for left in first_snapshot..id {
        world.try_sh(&format!("dmsetup message pool 0 'delete {left}'"));
    }
    id - first_snapshot
}

/// Full again without the snapshots, and then: no check is needed, and all that was flushed is there.
fn at_the_brim(world: &World, round: u32, logs: &[FlushLog], mode: &str) {
    // The snapshots' deletion has given room.
    let filler = world.dev_dir().join("filler");
    FlushLog::new(VOLUME_SECTORS).write_until_refused(&filler, 1, u64::from(round));
    let status = status(world);
    assert!(
        status.contains(&format!(" {mode} ")) && status.contains(" error_if_no_space - "),
        "round {round}: {status}"
    );
    verify(world, round, logs);
}

fn verify(world: &World, round: u32, logs: &[FlushLog]) {
    for (n, log) in logs.iter().enumerate() {
        assert!(log.flushes > 0, "round {round}: nothing was flushed");
        log.verify(&world.dev_dir().join(format!("vol{n}")), round);
    }
}

/// The pool's status, without start, length and target.
fn status(world: &World) -> String {
    let line = world.sh("dmsetup status pool");
    line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned()
}
