//! A discard passed down must not reach data to which the transaction on disk still gives another volume a right.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod support;
mod thin_support;

use std::sync::Arc;

use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::MappedDevice;
use thinmap_units::Sector;

use support::{read_bytes, request, write_fill};
use thin_support::manual::{ManualSpawner, ManualTime};
use thin_support::{BLOCK, Lab, check_clean, message};

const META: u64 = 8192;
const DATA: u64 = 64 * BLOCK;
const POOL: &str = "0 8192 thin-pool meta data 128 0";
const VOLUME: u64 = 16 * BLOCK;

/// What a power cut at this moment leaves of a device that has no cache.
fn copy_of(dev: &MemoryDevice) -> Arc<MemoryDevice> {
    let copy = Arc::new(MemoryDevice::new(dev.size()));
    for at in (0..dev.size().raw()).step_by(BLOCK as usize) {
        let (bytes, status) = read_bytes(dev, at, BLOCK);
        assert!(status.is_ok());
        let mut buf = thinmap_runtime::IoBuf::alloc(bytes.len());
        buf.as_mut_slice().copy_from_slice(&bytes);
        assert!(thinmap_block::write(&*copy, Sector(at), buf).1.is_ok());
    }
    copy
}

/// What volume 0 holds in its first block when the pool is found as `meta` and `data` are now.
fn first_block_after_cut(meta: &MemoryDevice, data: &MemoryDevice) -> Vec<u8> {
    let lab = Lab::new();
    let (meta, data) = (copy_of(meta), copy_of(data));
    lab.add("meta", meta.clone());
    lab.add("data", data);
    let pool = lab.live("pool", POOL);
    let t = lab.live("t", &format!("0 {VOLUME} thin pool 0"));
    let (bytes, status) = read_bytes(&*t, 0, BLOCK);
    assert!(status.is_ok());
    t.destroy();
    pool.destroy();
    check_clean(&meta);
    bytes
}

struct Shared {
    pool: Arc<MappedDevice>,
    volume: Arc<MappedDevice>,
    snap: Arc<MappedDevice>,
    meta: Arc<MemoryDevice>,
    data: Arc<MemoryDevice>,
    _lab: Lab,
}

/// A volume with a flushed block of ones, and a snapshot of it. Time stands still: nothing is committed unasked.
fn shared_block() -> Shared {
    let time = Arc::new(ManualTime::default());
    let lab = Lab::with(Arc::new(ManualSpawner(time.clone())), time);
    let (meta, data) = (lab.memory("meta", META), lab.memory("data", DATA));
    let pool = lab.live("pool", POOL);
    message(&pool, "create_thin 0").unwrap();
    let volume = lab.live("t", &format!("0 {VOLUME} thin pool 0"));
    assert!(write_fill(&*volume, 0, BLOCK, 1).is_ok());
    assert!(request(&*volume, Op::Flush, 0, 0).is_ok());
    message(&pool, "create_snap 1 0").unwrap();
    let snap = lab.live("s", &format!("0 {VOLUME} thin pool 1"));
    Shared {
        pool,
        volume,
        snap,
        meta,
        data,
        _lab: lab,
    }
}

fn end(shared: Shared) {
    shared.volume.destroy();
    shared.snap.destroy();
    shared.pool.destroy();
    check_clean(&shared.meta);
}

#[test]
fn a_snapshots_discard_spares_what_its_origin_maps_after_a_power_cut() {
    let shared = shared_block();
    // The volume gets its own copy, of which nothing is on disk; now the snapshot alone refers to the old block.
    assert!(write_fill(&*shared.volume, 0, 8, 2).is_ok());
    assert!(request(&*shared.snap, Op::Discard, 0, BLOCK).is_ok());
    let found = first_block_after_cut(&shared.meta, &shared.data);
    assert!(
        found[8 * 512..].iter().all(|b| *b == 1),
        "what was flushed is gone"
    );
    end(shared);
}

#[test]
fn a_suspension_of_the_pool_outwaits_such_discards() {
    let shared = shared_block();
    assert!(write_fill(&*shared.volume, 0, 8, 2).is_ok());
    let snap = shared.snap.clone();
    let discard = std::thread::spawn(move || request(&*snap, Op::Discard, 0, BLOCK));
    shared.pool.suspend(thin_support::SUSPEND).unwrap();
    support::resume(&shared.pool).unwrap();
    assert!(discard.join().unwrap().is_ok());
    let (bytes, status) = read_bytes(&*shared.snap, 0, BLOCK);
    assert!(status.is_ok() && bytes.iter().all(|b| *b == 0));
    end(shared);
}
