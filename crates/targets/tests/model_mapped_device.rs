//! Random tables under random requests, against a flat array of bytes.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside test functions"
)]

mod support;

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use support::delayed::Delayed;
use support::*;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, IoFlags, Op, submit_and_wait};
use thinmap_dm::MappedDevice;
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

const DEVICE_SECTORS: u64 = 4096;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Data,
    /// On the device that takes no discards.
    DataNoDiscard,
    Zero,
    Error,
}

struct Model {
    bytes: Vec<u8>,
    /// By sector.
    kinds: Vec<Kind>,
}

/// A table of lines that use each part of the devices `a` (delayed), `b` (no write-zeroes), `c` (no discard) at most once.
fn random_table(rng: &mut SmallRng) -> (String, Model) {
    let mut next = [0u64; 3];
    let names = ["a", "b", "c"];
    let mut take = |rng: &mut SmallRng, device: usize, len: u64| {
        next[device] += rng.random_range(0..4);
        let start = next[device];
        next[device] += len;
        assert!(next[device] <= DEVICE_SECTORS);
        format!("{} {start}", names[device])
    };
    let (mut table, mut kinds) = (String::new(), Vec::new());
    for _ in 0..rng.random_range(1..12) {
        let start = kinds.len();
        let kind = match rng.random_range(0..10) {
            0 => Kind::Zero,
            1 => Kind::Error,
            _ => Kind::Data,
        };
        let chunk = rng.random_range(1..24u64);
        let stripes = rng.random_range(1..=3usize);
        let rows = rng.random_range(1..6);
        let (len, line, kind) = match kind {
            Kind::Zero => (rng.random_range(1..60), "zero".to_owned(), kind),
            Kind::Error => (rng.random_range(1..10), "error".to_owned(), kind),
            _ if rng.random_bool(0.5) => {
                let device = rng.random_range(0..3);
                let len = rng.random_range(1..200);
                let kind = if device == 2 {
                    Kind::DataNoDiscard
                } else {
                    kind
                };
                (len, format!("linear {}", take(rng, device, len)), kind)
            }
            _ => {
                let places: Vec<String> = (0..stripes)
                    .map(|device| take(rng, device, chunk * rows))
                    .collect();
                let line = format!("striped {stripes} {chunk} {}", places.join(" "));
                let kind = if stripes == 3 {
                    Kind::DataNoDiscard
                } else {
                    kind
                };
                (chunk * rows * stripes as u64, line, kind)
            }
        };
        table.push_str(&format!("{start} {len} {line}\n"));
        kinds.extend(std::iter::repeat_n(kind, usize::try_from(len).unwrap()));
    }
    let bytes = vec![0; kinds.len() * 512];
    (table, Model { bytes, kinds })
}

impl Model {
    /// What the request must end with.
    fn expected(&self, op: Op, from: usize, to: usize) -> Vec<BlkStatus> {
        let touched = &self.kinds[from..to];
        let mut possible = Vec::new();
        if touched.contains(&Kind::Error) {
            possible.push(BlkStatus::IoErr);
        }
        if op == Op::Discard && touched.contains(&Kind::DataNoDiscard) {
            possible.push(BlkStatus::NotSupp);
        }
        if possible.is_empty() {
            possible.push(BlkStatus::Ok);
        }
        possible
    }

    /// Takes over a change of `from..to`: sector by sector the new content, or, after a failure, the old or the new.
    fn apply(&mut self, dev: &MappedDevice, from: usize, new: &[u8], failed: bool) {
        for (index, new) in new.chunks(512).enumerate() {
            let sector = from + index;
            if matches!(self.kinds[sector], Kind::Zero | Kind::Error) {
                continue;
            }
            let old = &mut self.bytes[sector * 512..][..512];
            if failed {
                let (now, status) = read_bytes(dev, sector as u64, 1);
                assert_eq!(status, BlkStatus::Ok);
                assert!(now == *old || now == new, "sector {sector} is neither");
                old.copy_from_slice(&now);
            } else {
                old.copy_from_slice(new);
            }
        }
    }
}

