//! Opening: what is refused and as what, what it costs, what a reader may do meanwhile.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::sync::{Arc, RwLock};

use support::*;
use thinmap_persistent_data::{BlockKind, seal};
use thinmap_sim::SimMetadataDisk;
use thinmap_thin_metadata::{ErrorKind, Lookup, MayRead, OpenOptions, PoolMetadata, check};
use thinmap_units::{DataBlock, Sector, VirtBlock};

fn refusal(disk: &Arc<SimMetadataDisk>, options: &OpenOptions) -> (ErrorKind, i32) {
    match PoolMetadata::open(disk.clone(), options) {
        Ok(_) => panic!("opened"),
        Err(e) => (e.kind(), e.errno()),
    }
}

/// A pool whose superblock was changed at `at`, checksum made right.
fn altered(at: usize, value: u32) -> Arc<SimMetadataDisk> {
    let (disk, _) = new_pool(700, 100);
    disk.damage(0, |bytes| {
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        seal(BlockKind::Superblock, 0, bytes);
    });
    disk
}

#[test]
fn open_refuses_what_the_kernel_refuses() {
    let zeroed = SimMetadataDisk::new(100);
    let mut o = options();
    o.format_if_zeroed = false;
    assert_eq!(refusal(&zeroed, &o), (ErrorKind::Unformatted, 1));
    o.format_if_zeroed = true;
    o.read_only = true;
    assert_eq!(refusal(&zeroed, &o), (ErrorKind::Unformatted, 1));
    o = options();
    let garbage = SimMetadataDisk::new(100);
    garbage.damage(0, |bytes| bytes[4095] = 1);
    assert_eq!(refusal(&garbage, &o).0, ErrorKind::Corrupt);
    // A superblock that claims to be another block is ENOTBLK, a wrong checksum EILSEQ.
    for (at, errno) in [(8, 15), (48, 84), (4000, 84)] {
        let (disk, _) = new_pool(700, 100);
        disk.damage(0, |bytes| bytes[at] ^= 1);
        assert_eq!(refusal(&disk, &o), (ErrorKind::Corrupt, errno));
    }
    assert_eq!(refusal(&altered(32, 1), &o), (ErrorKind::Corrupt, 84));
    assert_eq!(refusal(&altered(360, 4), &o), (ErrorKind::Unsupported, 22));
    assert_eq!(refusal(&altered(356, 4), &o), (ErrorKind::Unsupported, 22));
    assert_eq!(refusal(&altered(40, 3), &o), (ErrorKind::Unsupported, 22));
    o.data_block_size = Sector(256);
    assert_eq!(refusal(&altered(352, 0), &o), (ErrorKind::Inval, 22));
    assert_eq!(refusal(&SimMetadataDisk::new(0), &o).0, ErrorKind::Inval);
}

#[test]
fn read_only_compat_features_allow_reading_and_refuse_changes() {
    let disk = altered(356, 4);
    let mut o = options();
    o.read_only = true;
    let mut pool = PoolMetadata::open(disk, &o).unwrap();
    assert_eq!(
        pool.create_thin(id(1)).unwrap_err().kind(),
        ErrorKind::ReadOnly
    );
    assert_eq!(pool.commit().unwrap_err().kind(), ErrorKind::ReadOnly);
}

#[test]
fn version_1_and_compat_flags_are_kept() {
    let (disk, _) = new_pool(700, 100);
    disk.damage(0, |bytes| {
        bytes[40] = 1;
        bytes[352] = 0x55;
        bytes[16..32].copy_from_slice(b"sixteen bytes id");
        seal(BlockKind::Superblock, 0, bytes);
    });
    let mut pool = reopen(&disk);
    assert_eq!(pool.version(), 1);
    pool.create_thin(id(1)).unwrap();
    pool.commit().unwrap();
    disk.damage(0, |bytes| {
        assert_eq!(bytes[40], 1);
        assert_eq!(bytes[352], 0x55);
        assert_eq!(&bytes[16..32], b"sixteen bytes id");
    });
    thin_check(&disk);
}

#[test]
fn lookups_without_reading_say_would_block_until_warm() {
    let (disk, mut pool) = new_pool(700, 1000);
    pool.create_thin(id(1)).unwrap();
    let data = map(&mut pool, 1, 5);
    pool.commit().unwrap();
    let pool = reopen(&disk);
    let cold = pool.lookup(id(1), VirtBlock(5), MayRead::No).unwrap_err();
    assert_eq!((cold.kind(), cold.errno()), (ErrorKind::WouldBlock, 11));
    let shared = false;
    let mapped = Lookup::Mapped { data, shared };
    assert_eq!(
        pool.lookup(id(1), VirtBlock(5), MayRead::Yes).unwrap(),
        mapped
    );
    assert_eq!(
        pool.lookup(id(1), VirtBlock(5), MayRead::No).unwrap(),
        mapped
    );
    let run = pool
        .lookup_run(id(1), VirtBlock(0), 100, MayRead::No)
        .unwrap();
    assert_eq!((run.first, run.blocks), (Lookup::Unmapped, 5));
    let run = pool
        .lookup_run(id(1), VirtBlock(6), 100, MayRead::No)
        .unwrap();
    assert_eq!((run.first, run.blocks), (Lookup::Unmapped, 100));
    let gone = pool.lookup(id(2), VirtBlock(5), MayRead::No).unwrap_err();
    assert_eq!((gone.kind(), gone.errno()), (ErrorKind::NotFound, 61));
}

