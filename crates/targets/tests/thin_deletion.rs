//! Large volumes deleted in the background: what is answered, what goes on meanwhile, what a stop leaves.
//!
//! While the pool is suspended messages are obeyed and no step is taken: that is where a test finds a deletion half done.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod support;
mod thin_support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::MappedDevice;
use thinmap_runtime::IoBuf;
use thinmap_thin_metadata::{Block4k, MetadataDevice, OpenOptions, PoolMetadata};
use thinmap_units::{BlkStatus, DataBlock, MetaBlock, Sector, ThinId, VirtBlock};

use support::{Double, load, read_bytes, request, resume, write_fill};
use thin_support::sparse::Sparse;
use thin_support::{BLOCK, Image, Lab, SUSPEND, check_clean, info, message, until, used};

/// Mapped blocks of a volume that is too large to be deleted at once: more than 256 leaves.
const LARGE: u64 = 70_000;
/// Sectors of the metadata device.
const META: u64 = 8 * 2000;

/// A memory device that the metadata engine writes to.
struct Store(Arc<MemoryDevice>);

impl MetadataDevice for Store {
    fn size(&self) -> MetaBlock {
        MetaBlock(self.0.size().raw() / 8)
    }

    fn read(&self, block: MetaBlock, buf: &mut Block4k) -> std::io::Result<()> {
        Image(self.0.clone()).read(block, buf)
    }

    fn write(&self, batch: &[(MetaBlock, &Block4k)]) -> std::io::Result<()> {
        for (block, bytes) in batch {
            let mut buf = IoBuf::alloc(4096);
            buf.as_mut_slice().copy_from_slice(&bytes.0);
            let written = thinmap_block::write(&*self.0, Sector(block.raw() * 8), buf);
            assert!(written.1.is_ok());
        }
        Ok(())
    }

    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }
}

fn id(n: u32) -> ThinId {
    ThinId::new(u64::from(n)).unwrap()
}

/// Changes the metadata on a device that no pool has open.
fn edit(meta: &Arc<MemoryDevice>, blocks: u64, change: impl FnOnce(&mut PoolMetadata)) {
    let options = OpenOptions {
        data_block_size: Sector(BLOCK),
        format_if_zeroed: true,
        read_only: false,
        cache_blocks_max: 4096,
    };
    let mut pool = PoolMetadata::open(Arc::new(Store(meta.clone())), &options).unwrap();
    pool.resize_data(DataBlock(blocks)).unwrap();
    change(&mut pool);
    pool.commit().unwrap();
}

fn fill(pool: &mut PoolMetadata, volume: u32, blocks: u64) {
    pool.create_thin(id(volume)).unwrap();
    for v in 0..blocks {
        let data = pool.alloc_data_block().unwrap();
        pool.insert(id(volume), VirtBlock(v), data).unwrap();
    }
}

struct Setup {
    lab: Lab,
    meta: Arc<MemoryDevice>,
    double: Arc<Double>,
    data: Arc<Sparse>,
    blocks: u64,
    pool: Arc<MappedDevice>,
}

impl Setup {
    fn table(blocks: u64, features: &str) -> String {
        format!(
            "0 {} thin-pool meta data {BLOCK} 0 {features}",
            blocks * BLOCK
        )
    }

    /// A pool of `blocks` data blocks on metadata that `change` has made.
    fn new(
        meta_sectors: u64,
        blocks: u64,
        features: &str,
        change: impl FnOnce(&mut PoolMetadata),
    ) -> Self {
        let meta = Arc::new(MemoryDevice::new(Sector(meta_sectors)));
        edit(&meta, blocks, change);
        Self::open(meta, Sparse::new(blocks * BLOCK), blocks, features)
    }

    fn open(meta: Arc<MemoryDevice>, data: Arc<Sparse>, blocks: u64, features: &str) -> Self {
        let lab = Lab::new();
        let double = Double::new(meta.clone());
        lab.add("meta", double.clone());
        lab.add("data", data.clone());
        let pool = lab.live("pool", &Self::table(blocks, features));
        Self {
            lab,
            meta,
            double,
            data,
            blocks,
            pool,
        }
    }

    fn thin(&self, volume: u32) -> Arc<MappedDevice> {
        let table = format!("0 {} thin pool {volume}", 100_000 * BLOCK);
        self.lab.live(&format!("t{volume}"), &table)
    }

    fn used(&self) -> u64 {
        used(&info(&self.pool))
    }

    fn message(&self, text: &str) {
        message(&self.pool, text).unwrap();
    }

    /// Ends the pool as it is and opens another one on the same devices.
    fn again(self, features: &str) -> Self {
        self.pool.destroy();
        check_clean(&self.meta);
        Self::open(self.meta, self.data, self.blocks, features)
    }

