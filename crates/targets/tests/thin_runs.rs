//! A request over several blocks goes on as one when they lie in a row, and in pieces when anything needs doing.

mod support;
mod thin_support;

use std::sync::Arc;

use parking_lot::Mutex;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Io, IoFlags, Op, QueueLimits};
use thinmap_dm::MappedDevice;
use thinmap_units::{BlkStatus, Sector};

use support::{read_bytes, request, write_fill};
use thin_support::{BLOCK, Lab, check_clean, flagged, message};

const FUA: IoFlags = IoFlags {
    fua: true,
    no_unmap: false,
};

/// A data device that notes the reads and writes it gets, in sectors.
struct Noted {
    below: MemoryDevice,
    seen: Mutex<Vec<(Op, u64)>>,
}

impl BlockDevice for Noted {
    fn limits(&self) -> QueueLimits {
        self.below.limits()
    }

    fn size(&self) -> Sector {
        self.below.size()
    }

    fn submit(&self, io: Io) {
        if matches!(io.op, Op::Read | Op::Write) {
            self.seen.lock().push((io.op, io.sectors.raw()));
        }
        self.below.submit(io);
    }
}

impl Noted {
    fn seen(&self) -> Vec<(Op, u64)> {
        std::mem::take(&mut *self.seen.lock())
    }
}

/// A volume whose first `mapped` blocks were written in order, on a pool of 64.
fn with_volume(mapped: u64, test: impl Fn(&Noted, &MappedDevice, &Lab, &MappedDevice)) {
    let lab = Lab::new();
    let meta = lab.memory("meta", 8192);
    let data = Arc::new(Noted {
        below: MemoryDevice::new(Sector(64 * BLOCK)),
        seen: Mutex::default(),
    });
    lab.add("data", data.clone());
    let pool = lab.live(
        "pool",
        &format!("0 {} thin-pool meta data 128 0", 64 * BLOCK),
    );
    message(&pool, "create_thin 0").expect("a volume");
    let volume = lab.live("volume", &format!("0 {} thin pool 0", 64 * BLOCK));
    for block in 0..mapped {
        assert!(write_fill(&*volume, block * BLOCK, BLOCK, block as u8 + 1).is_ok());
    }
    data.seen();
    test(&data, &volume, &lab, &pool);
    volume.destroy();
    pool.destroy();
    check_clean(&meta);
}

/// Reads and compares with `want(block)` of each block.
fn holds(dev: &MappedDevice, sector: u64, sectors: u64, want: impl Fn(u64) -> u8) {
    let (bytes, status) = read_bytes(dev, sector, sectors);
    assert_eq!(status, BlkStatus::Ok);
    for (i, bytes) in bytes.chunks(512).enumerate() {
        let block = (sector + i as u64) / BLOCK;
        assert!(bytes.iter().all(|b| *b == want(block)), "block {block}");
    }
}

#[test]
fn blocks_in_a_row_are_read_and_written_as_one() {
    with_volume(8, |data, volume, _, _| {
        holds(volume, 5, 7 * BLOCK, |b| b as u8 + 1);
        assert_eq!(data.seen(), [(Op::Read, 7 * BLOCK)]);
        assert!(write_fill(volume, BLOCK - 8, 2 * BLOCK, 0xaa).is_ok());
        assert_eq!(data.seen(), [(Op::Write, 2 * BLOCK)]);
        holds(volume, BLOCK - 8, 2 * BLOCK, |_| 0xaa);
        holds(volume, 0, BLOCK - 8, |_| 1);
        holds(volume, 3 * BLOCK - 8, BLOCK, |b| b as u8 + 1);
    });
}

#[test]
fn a_hole_in_the_row_is_provisioned_in_its_piece() {
    with_volume(3, |data, volume, _, _| {
        assert!(write_fill(volume, 5 * BLOCK, BLOCK, 6).is_ok());
        data.seen();
        holds(volume, 2 * BLOCK, 4 * BLOCK, |b| {
            [3, 0, 0, 6][b as usize - 2]
        });
        assert_eq!(data.seen(), [(Op::Read, BLOCK), (Op::Read, BLOCK)]);
        assert!(write_fill(volume, 2 * BLOCK, 4 * BLOCK, 9).is_ok());
        holds(volume, 0, 8 * BLOCK, |b| match b {
            0 | 1 => b as u8 + 1,
            2..6 => 9,
            _ => 0,
        });
    });
}

#[test]
fn blocks_out_of_order_come_in_pieces() {
    with_volume(0, |data, volume, _, _| {
        for block in [1, 0, 2] {
            assert!(write_fill(volume, block * BLOCK, BLOCK, block as u8 + 1).is_ok());
        }
        data.seen();
        holds(volume, 0, 3 * BLOCK, |b| b as u8 + 1);
        assert_eq!(data.seen(), [(Op::Read, BLOCK); 3]);
    });
}

#[test]
fn shared_blocks_are_read_as_one_and_broken_one_by_one() {
    with_volume(4, |data, volume, lab, pool| {
        message(pool, "create_snap 1 0").expect("a snapshot");
        holds(volume, 0, 4 * BLOCK, |b| b as u8 + 1);
        assert_eq!(data.seen(), [(Op::Read, 4 * BLOCK)]);
        assert!(write_fill(volume, 0, 4 * BLOCK, 9).is_ok());
        holds(volume, 0, 4 * BLOCK, |_| 9);
        let snapshot = lab.live("snapshot", &format!("0 {} thin pool 1", 64 * BLOCK));
        holds(&snapshot, 0, 4 * BLOCK, |b| b as u8 + 1);
        snapshot.destroy();
    });
}

#[test]
fn durable_writes_and_beyond_the_line_are_right_too() {
    with_volume(64, |data, volume, _, _| {
        let durable = flagged(volume, Op::Write, FUA, 62 * BLOCK, 2 * BLOCK, 7);
        assert_eq!(durable, BlkStatus::Ok);
        assert!(!data.seen().is_empty());
        assert_eq!(
            request(volume, Op::Read, 63 * BLOCK, 2 * BLOCK),
            BlkStatus::IoErr
        );
        assert_eq!(data.seen(), []);
    });
}