#[test]
fn refused_requests_change_nothing_and_poison_nothing() {
    let (disk, mut pool) = new_pool(700, 1000);
    pool.create_thin(id(1)).unwrap();
    pool.commit().unwrap();
    let kind = |r: thinmap_thin_metadata::Result<()>| r.unwrap_err().kind();
    assert_eq!(kind(pool.create_thin(id(1))), ErrorKind::Exists);
    assert_eq!(kind(pool.create_snap(id(1), id(1))), ErrorKind::Exists);
    assert_eq!(kind(pool.create_snap(id(2), id(9))), ErrorKind::NotFound);
    assert_eq!(kind(pool.delete_thin(id(9))), ErrorKind::NotFound);
    assert_eq!(kind(pool.set_transaction_id(1, 2)), ErrorKind::Inval);
    assert_eq!(kind(pool.release_metadata_snap()), ErrorKind::Inval);
    assert!(!pool.changed());
    pool.reserve_metadata_snap().unwrap();
    assert_eq!(kind(pool.reserve_metadata_snap()), ErrorKind::Busy);
    pool.commit().unwrap();
    assert!(check(disk).unwrap().is_empty());
}

#[test]
fn metadata_snapshot_keeps_what_was_there() {
    let (disk, mut pool) = new_pool(2000, 10_000);
    pool.create_thin(id(1)).unwrap();
    for v in 0..1000 {
        map(&mut pool, 1, v);
    }
    pool.commit().unwrap();
    let free = pool.free_data_blocks();
    pool.reserve_metadata_snap().unwrap();
    pool.commit().unwrap();
    pool.delete_thin(id(1)).unwrap();
    pool.commit().unwrap();
    assert_eq!(pool.free_data_blocks(), free, "held blocks are not free");
    assert!(check(disk.clone()).unwrap().is_empty());
    thin_check(&disk);
    let file = tempfile::NamedTempFile::new().unwrap();
    disk.to_file(file.path()).unwrap();
    let held = run("thin_dump", &["--metadata-snap", path(file.path())]);
    assert!(held.contains("mapped_blocks=\"1000\""), "{held}");
    pool.release_metadata_snap().unwrap();
    pool.commit().unwrap();
    assert_eq!(pool.free_data_blocks(), DataBlock(10_000));
    assert!(check(disk.clone()).unwrap().is_empty());
    thin_check(&disk);
}

#[test]
fn readers_go_on_while_a_commit_is_written() {
    let (_disk, mut pool) = new_pool(2000, 10_000);
    pool.create_thin(id(1)).unwrap();
    for v in 0..1000 {
        map(&mut pool, 1, v);
    }
    let commit = pool.prepare_commit().unwrap();
    assert!(!commit.is_empty());
    let busy = pool.create_thin(id(2)).unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy);
    let pool = RwLock::new(pool);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for v in 0..1000 {
                    let found = pool
                        .read()
                        .unwrap()
                        .lookup(id(1), VirtBlock(v), MayRead::No);
                    assert!(matches!(found.unwrap(), Lookup::Mapped { .. }));
                }
            });
        }
        commit.write().unwrap();
    });
    let mut pool = pool.into_inner().unwrap();
    pool.finish_commit(commit, Ok(())).unwrap();
    assert!(!pool.changed());
    assert!(pool.prepare_commit().unwrap().is_empty());
}

#[test]
fn metadata_snap_keeps_its_state_whatever_the_same_transaction_does_next() {
    let (disk, mut pool) = new_pool(1000, 10_000);
    for volume in [1, 2] {
        pool.create_thin(id(volume)).unwrap();
        (0..300).for_each(|block| {
            map(&mut pool, volume, block);
        });
    }
    // All in one transaction: the held trees are blocks that it made.
    pool.reserve_metadata_snap().unwrap();
    let before = mappings(&pool, id(1));
    pool.remove_range(id(1), VirtBlock(0), VirtBlock(200))
        .unwrap();
    map(&mut pool, 1, 5000);
    map(&mut pool, 2, 0);
    pool.delete_thin(id(2)).unwrap();
    pool.commit().unwrap();
    assert!(check(disk.clone()).unwrap().is_empty());
    let file = tempfile::NamedTempFile::new().unwrap();
    disk.to_file(file.path()).unwrap();
    let dump = run("thin_dump", &["--metadata-snap", path(file.path())]);
    assert!(dump.contains(r#"dev_id="1" mapped_blocks="300""#), "{dump}");
    assert!(dump.contains(r#"dev_id="2" mapped_blocks="300""#), "{dump}");
    assert!(!dump.contains(r#"origin_block="5000""#));
    assert_eq!(before.len(), 300);
    pool.release_metadata_snap().unwrap();
    pool.commit().unwrap();
    assert!(check(disk).unwrap().is_empty());
}