    fn end(self) {
        self.pool.destroy();
        check_clean(&self.meta);
    }
}

/// The pool is suspended, its volume 1 deleted and not yet taken down.
fn half_done(features: &str) -> Setup {
    let setup = Setup::new(META, LARGE + 1000, features, |pool| {
        fill(pool, 1, LARGE);
        fill(pool, 2, 3);
    });
    setup.pool.suspend(SUSPEND).unwrap();
    setup.message("delete 1");
    let left = setup.used();
    assert!(left > LARGE / 2 && left < LARGE + 3, "one step: {left}");
    setup
}

#[test]
fn a_large_volume_is_gone_at_once_and_its_space_returns_later() {
    let setup = half_done("");
    let errno = |error: thinmap_dm::DeviceError| error.errno();
    assert_eq!(message(&setup.pool, "delete 1").map_err(errno), Err(61));
    // The id under which it is taken down is nobody's either.
    let hidden = "delete 16777215";
    assert_eq!(message(&setup.pool, hidden).map_err(errno), Err(61));
    let snap = "create_snap 7 16777215";
    assert_eq!(message(&setup.pool, snap).map_err(errno), Err(61));
    let opened = setup.lab.try_load("0 128 thin pool 16777215");
    assert_eq!(opened.map_err(errno), Err(61));
    setup.message("create_thin 1");
    setup.message("create_thin 16777215");
    resume(&setup.pool).unwrap();
    let (t, u) = (setup.thin(1), setup.thin(16_777_215));
    assert!(read_bytes(&*t, 0, 8).0.iter().all(|b| *b == 0));
    assert!(write_fill(&*t, 0, BLOCK, 1).is_ok());
    assert!(write_fill(&*u, 0, BLOCK, 2).is_ok());
    assert!(request(&*t, Op::Flush, 0, 0).is_ok());
    until("the space is back", || setup.used() == 5);
    assert!(read_bytes(&*t, 0, BLOCK).0.iter().all(|b| *b == 1));
    assert!(read_bytes(&*u, 0, BLOCK).0.iter().all(|b| *b == 2));
    t.destroy();
    u.destroy();
    setup.end();
}

#[test]
fn the_next_pool_on_the_devices_goes_on() {
    let setup = half_done("");
    let left = setup.used();
    let setup = setup.again("1 read_only");
    assert_eq!(setup.used(), left, "not while it may not change anything");
    let table = Setup::table(setup.blocks, "");
    load(&setup.pool, &table).unwrap();
    resume(&setup.pool).unwrap();
    until("the space is back", || setup.used() == 3);
    setup.end();
}

#[test]
fn everything_else_works_meanwhile() {
    let setup = Setup::new(META, 2 * LARGE + 2000, "", |pool| {
        fill(pool, 1, LARGE);
        fill(pool, 2, LARGE);
        fill(pool, 3, 100);
        pool.create_snap(id(4), id(2)).unwrap();
        for v in 0..500 {
            let data = pool.alloc_data_block().unwrap();
            pool.insert(id(2), VirtBlock(v * 139), data).unwrap();
        }
    });
    let t = setup.thin(3);
    setup.message("reserve_metadata_snap");
    setup.message("delete 1");
    setup.message("delete 2");
    setup.message("set_transaction_id 0 5");
    for round in 0..40 {
        assert!(write_fill(&*t, (200 + round) * BLOCK, BLOCK, 9).is_ok());
        assert!(request(&*t, Op::Flush, 0, 0).is_ok());
        assert!(request(&*t, Op::Discard, round * BLOCK, BLOCK).is_ok());
        if round % 10 == 5 {
            setup.pool.suspend(SUSPEND).unwrap();
            resume(&setup.pool).unwrap();
        }
        if round == 20 {
            setup.message("release_metadata_snap");
        }
        setup.message(&format!("create_snap {} 3", 100 + round));
        setup.message(&format!("delete {}", 100 + round));
    }
    // The snapshot has all that it had.
    until("the space is back", || setup.used() == LARGE + 100);
    assert!(info(&setup.pool).starts_with("5 "));
    setup.message("delete 4");
    until("all of it", || setup.used() == 100);
    t.destroy();
    setup.end();
}

/// Volume 1 and a snapshot 2 of it, which has as much again of its own, behind what it shares.
fn shared_then_own(pool: &mut PoolMetadata) {
    fill(pool, 1, LARGE);
    pool.create_snap(id(2), id(1)).unwrap();
    for v in LARGE..2 * LARGE {
        let data = pool.alloc_data_block().unwrap();
        pool.insert(id(2), VirtBlock(v), data).unwrap();
    }
    pool.create_thin(id(3)).unwrap();
}

