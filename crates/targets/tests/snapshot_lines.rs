//! Snapshots by their tables: what they keep, what their status says, overflow, handover, merging, discards.

mod snapshot_support;
mod support;
mod thin_support;

use std::sync::Arc;

use snapshot_support::*;
use support::{lines, load, read_bytes, request, resume, write_fill};
use thin_support::Lab;
use thinmap_block::backing::MemoryDevice;
use thinmap_block::{BlockDevice, Op};
use thinmap_dm::{MappedDevice, StatusKind, SuspendFlags, WhichTable};
use thinmap_units::{BlkStatus, Sector};

const CELLS: u64 = 64;
const SIZE: u64 = CELLS * CELL;

struct Set {
    lab: Lab,
    cow: Arc<MemoryDevice>,
    origin: Arc<MappedDevice>,
}

/// An origin of 64 cells, filled, and a COW device of that many sectors.
fn set(cow: u64) -> Set {
    let lab = Lab::new();
    let base = lab.memory("base", SIZE);
    fill_cells(&*base, CELLS);
    let cow = lab.memory("cow", cow);
    let origin = lab.live("o", &format!("0 {SIZE} snapshot-origin base"));
    Set { lab, cow, origin }
}

impl Set {
    fn snapshot(&self, name: &str, words: &str) -> Arc<MappedDevice> {
        self.lab
            .live(name, &format!("0 {SIZE} snapshot base {words}"))
    }
}

fn keeps_first_versions(dev: &dyn BlockDevice) {
    for cell in 0..CELLS {
        assert_eq!(read_cell(dev, cell), Ok(cell as u32 + 1), "cell {cell}");
    }
}

fn events(dev: &MappedDevice) -> u32 {
    dev.info().event_nr
}

#[test]
fn a_snapshot_of_any_kind_and_chunk_keeps_what_the_origin_held() {
    for words in [
        "P 1", "P 8", "PO 16", "P 128", "P 0", "N 1", "N 8", "n 64", "p 8",
    ] {
        let set = set(4096);
        let s = set.snapshot("s", &format!("cow {words}"));
        for cell in (0..CELLS).rev() {
            assert!(write_cell(&*set.origin, cell, 500 + cell as u32).is_ok());
        }
        keeps_first_versions(&*s);
        // A request over many chunks.
        assert!(write_fill(&*set.origin, 3, 200, 7).is_ok());
        keeps_first_versions(&*s);
        // Written itself: the origin does not change.
        assert!(write_cell(&*s, 5, 77).is_ok());
        assert!(write_fill(&*s, 100, 3, 9).is_ok());
        assert_eq!(read_cell(&*s, 5), Ok(77));
        assert_eq!(read_bytes(&*s, 100, 3).0, [9; 1536]);
        assert_eq!(read_cell(&*set.origin, 60), Ok(560), "{words}");
        s.destroy();
    }
}

