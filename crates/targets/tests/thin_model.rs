//! Volumes against plain byte arrays: random requests one after another, then many threads with snapshots under load.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod support;
mod thin_support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, IoFlags, Op};
use thinmap_dm::MappedDevice;
use thinmap_units::Sector;

use support::delayed::Delayed;
use support::{read_bytes, request};
use thin_support::{Lab, check_clean, flagged, info, message, used};

const BLOCK: u64 = 128;
const VOLUME: u64 = 24 * BLOCK;

struct Model {
    lab: Lab,
    pool: Arc<MappedDevice>,
    meta: Arc<MemoryDevice>,
    volumes: BTreeMap<u32, (Arc<MappedDevice>, Vec<u8>)>,
    next_id: u32,
    rng: SmallRng,
}

impl Model {
    fn new(seed: u64, features: &str) -> Self {
        let lab = Lab::new();
        let meta = lab.memory("meta", 16384);
        let data = Arc::new(MemoryDevice::new(Sector(400 * BLOCK)));
        lab.add("data", Delayed::new(data, seed));
        let table = format!("0 {} thin-pool meta data {BLOCK} 0 {features}", 400 * BLOCK);
        let pool = lab.live("pool", &table);
        Self {
            lab,
            pool,
            meta,
            volumes: BTreeMap::new(),
            next_id: 0,
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    fn open(&mut self, content: Vec<u8>) {
        let id = self.next_id;
        self.next_id += 1;
        let dev = self
            .lab
            .live(&format!("t{id}"), &format!("0 {VOLUME} thin pool {id}"));
        self.volumes.insert(id, (dev, content));
    }

    fn some_volume(&mut self) -> u32 {
        let n = self.rng.random_range(0..self.volumes.len());
        *self.volumes.keys().nth(n).unwrap()
    }

    fn step(&mut self) {
        let choice = self.rng.random_range(0..100);
        if self.volumes.is_empty() || (choice < 3 && self.volumes.len() < 6) {
            message(&self.pool, &format!("create_thin {}", self.next_id)).unwrap();
            self.open(vec![0; (VOLUME * 512) as usize]);
            return;
        }
        let id = self.some_volume();
        match choice {
            3..8 if self.volumes.len() < 6 => {
                let content = self.volumes[&id].1.clone();
                message(&self.pool, &format!("create_snap {} {id}", self.next_id)).unwrap();
                self.open(content);
            }
            8..12 if self.volumes.len() > 1 => {
                let (dev, _) = self.volumes.remove(&id).unwrap();
                dev.destroy();
                message(&self.pool, &format!("delete {id}")).unwrap();
            }
            _ => self.request(id, choice),
        }
    }

    fn request(&mut self, id: u32, choice: u32) {
        let sector = self.rng.random_range(0..VOLUME);
        let max = if choice.is_multiple_of(3) { VOLUME } else { 40 };
        let sectors = self.rng.random_range(1..=(VOLUME - sector).min(max));
        let byte = self.rng.random_range(1..=255u8);
        let (dev, content) = self.volumes.get_mut(&id).unwrap();
        let range = (sector * 512) as usize..((sector + sectors) * 512) as usize;
        let fua = IoFlags {
            fua: choice.is_multiple_of(7),
            no_unmap: choice.is_multiple_of(2),
        };
        match choice {
            12..60 => {
                assert!(flagged(&**dev, Op::Write, fua, sector, sectors, byte).is_ok());
                content[range].fill(byte);
            }
            60..70 => {
                assert!(flagged(&**dev, Op::WriteZeroes, fua, sector, sectors, 0).is_ok());
                content[range].fill(0);
            }
            70..78 => {
                assert!(request(&**dev, Op::Discard, sector, sectors).is_ok());
                let (first, last) = (sector.div_ceil(BLOCK), (sector + sectors) / BLOCK);
                if first < last {
                    content[(first * BLOCK * 512) as usize..(last * BLOCK * 512) as usize].fill(0);
                }
            }
            78..82 => assert!(request(&**dev, Op::Flush, 0, 0).is_ok()),
            _ => {
                let (bytes, status) = read_bytes(&**dev, sector, sectors);
                assert!(status.is_ok());
                assert!(bytes == content[range], "volume {id} at {sector}+{sectors}");
            }
        }
    }

    fn finish(self) {
        let ids: Vec<u32> = self.volumes.keys().copied().collect();
        for (id, (dev, content)) in self.volumes {
            let (bytes, status) = read_bytes(&*dev, 0, VOLUME);
            assert!(status.is_ok() && bytes == content, "volume {id} at the end");
            dev.destroy();
        }
        for id in ids {
            message(&self.pool, &format!("delete {id}")).unwrap();
        }
        assert_eq!(used(&info(&self.pool)), 0, "no lost space");
        self.pool.destroy();
        check_clean(&self.meta);
    }
}

#[test]
fn random_requests_agree_with_plain_arrays() {
    for seed in 0..12 {
        let features = ["", "1 no_discard_passdown"][seed as usize % 2];
        let mut model = Model::new(seed, features);
        for _ in 0..700 {
            model.step();
        }
        model.finish();
    }
}

/// Threads that share blocks but not sectors, under snapshots that are taken, read and deleted.
#[test]
fn writers_of_one_block_and_snapshots_under_load() {
    const WRITERS: u64 = 6;
    const ROUNDS: u64 = 150;
    let mut model = Model::new(77, "");
    message(&model.pool, "create_thin 0").unwrap();
    model.open(Vec::new());
    let dev = model.volumes[&0].0.clone();
    let done = AtomicBool::new(false);
    let latest: Vec<AtomicU64> = (0..WRITERS).map(|_| AtomicU64::new(0)).collect();
    // Each writer: place A, then, when that has ended, place B, the same number: a snapshot may have the new A with the old
    // B, never the other way round.
    let place = |writer: u64, which: u64, round: u64| {
        (which * 8 + round % 3) * BLOCK + (round % 2) * 64 + writer * 8
    };
    std::thread::scope(|scope| {
        let (done, dev, latest) = (&done, &dev, &latest);
        let writers: Vec<_> = (0..WRITERS)
            .map(|w| {
                scope.spawn(move || {
                    for round in 1..=ROUNDS {
                        for which in 0..2 {
                            let at = place(w, which, 0);
                            let byte = u8::try_from(round).unwrap();
                            let flags = IoFlags::default();
                            assert!(flagged(&**dev, Op::Write, flags, at, 8, byte).is_ok());
                            let (back, _) = read_bytes(&**dev, at, 8);
                            assert!(back.iter().all(|b| *b == byte), "reads its own write");
                        }
                        if round % 16 == 0 {
                            assert!(request(&**dev, Op::Flush, 0, 0).is_ok());
                            let scratch = place(w, 2, round);
                            assert!(request(&**dev, Op::WriteZeroes, scratch, 4).is_ok());
                        }
                        latest[w as usize].store(round, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let lab = &model.lab;
        let pool = &model.pool;
        let taker = scope.spawn(move || {
            let mut id = 1;
            while !done.load(Ordering::SeqCst) {
                message(pool, &format!("create_snap {id} 0")).unwrap();
                let snap = lab.live(&format!("s{id}"), &format!("0 {VOLUME} thin pool {id}"));
                let read = || read_bytes(&*snap, 0, VOLUME).0;
                let image = read();
                for w in 0..WRITERS {
                    let round = |which| image[(place(w, which, 0) * 512) as usize];
                    let (a, b) = (round(0), round(1));
                    assert!(
                        a == b || a == b + 1,
                        "writer {w}: A {a} B {b} in snapshot {id}"
                    );
                    let at = (place(w, 0, 0) * 512) as usize;
                    assert!(image[at..at + 4096].iter().all(|x| *x == a), "torn");
                }
                assert!(read() == image, "snapshot {id} changed under its reader");
                snap.destroy();
                message(pool, &format!("delete {id}")).unwrap();
                id += 1;
            }
            id
        });
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::SeqCst);
        assert!(taker.join().unwrap() > 1, "snapshots were taken");
    });
    assert!(latest.iter().all(|l| l.load(Ordering::SeqCst) == ROUNDS));
    let (bytes, _) = read_bytes(&*dev, 0, VOLUME);
    model.volumes.get_mut(&0).unwrap().1 = bytes;
    drop(dev);
    model.finish();
}

#[test]
fn many_threads_write_one_new_block_at_once() {
    for seed in 0..10 {
        let mut model = Model::new(seed, "");
        message(&model.pool, "create_thin 0").unwrap();
        model.open(vec![0; (VOLUME * 512) as usize]);
        let dev = model.volumes[&0].0.clone();
        std::thread::scope(|scope| {
            for w in 0..8u64 {
                let dev: &dyn BlockDevice = &*dev;
                scope.spawn(move || {
                    for block in 0..4 {
                        let at = block * BLOCK + w * 16;
                        let flags = IoFlags::default();
                        let byte = (w + 1) as u8;
                        assert!(flagged(dev, Op::Write, flags, at, 16, byte).is_ok());
                    }
                });
            }
        });
        let content = &mut model.volumes.get_mut(&0).unwrap().1;
        for block in 0..4u64 {
            for w in 0..8u64 {
                let at = ((block * BLOCK + w * 16) * 512) as usize;
                content[at..at + 8192].fill((w + 1) as u8);
            }
        }
        drop(dev);
        assert_eq!(used(&info(&model.pool)), 4, "each block provisioned once");
        model.finish();
    }
}