#[test]
fn no_write_is_told_that_there_is_no_space_after_a_delete() {
    let features = "1 error_if_no_space";
    let setup = Setup::new(META, 2 * LARGE, features, shared_then_own);
    let t = setup.thin(3);
    assert_eq!(write_fill(&*t, 0, 8, 1), BlkStatus::NoSpc);
    setup.pool.suspend(SUSPEND).unwrap();
    setup.message("delete 2");
    assert_eq!(setup.used(), 2 * LARGE, "what goes first is shared");
    let t2 = t.clone();
    let writer = std::thread::spawn(move || write_fill(&*t2, 0, 8, 1));
    // If it comes later than that, space may be there already; it must never fail.
    std::thread::sleep(std::time::Duration::from_millis(20));
    resume(&setup.pool).unwrap();
    assert!(writer.join().unwrap().is_ok());
    for v in 1..400 {
        assert!(write_fill(&*t, v * BLOCK, 8, 1).is_ok(), "{v}");
    }
    until("the space is back", || setup.used() == LARGE + 400);
    assert!(info(&setup.pool).contains(" rw "));
    t.destroy();
    setup.end();
}

#[test]
fn writes_that_wait_go_on_as_space_returns() {
    let setup = Setup::new(META, LARGE + 3, "", |pool| {
        fill(pool, 1, LARGE);
        fill(pool, 2, 3);
    });
    let t = setup.thin(2);
    let writers: Vec<_> = (0..8)
        .map(|n| {
            let t = t.clone();
            std::thread::spawn(move || write_fill(&*t, (10 + n) * BLOCK, 8, 7))
        })
        .collect();
    until("full", || info(&setup.pool).contains(" out_of_data_space "));
    setup.message("delete 1");
    for writer in writers {
        assert!(writer.join().unwrap().is_ok());
    }
    until("the space is back", || setup.used() == 11);
    assert!(info(&setup.pool).contains(" rw "));
    t.destroy();
    setup.end();
}

#[test]
fn a_full_metadata_device_gets_room_by_a_deletion() {
    let setup = Setup::new(8 * 1000, 3 * LARGE, "", |pool| {
        shared_then_own(pool);
        // Far apart, until nothing but the reserve is free.
        for v in 0.. {
            let data = pool.alloc_data_block().unwrap();
            let at = VirtBlock(v * 6007 % 90_001);
            pool.insert(id(3), at, data).unwrap();
            pool.commit().unwrap();
            if pool.free_metadata_blocks().raw() < 2 {
                break;
            }
        }
    });
    let t = setup.thin(3);
    // The first steps free none, and moving the volume needs one or two.
    setup.message("delete 2");
    assert!(info(&setup.pool).contains(" rw "), "{}", info(&setup.pool));
    for v in 0..3000 {
        let at = v * 29 % 90_001;
        assert!(write_fill(&*t, at * BLOCK, BLOCK, 1).is_ok(), "{v}");
    }
    assert!(info(&setup.pool).contains(" rw "), "{}", info(&setup.pool));
    t.destroy();
    setup.end();
}

#[test]
fn a_volume_scattered_over_the_data_device_is_deleted_on_metadata_that_is_full() {
    // Each leaf's blocks lie in a hundred bitmaps, more than there is room to copy.
    const BITMAPS: u64 = 100;
    let blocks = BITMAPS * 16_320;
    let setup = Setup::new(8 * 150, blocks, "", |pool| {
        pool.create_thin(id(1)).unwrap();
        for v in 0..1500 {
            let data = DataBlock(v % BITMAPS * 16_320 + v / BITMAPS);
            pool.inc_data_range(data, DataBlock(data.raw() + 1))
                .unwrap();
            pool.insert(id(1), VirtBlock(v), data).unwrap();
        }
    });
    let refused = (1000..).find(|n| message(&setup.pool, &format!("create_thin {n}")).is_err());
    assert!(refused.is_some_and(|n| n < 1150));
    assert!(info(&setup.pool).contains(" ro "), "{}", info(&setup.pool));
    setup.message("delete 1");
    until("the space is back", || setup.used() == 0);
    let status = info(&setup.pool);
    assert!(
        status.contains(" rw ") && status.contains(" - "),
        "{status}"
    );
    setup.message("create_thin 1");
    setup.end();
}

#[test]
fn a_failed_step_leaves_clean_metadata_that_is_to_be_checked() {
    for n in [0, 1, 3, 10, 40] {
        let setup = half_done("");
        setup.double.fail_in.store(n, Ordering::SeqCst);
        resume(&setup.pool).unwrap();
        until("it has failed or is done", || {
            let status = info(&setup.pool);
            status.contains(" needs_check ") || used(&status) == 3
        });
        setup.double.fail_in.store(-1, Ordering::SeqCst);
        setup.end();
    }
}
