//! Against Debian's thin-provisioning-tools: what we write passes thin_check and dumps as what we
//! meant; what thin_restore writes opens here with every mapping right.

mod support;

use support::*;
use thinmap_thin_metadata::{Lookup, MayRead};
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
