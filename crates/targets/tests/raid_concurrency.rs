//! Many writers while members fail, come back, are replaced, and checks run: no byte is wrong, and copies agree in the end.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod raid_support;
mod support;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use raid_support::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::*;
use thinmap_block::BlockDevice;
use thinmap_dm::MappedDevice;
use thinmap_runtime::IoBuf;
use thinmap_units::Sector;

const LEN: u64 = 16384;
const WRITERS: u64 = 3;

/// Writes and reads back its own part of the array until told to stop; what it holds then.
fn work(dev: &dyn BlockDevice, begin: u64, len: u64, seed: u64, stop: &AtomicBool) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut model = vec![0; (len * 512) as usize];
    while !stop.load(SeqCst) {
        let sectors = rng.random_range(1..=40);
        let at = rng.random_range(0..=len - sectors);
        let range = (at * 512) as usize..((at + sectors) * 512) as usize;
        if rng.random_range(0..3) > 0 {
            let mut buf = IoBuf::alloc(range.len());
            rng.fill(buf.as_mut_slice());
            model[range].copy_from_slice(buf.as_slice());
            let status = thinmap_block::write(dev, Sector(begin + at), buf).1;
            assert!(status.is_ok(), "write {begin}+{at}: {status:?}");
        } else {
            let (bytes, status) = read_bytes(dev, begin + at, sectors);
            assert!(status.is_ok(), "read {begin}+{at}: {status:?}");
            assert!(bytes == model[range], "wrong bytes at {begin}+{at}");
        }
    }
    model
}

fn under_load(line: &str, members: usize, data: u64, seed: u64) {
    let mut lab = RaidLab::new(members, LEN);
    let numbers: Vec<usize> = (0..members).collect();
    let len = LEN * data;
    let dev = lab.array(len, &format!("{line} {}", lab.members(&numbers)));
    let stop = AtomicBool::new(false);
    let part = len / WRITERS / 8 * 8;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WRITERS)
            .map(|nr| {
                let (dev, stop) = (dev.clone(), &stop);
                scope.spawn(move || work(&*dev, nr * part, part, seed + nr, stop))
            })
            .collect();
        let rounds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut numbers = numbers.clone();
            for _ in 0..3 {
                trouble(&mut lab, &dev, (line, len), &mut numbers, &mut rng);
            }
            numbers
        }));
        stop.store(true, SeqCst);
        let models: Vec<Vec<u8>> = workers.into_iter().map(|w| w.join().unwrap()).collect();
        rounds.unwrap();
        for (nr, model) in (0..).zip(&models) {
            let (bytes, status) = read_bytes(&*dev, nr * part, part);
            assert!(status.is_ok() && bytes == *model, "{line}: part {nr}");
        }
    });
    assert_eq!(check(&dev), 0, "{line}");
    dev.destroy();
}

/// A member fails and is replaced, or comes back; a check runs.
fn trouble(
    lab: &mut RaidLab,
    dev: &MappedDevice,
    (line, len): (&str, u64),
    numbers: &mut [usize],
    rng: &mut SmallRng,
) {
    wait_idle(dev);
    let victim = rng.random_range(0..numbers.len());
    lab.break_member(numbers[victim], true);
    wait(dev, |words| words[0].contains('D'));
    std::thread::sleep(std::time::Duration::from_millis(5));
    let mut words = line.splitn(3, ' ');
    let (name, count, rest) = (words.next(), words.next(), words.next());
    let count: u32 = count.unwrap().parse().unwrap();
    let (name, rest) = (name.unwrap(), rest.unwrap());
    if rng.random_range(0..2) == 0 {
        lab.break_member(numbers[victim], false);
        let members = lab.members(numbers);
        replace(
            dev,
            &format!("0 {len} raid {name} {count} {rest} {members}"),
        );
    } else {
        numbers[victim] = lab.add(LEN);
        let members = lab.members(numbers);
        let count = count + 2;
        let table = format!("0 {len} raid {name} {count} {rest} rebuild {victim} {members}");
        replace(dev, &table);
    }
    wait_idle(dev);
    assert_eq!(health(dev), "A".repeat(numbers.len()), "{line}");
    // What is being written to is no mismatch: windows and writes exclude each other.
    assert_eq!(check(dev), 0, "{line}");
}

const FAST: &str = "min_recovery_rate 1000000 max_recovery_rate 2000000";

#[test]
fn concurrency_raid1_under_load() {
    for seed in 0..2 {
        let line = format!("raid1 7 0 region_size 256 {FAST}");
        under_load(&line, 2, 1, seed);
        under_load(&line, 3, 1, seed + 100);
    }
}

#[test]
fn concurrency_raid10_under_load() {
    for seed in 0..1 {
        for format in ["near", "far", "offset"] {
            let line = format!("raid10 9 64 raid10_format {format} region_size 512 {FAST}");
            under_load(&line, 4, 2, seed);
        }
    }
}

#[test]
fn concurrency_parity_under_load() {
    for seed in 0..1 {
        for (name, members, data) in [("raid5_ls", 3, 2), ("raid6_zr", 5, 3), ("raid4", 4, 3)] {
            let line = format!("{name} 7 64 region_size 512 {FAST}");
            under_load(&line, members, data, seed);
        }
    }
}