#[test]
fn a_store_comes_back_and_has_the_kernels_bytes() {
    let set = set(4096);
    let s = set.snapshot("s", "cow P 8");
    assert_eq!(info(&s), "16/4096 16");
    assert!(write_cell(&*set.origin, 3, 100).is_ok());
    assert!(write_cell(&*set.origin, 9, 101).is_ok());
    assert!(write_cell(&*s, 20, 102).is_ok());
    assert_eq!(info(&s), "40/4096 16");
    s.destroy();
    let image = image(&set.cow);
    assert_eq!(&image[..16], b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
    let slot = |i: usize| -> Vec<u8> { image[4096 + i * 16..4096 + i * 16 + 16].to_vec() };
    let expected =
        |old: u8, new: u8| [[old, 0, 0, 0, 0, 0, 0, 0], [new, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(slot(0), expected(3, 2));
    assert_eq!(slot(1), expected(9, 3));
    assert_eq!(slot(2), expected(20, 4));
    assert_eq!(slot(3), expected(0, 0));
    // The table says another chunk size: the store's counts.
    let s = set.snapshot("s2", "cow P 32");
    assert_eq!(info(&s), "40/4096 16");
    assert_eq!(table(&s), "7:0 7:1 P 8");
    assert_eq!(read_cell(&*s, 20), Ok(102));
    assert_eq!(read_cell(&*s, 3), Ok(4));
}

#[test]
fn areas_follow_one_another_and_are_counted_as_metadata() {
    let set = set(4096);
    let s = set.snapshot("s", "cow P 1");
    // 32 slots in an area of one sector.
    for sector in 0..31 {
        assert!(write_fill(&*set.origin, sector, 1, 1).is_ok());
    }
    assert_eq!(info(&s), "33/4096 2");
    assert!(write_fill(&*set.origin, 31, 1, 1).is_ok());
    assert_eq!(info(&s), "35/4096 3");
    assert!(write_fill(&*set.origin, 32, 100, 1).is_ok());
    assert_eq!(info(&s), "138/4096 6");
    s.destroy();
    let s = set.snapshot("again", "cow P 1");
    assert_eq!(info(&s), "138/4096 6");
    keeps_first_versions(&*s);
}

#[test]
fn a_full_snapshot_is_invalid_or_overflows() {
    // Room for header, area and two chunks.
    let set = set(32);
    let s = set.snapshot("s", "cow P 8");
    let before = events(&s);
    for cell in 0..2 {
        assert!(write_cell(&*s, cell, 7).is_ok());
    }
    assert_eq!(info(&s), "32/32 16");
    assert_eq!(write_cell(&*s, 2, 7), BlkStatus::IoErr);
    wait_info(&s, "Invalid");
    assert_eq!(read_cell(&*s, 0), Err(BlkStatus::IoErr));
    assert!(write_cell(&*set.origin, 9, 7).is_ok());
    s.destroy();
    assert!(events(&s) > before);
    let s = set.snapshot("again", "cow P 8");
    assert_eq!(info(&s), "Invalid");
    assert_eq!(table(&s), "7:0 7:1 P 8");
    s.destroy();

    let set = self::set(32);
    let s = set.snapshot("s", "cow PO 8");
    assert_eq!(table(&s), "7:0 7:1 PO 8");
    for cell in 0..2 {
        assert!(write_cell(&*s, cell, 7).is_ok());
    }
    assert_eq!(write_cell(&*s, 2, 7), BlkStatus::IoErr);
    assert_eq!(info(&s), "Overflow");
    // It keeps what it has, and takes nothing.
    assert_eq!(read_cell(&*s, 1), Ok(7));
    assert_eq!(read_cell(&*s, 2), Ok(3));
    assert_eq!(write_cell(&*s, 1, 8), BlkStatus::IoErr);
    // What it has already may change in the origin.
    assert!(write_cell(&*set.origin, 1, 50).is_ok());
    assert_eq!(info(&s), "Overflow");
    assert!(write_cell(&*set.origin, 2, 50).is_ok());
    assert_eq!(info(&s), "Invalid");
    assert_eq!(read_cell(&*set.origin, 2), Ok(50));
}

#[test]
fn a_cow_device_that_grows_has_room_again() {
    let set = set(32);
    let s = set.snapshot("s", "cow PO 8");
    assert!(write_cell(&*s, 0, 7).is_ok());
    assert!(write_cell(&*s, 1, 7).is_ok());
    set.cow.grow(Sector(64));
    assert!(write_cell(&*s, 2, 7).is_ok());
    assert_eq!(info(&s), "40/64 16");
}

#[test]
fn several_snapshots_of_one_origin_keep_their_own_time() {
    let set = set(4096);
    let _other = set.lab.memory("cow2", 4096);
    let _third = set.lab.memory("cow3", 4096);
    let first = set.snapshot("s1", "cow P 32");
    assert!(write_cell(&*set.origin, 0, 100).is_ok());
    let second = set.snapshot("s2", "cow2 P 8");
    assert!(write_cell(&*set.origin, 0, 200).is_ok());
    let third = set.snapshot("s3", "cow3 N 1");
    assert!(write_fill(&*set.origin, 0, SIZE, 9).is_ok());
    keeps_first_versions(&*first);
    assert_eq!(read_cell(&*second, 0), Ok(100));
    assert_eq!(read_cell(&*third, 0), Ok(200));
    assert_eq!(read_cell(&*third, 63), Ok(64));
    assert_eq!(info(&second), format!("{}/4096 16", 16 + SIZE));
    assert_eq!(info(&third), format!("{SIZE}/4096 0"));
    second.destroy();
    assert!(write_fill(&*set.origin, 0, SIZE, 10).is_ok());
    keeps_first_versions(&*first);
}

#[test]
fn a_reloaded_table_takes_the_snapshot_over() {
    let set = set(4096);
    let s = set.snapshot("s", "cow P 8");
    assert!(write_cell(&*set.origin, 1, 100).is_ok());
    let line = format!("0 {SIZE} snapshot base cow PO 8 1 discard_zeroes_cow");
    load(&s, &line).unwrap();
    let inactive = |kind| snapshot_support::line(&s, kind, WhichTable::Inactive);
    assert_eq!(
        inactive(StatusKind::Table),
        "7:0 7:1 PO 0 1 discard_zeroes_cow"
    );
    assert_eq!(inactive(StatusKind::Info), "0/4096 0");
    // A third one has nobody to take over from.
    let error = set.lab.try_load(&line).unwrap_err();
    assert_eq!(
        error.to_string(),
        "snapshot: Snapshot cow pairing for exception table handover failed"
    );
    assert_eq!(error.errno(), 22);
    assert!(write_cell(&*set.origin, 2, 100).is_ok());
    s.suspend(SuspendFlags::default()).unwrap();
    // Exceptions are made while it is suspended, too.
    assert!(write_cell(&*set.origin, 3, 100).is_ok());
    resume(&s).unwrap();
    assert_eq!(table(&s), "7:0 7:1 PO 8 1 discard_zeroes_cow");
    assert_eq!(info(&s), "40/4096 16");
    assert!(write_cell(&*set.origin, 4, 100).is_ok());
    keeps_first_versions(&*s);
}

#[test]
fn another_device_takes_over_from_a_suspended_source_only() {
    let set = set(4096);
    let s = set.snapshot("s", "cow P 8");
    let next = set.lab.device("next");
    load(&next, &format!("0 {SIZE} snapshot base cow P 8")).unwrap();
    let error = resume(&next).unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.errno()),
        (
            "snapshot: Unable to perform snapshot handover until source is suspended.",
            22
        )
    );
    s.suspend(SuspendFlags::default()).unwrap();
    let error = resume(&s).unwrap_err();
    assert_eq!(
        error.to_string(),
        "snapshot: Unable to resume snapshot source until handover completes."
    );
    resume(&next).unwrap();
    assert!(write_cell(&*set.origin, 0, 100).is_ok());
    keeps_first_versions(&*next);
    assert_eq!(info(&s), "Invalid");
    resume(&s).unwrap();
    assert_eq!(read_cell(&*s, 0), Err(BlkStatus::IoErr));
    s.destroy();
    keeps_first_versions(&*next);

    // A source that goes takes the snapshot along.
    let late = set.lab.device("late");
    load(&late, &format!("0 {SIZE} snapshot base cow P 8")).unwrap();
    next.destroy();
    resume(&late).unwrap();
    assert_eq!(info(&late), "Invalid");
}

#[test]
fn a_merge_brings_the_snapshot_back_and_leaves_others_alone() {
    for chunk in [1, 8, 32] {
        let set = set(4096);
        let _other = set.lab.memory("cow2", 4096);
        let s = set.snapshot("s", &format!("cow P {chunk}"));
        for cell in 0..40 {
            assert!(write_cell(&*set.origin, cell, 100).is_ok());
        }
        let other = set.snapshot("other", "cow2 P 8");
        for cell in [3, 50, 51] {
            assert!(write_cell(&*s, cell, 7).is_ok());
        }
        s.suspend(SuspendFlags::default()).unwrap();
        replace(
            &set.origin,
            &format!("0 {SIZE} snapshot-merge base cow P {chunk}"),
        );
        assert_eq!(info(&s), "Invalid");
        s.destroy();
        // While it goes on the device is the snapshot; writes count.
        assert!(write_cell(&*set.origin, 60, 61).is_ok());
        assert!(write_cell(&*set.origin, 0, 1).is_ok());
        wait_merged(&set.origin);
        let merged = |dev: &dyn BlockDevice| {
            for cell in 0..CELLS {
                let expected = if [3, 50, 51].contains(&cell) {
                    7
                } else {
                    cell as u32 + 1
                };
                assert_eq!(
                    read_cell(dev, cell),
                    Ok(expected),
                    "chunk {chunk} cell {cell}"
                );
            }
        };
        merged(&*set.origin);
        for cell in 0..40 {
            assert_eq!(read_cell(&*other, cell), Ok(100), "other's cell {cell}");
        }
        for cell in 40..CELLS {
            assert_eq!(read_cell(&*other, cell), Ok(cell as u32 + 1));
        }
        replace(&set.origin, &format!("0 {SIZE} snapshot-origin base"));
        merged(&*set.origin);
        // Nothing is left in the store.
        let empty = set.snapshot("empty", &format!("cow P {chunk}"));
        assert_eq!(info(&empty), format!("{}/4096 {}", 2 * chunk, 2 * chunk));
    }
}

#[test]
fn a_merge_is_refused_where_it_cannot_be() {
    let set = set(4096);
    let _other = set.lab.memory("cow2", 4096);
    let transient = set.snapshot("s", "cow N 8");
    let refused = |words: &str| {
        let line = format!("0 {SIZE} snapshot-merge base {words}");
        let error = set.lab.try_load(&line).unwrap_err();
        assert_eq!(error.errno(), 22);
        error.to_string()
    };
    let unsupported = "snapshot-merge: Snapshot exception store does not support snapshot-merge.";
    assert_eq!(refused("cow P 8"), unsupported);
    assert_eq!(refused("cow2 N 8"), unsupported);
    transient.destroy();
    let _merging = set
        .lab
        .live("m", &format!("0 {SIZE} snapshot-merge base cow P 8"));
    assert_eq!(
        refused("cow2 P 8"),
        "snapshot-merge: A snapshot is already merging."
    );
}

#[test]
fn an_invalid_snapshot_merges_nothing() {
    let set = set(32);
    let s = set.snapshot("s", "cow P 8");
    for cell in 0..4 {
        assert!(write_cell(&*set.origin, cell, 100).is_ok());
    }
    wait_info(&s, "Invalid");
    s.destroy();
    replace(
        &set.origin,
        &format!("0 {SIZE} snapshot-merge base cow P 8"),
    );
    assert_eq!(info(&set.origin), "Invalid");
    assert_eq!(read_cell(&*set.origin, 1), Ok(100));
    assert!(write_cell(&*set.origin, 1, 101).is_ok());
    assert_eq!(read_cell(&*set.origin, 1), Ok(101));
}

#[test]
fn discards_zero_exceptions_and_go_to_the_origin_where_asked() {
    let set = set(4096);
    let s = set.snapshot("s", "cow P 8");
    assert_eq!(request(&*s, Op::Discard, 0, 8), BlkStatus::NotSupp);
    s.destroy();
    assert_eq!(request(&*set.origin, Op::Discard, 0, 8), BlkStatus::NotSupp);
    let s = set.snapshot("s2", "cow P 8 1 discard_zeroes_cow");
    assert!(write_cell(&*s, 0, 7).is_ok());
    assert_eq!(request(&*s, Op::Discard, 0, 24), BlkStatus::Ok);
    assert_eq!(read_cell(&*s, 0), Ok(0));
    // No exception, no change.
    assert_eq!(read_cell(&*s, 1), Ok(2));
    assert_eq!(read_cell(&*set.origin, 0), Ok(1));
    s.destroy();
    let features = "2 discard_zeroes_cow discard_passdown_origin";
    let s = set.snapshot("s3", &format!("cow P 8 {features}"));
    assert!(table(&s).ends_with(&format!(" P 8 {features}")));
    assert_eq!(request(&*s, Op::Discard, 0, 16), BlkStatus::Ok);
    assert_eq!(read_cell(&*s, 0), Ok(0));
    // The origin has lost it, as the feature says: no exception is made.
    assert_eq!(read_cell(&*set.origin, 1), Ok(0));
    assert_eq!(info(&s), "24/4096 16");
}

#[test]
fn write_zeroes_are_written_out() {
    let set = set(4096);
    let s = set.snapshot("s", "cow P 8");
    assert!(request(&*set.origin, Op::WriteZeroes, 0, 40).is_ok());
    assert!(request(&*s, Op::WriteZeroes, 80, 16).is_ok());
    assert_eq!(read_cell(&*set.origin, 4), Ok(0));
    assert_eq!(read_cell(&*s, 4), Ok(5));
    assert_eq!(read_cell(&*s, 11), Ok(0));
    assert_eq!(read_cell(&*set.origin, 11), Ok(12));
}

#[test]
fn a_read_only_snapshot_still_gets_its_exceptions() {
    let set = set(4096);
    let s = set.lab.device("s");
    s.load(&lines(&format!("0 {SIZE} snapshot base cow P 8")), true)
        .unwrap();
    resume(&s).unwrap();
    assert!(write_cell(&*set.origin, 0, 100).is_ok());
    keeps_first_versions(&*s);
    assert_eq!(write_cell(&*s, 0, 100), BlkStatus::IoErr);
}

#[test]
fn a_snapshot_of_a_thin_volume_is_one() {
    let lab = Lab::new();
    let _meta = lab.memory("meta", 8192);
    let _data = lab.memory("data", 64 * 128);
    let _cow = lab.memory("cow", 4096);
    let pool = lab.live("pool", "0 8192 thin-pool meta data 128 0");
    thin_support::message(&pool, "create_thin 0").unwrap();
    let thin = lab.live("thin", &format!("0 {SIZE} thin pool 0"));
    fill_cells(&*thin, CELLS);
    let origin = lab.live("o", &format!("0 {SIZE} snapshot-origin thin"));
    let s = lab.live("s", &format!("0 {SIZE} snapshot thin cow P 8"));
    for cell in 0..CELLS {
        assert!(write_cell(&*origin, cell, 300).is_ok());
    }
    keeps_first_versions(&*s);
    for dev in [&s, &origin, &thin, &pool] {
        dev.destroy();
    }
}

#[test]
fn stores_that_are_damaged_are_refused_or_harmless() {
    let refused = |change: &dyn Fn(&mut [u8]), errno: i32, words: &str| {
        let set = set(4096);
        set.snapshot("s", "cow P 8").destroy();
        let mut bytes = image(&set.cow);
        change(&mut bytes);
        let mut buf = thinmap_runtime::IoBuf::alloc(bytes.len());
        buf.as_mut_slice().copy_from_slice(&bytes);
        assert!(thinmap_block::write(&*set.cow, Sector(0), buf).1.is_ok());
        let line = format!("0 {SIZE} snapshot base cow P 8");
        let error = set.lab.try_load(&line).unwrap_err();
        assert_eq!(error.errno(), errno, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(&|bytes| bytes[0] = b'X', 6, "Invalid or corrupt snapshot");
    refused(
        &|bytes| bytes[8] = 2,
        22,
        "unable to handle snapshot disk version 2",
    );
    refused(
        &|bytes| bytes[12] = 0,
        22,
        "Chunk size is not a power of 2: 0",
    );
    refused(
        &|bytes| bytes[12] = 9,
        22,
        "Chunk size is not a power of 2: 9",
    );
    refused(
        &|bytes| bytes[15] = 0x80,
        22,
        "Chunk size is not a power of 2",
    );
    // Every area full: the list goes on behind the device's end.
    refused(&|bytes| bytes[4096..].fill(1), 5, "cannot be read");

    // A chunk that is nowhere, and slots behind the end of the list.
    let set = set(4096);
    set.snapshot("s", "cow P 8").destroy();
    let mut buf = thinmap_runtime::IoBuf::alloc(512);
    buf.as_mut_slice()[..16].copy_from_slice(&[[3, 0, 0, 0, 0, 0, 0, 0], [0xff; 8]].concat());
    buf.as_mut_slice()[32..64].fill(5);
    assert!(thinmap_block::write(&*set.cow, Sector(8), buf).1.is_ok());
    let s = set.snapshot("s2", "cow PO 8");
    assert_eq!(read_cell(&*s, 3), Err(BlkStatus::IoErr));
    assert_eq!(read_cell(&*s, 4), Ok(5));
    assert_eq!(write_cell(&*s, 4, 5), BlkStatus::IoErr);
    s.destroy();
    assert!(
        image(&set.cow)[4096 + 16..8192]
            .iter()
            .all(|byte| *byte == 0)
    );
}
