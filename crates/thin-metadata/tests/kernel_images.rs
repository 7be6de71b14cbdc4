//! Metadata that Linux 6.1 wrote: opens here clean, with the mappings that thin_dump sees, and passes
//! thin_check after changes made here.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::process::Command;
use std::sync::Arc;

use support::*;
use thinmap_sim::SimMetadataDisk;
use thinmap_thin_metadata::check;
use thinmap_units::{DataBlock, VirtBlock};

fn image(name: &str) -> Arc<SimMetadataDisk> {
    let file = format!(
        "{}/tests/fixtures/{name}.meta.gz",
        env!("CARGO_MANIFEST_DIR")
    );
    let unpacked = Command::new("gzip").args(["-dc", &file]).output().unwrap();
    assert!(unpacked.status.success());
    SimMetadataDisk::from_bytes(&unpacked.stdout)
}

#[test]
fn kernel_images_open_clean_with_the_right_mappings() {
    for (name, transaction) in [("kernel-6.1-a", 7), ("kernel-6.1-b", 8)] {
        let disk = image(name);
        let findings = check(disk.clone()).unwrap();
        assert!(findings.is_empty(), "{name}: {findings:?}");
        let pool = reopen(&disk);
        assert_eq!(pool.transaction_id(), transaction);
        assert!(pool.held_root().is_some());
        assert_eq!(pool.version(), 2);
        assert_eq!(pool.data_blocks(), DataBlock(1024));
        assert_eq!(pool.metadata_device_blocks(), pool.metadata_blocks());
        let dump = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(dump.path(), thin_dump(&disk)).unwrap();
        let again = tempfile::NamedTempFile::new().unwrap();
        again.as_file().set_len(4 << 20).unwrap();
        let (from, to) = (path(dump.path()), path(again.path()));
        run("thin_restore", &["-i", from, "-o", to]);
        let again = SimMetadataDisk::from_file(again.path()).unwrap();
        // A dump has no metadata snapshot, nor the data blocks that only it keeps.
        let mut state = state_of(&pool);
        let theirs = state_of(&reopen(&again));
        state.held = false;
        state.free_data_blocks = theirs.free_data_blocks;
        assert_eq!(state, theirs);
    }
}

#[test]
fn kernel_images_changed_here_pass_thin_check() {
    for name in ["kernel-6.1-a", "kernel-6.1-b"] {
        let disk = image(name);
        let mut pool = reopen(&disk);
        let ids = pool.device_ids().unwrap();
        let (first, second, third) = (ids[0], ids[1], ids[2]);
        pool.create_snap(id(100), second).unwrap();
        for v in 0..80 {
            map(&mut pool, u64::from(second.raw()), v);
            map(&mut pool, 100, v + 5);
        }
        pool.commit().unwrap();
        assert_eq!(check(disk.clone()).unwrap(), []);
        thin_check(&disk);
        pool.delete_thin(first).unwrap();
        pool.remove_range(third, VirtBlock(0), VirtBlock(50))
            .unwrap();
        pool.release_metadata_snap().unwrap();
        pool.commit().unwrap();
        pool.reserve_metadata_snap().unwrap();
        pool.resize_data(DataBlock(20_000)).unwrap();
        pool.commit().unwrap();
        assert_eq!(check(disk.clone()).unwrap(), []);
        thin_check(&disk);
    }
}
