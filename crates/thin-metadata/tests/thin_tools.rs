//! Against Debian's thin-provisioning-tools: what we write passes thin_check and dumps as what we
//! meant; what thin_restore writes opens here with every mapping right.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use support::*;
use thinmap_thin_metadata::{Lookup, MayRead, check};
use thinmap_units::{MetaBlock, VirtBlock};

#[test]
fn fresh_pool_passes_thin_check() {
    let (disk, pool) = new_pool(1024, 1000);
    thin_check(&disk);
    assert_eq!(pool.data_blocks().raw(), 1000);
    assert_eq!(pool.free_data_blocks().raw(), 1000);
    assert_eq!(pool.metadata_blocks(), MetaBlock(1024));
}

#[test]
fn volumes_snapshots_and_removals_pass_thin_check() {
    let (disk, mut pool) = new_pool(4096, 100_000);
    pool.create_thin(id(0)).unwrap();
    for block in 0..3000 {
        map(&mut pool, 0, block * 7 % 3001);
    }
    pool.commit().unwrap();
    thin_check(&disk);
    for snap in 1..6 {
        pool.create_snap(id(snap), id(snap - 1)).unwrap();
        pool.commit().unwrap();
        for block in 0..200 {
            map(&mut pool, snap, block * 11);
        }
        pool.commit().unwrap();
        thin_check(&disk);
    }
    pool.remove_range(id(3), VirtBlock(100), VirtBlock(2500))
        .unwrap();
    pool.commit().unwrap();
    thin_check(&disk);
    pool.reserve_metadata_snap().unwrap();
    pool.commit().unwrap();
    thin_check(&disk);
    pool.delete_thin(id(0)).unwrap();
    pool.delete_thin(id(5)).unwrap();
    for block in 0..500 {
        map(&mut pool, 2, block * 5);
    }
    pool.commit().unwrap();
    thin_check(&disk);
    pool.release_metadata_snap().unwrap();
    pool.commit().unwrap();
    thin_check(&disk);
    let pool = reopen(&disk);
    assert_eq!(pool.device_ids().unwrap(), [id(1), id(2), id(3), id(4)]);
    assert_eq!(
        pool.lookup(id(3), VirtBlock(150), MayRead::Yes).unwrap(),
        Lookup::Unmapped
    );
    assert!(thin_dump(&disk).contains("<device dev_id=\"2\""));
}

#[test]
fn a_thousand_snapshots_come_and_go_without_a_trace() {
    let (disk, mut pool) = new_pool(12_000, 100_000);
    let free = (pool.free_metadata_blocks(), pool.free_data_blocks());
    pool.create_thin(id(0)).unwrap();
    for block in 0..2000 {
        map(&mut pool, 0, block);
    }
    for snap in 1..=1000 {
        pool.create_snap(id(snap), id(0)).unwrap();
        map(&mut pool, snap, snap);
        if snap % 100 == 0 {
            pool.commit().unwrap();
        }
    }
    pool.commit().unwrap();
    assert_eq!(pool.device_ids().unwrap().len(), 1001);
    assert!(check(disk.clone()).unwrap().is_empty());
    thin_check(&disk);
    for volume in 0..=1000 {
        pool.delete_thin(id(volume * 5 % 1001)).unwrap();
        if volume % 100 == 0 {
            pool.commit().unwrap();
        }
    }
    pool.commit().unwrap();
    // What the last transaction freed is free after the next.
    pool.set_transaction_id(0, 1).unwrap();
    pool.commit().unwrap();
    assert_eq!(pool.device_ids().unwrap(), []);
    assert!(check(disk.clone()).unwrap().is_empty());
    thin_check(&disk);
    let now = (pool.free_metadata_blocks(), pool.free_data_blocks());
    assert_eq!(now, free);
}

#[test]
fn needs_check_is_on_the_device_at_once_and_passes_nothing_else() {
    let (disk, mut pool) = new_pool(700, 1000);
    pool.create_thin(id(1)).unwrap();
    pool.set_needs_check().unwrap();
    assert!(pool.needs_check());
    let reopened = reopen(&disk);
    assert!(reopened.needs_check());
    assert!(!reopened.device_exists(id(1)).unwrap());
    pool.commit().unwrap();
    let reopened = reopen(&disk);
    assert!(reopened.needs_check() && reopened.device_exists(id(1)).unwrap());
    let file = tempfile::NamedTempFile::new().unwrap();
    disk.to_file(file.path()).unwrap();
    run(
        "thin_check",
        &["--clear-needs-check-flag", path(file.path())],
    );
    let cleared = thinmap_sim::SimMetadataDisk::from_file(file.path()).unwrap();
    assert!(!reopen(&cleared).needs_check());
}
