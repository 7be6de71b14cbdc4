//! Random lives of an origin with three snapshots, beside a model in memory; and many threads at once over devices that answer in
//! any order.

mod snapshot_support;
mod support;
mod thin_support;

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use snapshot_support::*;
use support::delayed::Delayed;
use support::{read_bytes, write_fill};
use thin_support::Lab;
use thinmap_block::BlockDevice;
use thinmap_block::backing::MemoryDevice;
use thinmap_dm::MappedDevice;
use thinmap_units::Sector;

const SIZE: u64 = 600;

/// A device and what it must hold, a byte for each sector.
struct Twin {
    dev: Arc<MappedDevice>,
    sectors: Vec<u8>,
}

impl Twin {
    fn write(&mut self, rng: &mut SmallRng) {
        let at = rng.random_range(0..SIZE);
        let longest = [3, 20, 300][rng.random_range(0..3)];
        let len = rng.random_range(1..=longest).min(SIZE - at);
        let byte = rng.random();
        assert!(write_fill(&*self.dev, at, len, byte).is_ok());
        self.sectors[at as usize..(at + len) as usize].fill(byte);
    }

    fn check(&self, rng: &mut SmallRng) {
        let at = rng.random_range(0..SIZE);
        let len = rng.random_range(1..=64).min(SIZE - at);
        let (bytes, status) = read_bytes(&*self.dev, at, len);
        assert!(status.is_ok());
        for (sector, bytes) in bytes.chunks(512).enumerate() {
            let expected = self.sectors[at as usize + sector];
            assert!(
                bytes.iter().all(|b| *b == expected),
                "sector {}",
                at as usize + sector
            );
        }
    }
}

fn line(slot: usize, kind: &str, chunk: u64) -> String {
    format!("0 {SIZE} snapshot base cow{slot} {kind} {chunk}")
}

#[test]
fn random_lives_agree_with_the_model() {
    let seeds = std::env::var("THINMAP_SEEDS")
        .map_or(40, |n| n.parse().expect("THINMAP_SEEDS is a number"));
    for seed in 0..seeds {
        let mut rng = SmallRng::seed_from_u64(seed);
        let lab = Lab::new();
        let _base = lab.memory("base", SIZE);
        let cows: Vec<_> = (0..3)
            .map(|i| lab.memory(&format!("cow{i}"), 16_384))
            .collect();
        let origin_line = format!("0 {SIZE} snapshot-origin base");
        let mut origin = Twin {
            dev: lab.live("o", &origin_line),
            sectors: vec![0; SIZE as usize],
        };
        let mut snapshots: [Option<(Twin, String)>; 3] = [None, None, None];
        for step in 0..400 {
            let slot = rng.random_range(0..3);
            match rng.random_range(0..20) {
                0..8 => origin.write(&mut rng),
                8..12 => {
                    if let Some((twin, _)) = &mut snapshots[slot] {
                        twin.write(&mut rng);
                    }
                }
                12..16 => {
                    origin.check(&mut rng);
                    snapshots
                        .iter()
                        .flatten()
                        .for_each(|(twin, _)| twin.check(&mut rng));
                }
                16..18 => match snapshots[slot].take() {
                    None => {
                        // A device that was used before begins with zeroes again.
                        assert!(write_fill(&*cows[slot], 0, 8, 0).is_ok());
                        let kind = ["P", "PO", "N"][rng.random_range(0..3)];
                        let line = line(slot, kind, [1, 8, 32][rng.random_range(0..3)]);
                        let twin = Twin {
                            dev: lab.live(&format!("s{step}"), &line),
                            sectors: origin.sectors.clone(),
                        };
                        snapshots[slot] = Some((twin, line));
                    }
                    Some((twin, line)) if line.contains(" N ") => {
                        replace(&twin.dev, &line);
                        snapshots[slot] = Some((twin, line));
                    }
                    Some((twin, line)) => {
                        // Gone, with no write to the origin, and back.
                        twin.dev.destroy();
                        let dev = lab.live(&format!("r{step}"), &line);
                        snapshots[slot] = Some((Twin { dev, ..twin }, line));
                    }
                },
                18 => {
                    if let Some((twin, line)) = snapshots[slot].take() {
                        twin.dev.destroy();
                        if !line.contains(" N ") {
                            let merge = line.replace("snapshot ", "snapshot-merge ");
                            replace(&origin.dev, &merge);
                            origin.sectors = twin.sectors;
                            // Goes on meanwhile.
                            origin.write(&mut rng);
                            origin.check(&mut rng);
                            origin.write(&mut rng);
                            wait_merged(&origin.dev);
                            replace(&origin.dev, &origin_line);
                        }
                    }
                }
                _ => {
                    if let Some((twin, line)) = &snapshots[slot] {
                        replace(&twin.dev, line);
                    }
                }
            }
        }
        for (twin, _) in snapshots.iter().flatten() {
            assert_ne!(info(&twin.dev), "Invalid", "seed {seed}");
            (0..40).for_each(|_| twin.check(&mut rng));
        }
        (0..40).for_each(|_| origin.check(&mut rng));
    }
}

/// Each thread owns every fourth cell: what it wrote last is what it must read, on the origin and on a snapshot, while all
/// others make exceptions around it.
#[test]
fn threads_that_write_at_once_see_their_own_writes() {
    const CELLS: u64 = 256;
    let size = CELLS * CELL;
    for (seed, words) in ["P 8", "P 64", "N 16"].into_iter().enumerate() {
        let lab = Lab::new();
        let base = Arc::new(MemoryDevice::new(Sector(size)));
        fill_cells(&*base, CELLS);
        lab.add("base", Delayed::new(base, seed as u64));
        let cow: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(Sector(4 * size)));
        lab.add("cow", Delayed::new(cow, 7 + seed as u64));
        let origin = lab.live("o", &format!("0 {size} snapshot-origin base"));
        let s = lab.live("s", &format!("0 {size} snapshot base cow {words}"));
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (origin, s) = (&origin, &s);
                scope.spawn(move || {
                    let mut rng = SmallRng::seed_from_u64(thread);
                    let mut versions: Vec<[u32; 2]> =
                        (0..CELLS).map(|c| [c as u32 + 1; 2]).collect();
                    for step in 0..300 {
                        let cell = rng.random_range(0..CELLS / 4) * 4 + thread;
                        let which = rng.random_range(0..2);
                        let dev = if which == 0 { origin } else { s };
                        if rng.random() {
                            assert!(write_cell(&**dev, cell, 1000 + step).is_ok());
                            versions[cell as usize][which] = 1000 + step;
                        }
                        for (dev, version) in [origin, s].into_iter().zip(versions[cell as usize]) {
                            assert_eq!(read_cell(&**dev, cell), Ok(version), "cell {cell}");
                        }
                    }
                });
            }
        });
        assert_ne!(info(&s), "Invalid");
        s.destroy();
        origin.destroy();
    }
}
