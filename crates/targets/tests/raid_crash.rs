//! Power cuts under arrays: every disk keeps what was flushed and a random part of what was not, sector by sector. What is found
//! must hold every flushed write, and the members agree again after the resync of the dirty regions.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod raid_support;
mod snapshot_support;
mod support;

use std::sync::Arc;

use raid_support::{META, check, wait_idle};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use snapshot_support::power::Machine;
use snapshot_support::{CELL, read_sectors, write_cell};
use support::{World, request};
use thinmap_block::{BlockDevice, Op};
use thinmap_runtime::IoBuf;
use thinmap_units::Sector;

/// Of a member.
const LEN: u64 = 512;

/// By cell: the version that was flushed, and the one last written.
type Notes = Vec<(u32, u32)>;

struct Kind {
    line: &'static str,
    members: usize,
    /// Members' worth of data.
    data: u64,
}

const KINDS: &[Kind] = &[
    Kind {
        line: "raid1 5 0 daemon_sleep 10 region_size 32",
        members: 2,
        data: 1,
    },
    Kind {
        line: "raid1 3 0 region_size 256",
        members: 3,
        data: 1,
    },
    Kind {
        line: "raid10 5 16 raid10_format far region_size 64",
        members: 4,
        data: 2,
    },
    Kind {
        line: "raid10 5 8 daemon_sleep 10 region_size 32",
        members: 4,
        data: 2,
    },
    Kind {
        line: "raid5_ls 5 16 daemon_sleep 10 region_size 32",
        members: 3,
        data: 2,
    },
    Kind {
        line: "raid6_zr 3 8 region_size 64",
        members: 4,
        data: 2,
    },
];

impl Kind {
    fn len(&self) -> u64 {
        LEN * self.data
    }

    fn cells(&self) -> u64 {
        self.len() / CELL
    }

    fn table(&self) -> String {
        let pairs = (0..self.members).map(|n| format!(" m{n} d{n}"));
        let pairs: String = pairs.collect();
        format!(
            "0 {} raid {} {}{pairs}",
            self.len(),
            self.line,
            self.members
        )
    }

    fn disks(&self) -> Vec<u64> {
        (0..self.members).flat_map(|_| [META, LEN]).collect()
    }

    fn world(&self, disk: impl Fn(usize) -> Arc<dyn BlockDevice>) -> Arc<World> {
        let world = World::new();
        for member in 0..self.members {
            world.add(&format!("m{member}"), disk(2 * member));
            world.add(&format!("d{member}"), disk(2 * member + 1));
        }
        world
    }
}

/// Writes version after version, with flushes and suspends, until the power is cut or `steps` are done.
fn live_on(machine: &Machine<Notes>, rng: &mut SmallRng, dev: &dyn BlockDevice, steps: u32) {
    for step in 1..=steps {
        if machine.is_cut() {
            return;
        }
        if rng.random_range(0..6) == 0 {
            let mut written = Vec::new();
            machine.note(|notes| written = notes.iter().map(|cell| cell.1).collect());
            assert!(request(dev, Op::Flush, 0, 0).is_ok());
            machine.note(|notes| {
                let cells = notes.iter_mut().zip(&written);
                cells.for_each(|(cell, version)| cell.0 = *version);
            });
            continue;
        }
        let mut cells = 0;
        machine.note(|notes| cells = notes.len() as u64);
        // Some places are written again and again, others rarely: regions become clean and dirty.
        let cell = rng.random_range(0..cells) * rng.random_range(0..2);
        machine.note(|notes| notes[cell as usize].1 = step);
        assert!(write_cell(dev, cell, step).is_ok());
    }
}

fn found_world(kind: &Kind, images: &[Vec<u8>]) -> Arc<World> {
    let disks: Vec<Arc<dyn BlockDevice>> = images
        .iter()
        .map(|bytes| {
            let disk = thinmap_block::backing::MemoryDevice::new(Sector(bytes.len() as u64 / 512));
            let mut buf = IoBuf::alloc(bytes.len());
            buf.as_mut_slice().copy_from_slice(bytes);
            assert!(thinmap_block::write(&disk, Sector(0), buf).1.is_ok());
            Arc::new(disk) as Arc<dyn BlockDevice>
        })
        .collect();
    kind.world(|index| disks[index].clone())
}

fn cut_and_look(seed: u64, kind: &Kind) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let notes: Notes = (0..kind.cells()).map(|_| (0, 0)).collect();
    let machine = Machine::new(seed, &kind.disks(), notes);
    let world = kind.world(|index| machine.disk(index));
    let dev = world.live("r", &kind.table());
    // Later than its making: superblocks of which some are there are refused, as by a kernel.
    machine.cut_in(rng.random_range(1..400));
    live_on(&machine, &mut rng, &*dev, 150);
    let (images, notes) = machine.found();
    dev.destroy();

    let world = found_world(kind, &images);
    let dev = world.live("r", &kind.table());
    wait_idle(&dev);
    for (cell, (flushed, written)) in notes.iter().enumerate() {
        for found in read_sectors(&*dev, cell as u64).unwrap() {
            assert!(
                (*flushed..=*written).contains(&found),
                "seed {seed}, {}: cell {cell} has version {found}, flushed {flushed}, written {written}",
                kind.line
            );
        }
    }
    assert_eq!(check(&dev), 0, "seed {seed}, {}: members differ", kind.line);
    dev.destroy();
}

#[test]
fn crash_flushed_writes_stay_and_copies_agree_again() {
    for seed in 0..60 {
        for kind in KINDS {
            cut_and_look(seed, kind);
        }
    }
}