fn step(rng: &mut SmallRng, dev: &MappedDevice, model: &mut Model) {
    let size = model.kinds.len();
    let from = rng.random_range(0..size);
    let to = (from + rng.random_range(1..300)).min(size);
    let (sectors, bytes) = ((to - from) as u64, (to - from) * 512);
    let op = match rng.random_range(0..20) {
        0 => Op::Flush,
        1..3 => Op::Discard,
        3..5 => Op::WriteZeroes,
        5..12 => Op::Write,
        _ => Op::Read,
    };
    let mut buf = match op {
        Op::Read | Op::Write => IoBuf::alloc(bytes),
        _ => IoBuf::empty(),
    };
    if op == Op::Write {
        rng.fill(buf.as_mut_slice());
    }
    let new = match op {
        Op::Write => buf.as_slice().to_vec(),
        _ => vec![0; bytes],
    };
    let (at, len) = match op {
        Op::Flush => (0, 0),
        _ => (from as u64, sectors),
    };
    let flags = IoFlags {
        fua: rng.random_bool(0.2),
        ..IoFlags::default()
    };
    let (buf, status) = submit_and_wait(dev, (op, flags, Sector(at), Sector(len), buf));
    let possible = match op {
        Op::Flush if model.kinds.contains(&Kind::Error) => vec![BlkStatus::IoErr],
        Op::Flush => vec![BlkStatus::Ok],
        _ => model.expected(op, from, to),
    };
    assert!(
        possible.contains(&status),
        "{op:?} {from}..{to}: {status:?}, not {possible:?}"
    );
    match op {
        Op::Read => {
            assert_eq!(buf.len(), bytes, "the buffer came back whole");
            if status.is_ok() {
                assert!(buf.as_slice() == &model.bytes[from * 512..to * 512]);
            }
        }
        Op::Write | Op::Discard | Op::WriteZeroes => {
            model.apply(dev, from, &new, !status.is_ok());
        }
        Op::Flush => {}
    }
}

fn world(seed: u64) -> Arc<World> {
    let world = World::new();
    let memory = || Arc::new(MemoryDevice::new(Sector(DEVICE_SECTORS)));
    world.add("a", Delayed::new(memory(), seed));
    let no_zeroes = Double::new(memory());
    no_zeroes.limits.lock().max_write_zeroes = Sector::ZERO;
    world.add("b", no_zeroes);
    let no_discard = Double::new(memory());
    no_discard.limits.lock().max_discard = Sector::ZERO;
    world.add("c", no_discard);
    world
}

#[test]
fn model_random_tables_behave_like_a_flat_array() {
    for seed in 0..60 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let world = world(seed);
        let (table, mut model) = random_table(&mut rng);
        let dev = world.live("one", &table);
        assert_eq!(dev.size(), Sector(model.kinds.len() as u64));
        for _ in 0..200 {
            step(&mut rng, &dev, &mut model);
        }
        dev.destroy();
    }
}

#[test]
fn a_large_discard_over_many_lines_is_cut_with_a_window() {
    let world = World::new();
    world.add(
        "a",
        Delayed::new(Arc::new(MemoryDevice::new(Sector(2000))), 1),
    );
    let table: String = (0..1000)
        .map(|i| format!("{} 2 linear a {}\n", i * 2, 1998 - i * 2))
        .collect();
    let dev = world.live("one", &table);
    assert_eq!(write_fill(&*dev, 0, 2000, 5), BlkStatus::Ok);
    assert_eq!(request(&*dev, Op::Discard, 1, 1998), BlkStatus::Ok);
    let (bytes, status) = read_bytes(&*dev, 0, 2000);
    assert_eq!(status, BlkStatus::Ok);
    let ends = [&bytes[..512], &bytes[1999 * 512..]];
    assert!(ends.iter().all(|end| end.iter().all(|b| *b == 5)));
    assert!(bytes[512..1999 * 512].iter().all(|b| *b == 0));
}
