//! Every edge of the table in `docs/internals/failure-modes.md`: a test each, named after where it comes from and where it
//! leads.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

mod support;
mod thin_support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use thinmap_block::Op;
use thinmap_block::backing::MemoryDevice;
use thinmap_dm::{DeviceError, MappedDevice};
use thinmap_units::{BlkStatus, Sector};

use support::{Double, load, read_bytes, request, resume, write_fill};
use thin_support::manual::{ManualSpawner, ManualTime};
use thin_support::sparse::{Breaker, Fails};
use thin_support::{BLOCK, Lab, SUSPEND, check_clean, info, message, until, used};

const DATA_BLOCKS: u64 = 8;
const META_BLOCKS: u64 = 64;

const WRITE: &str = "write";
const NO_DATA: &str = "out of data space";
const NO_METADATA: &str = "out of metadata space";
const READ_ONLY: &str = "read-only";
const TO_CHECK: &str = "read-only, to be checked";
const FAIL: &str = "fail";

/// A pool with volume 0 on a device `t`, on memory that can break and grow.
struct World {
    lab: Lab,
    meta: Arc<MemoryDevice>,
    breaker: Arc<Breaker>,
    data: Arc<MemoryDevice>,
    data_double: Arc<Double>,
    pool: Arc<MappedDevice>,
    t: Arc<MappedDevice>,
}

impl World {
    fn new() -> Self {
        Self::with(Lab::new())
    }

    fn with(lab: Lab) -> Self {
        let meta = Arc::new(MemoryDevice::new(Sector(8 * META_BLOCKS)));
        let breaker = Breaker::new(meta.clone());
        lab.add("meta", breaker.clone());
        let data = Arc::new(MemoryDevice::new(Sector(DATA_BLOCKS * BLOCK)));
        let data_double = Double::new(data.clone());
        lab.add("data", data_double.clone());
        let pool = lab.live("pool", &table(DATA_BLOCKS, ERRORS));
        message(&pool, "create_thin 0").unwrap();
        let t = lab.live("t", "0 131072 thin pool 0");
        Self {
            lab,
            meta,
            breaker,
            data,
            data_double,
            pool,
            t,
        }
    }

    fn mode(&self) -> &'static str {
        let status = info(&self.pool);
        let word = status.split(' ').nth(4);
        match word {
            _ if status == "Fail" => FAIL,
            Some("rw") => WRITE,
            Some("out_of_data_space") => NO_DATA,
            Some("ro") if status.contains(" needs_check ") => TO_CHECK,
            // The status does not tell these two apart, the answer to a deletion does.
            Some("ro") if self.message("delete 99999").unwrap_err().errno() == 95 => READ_ONLY,
            Some("ro") => NO_METADATA,
            _ => panic!("a mode without a name: {status}"),
        }
    }

    /// `act` leads from mode `from` to mode `to`; an event tells of a change, and of nothing else.
    #[track_caller]
    fn edge(&self, from: &str, act: impl FnOnce(&Self), to: &str) {
        assert_eq!(self.mode(), from);
        let before = self.pool.event().number();
        act(self);
        assert_eq!(self.mode(), to);
        let after = self.pool.event().number();
        match from == to {
            true => assert_eq!(after, before, "no event without a change of mode"),
            false => assert!(after > before, "an event for a change of mode"),
        }
    }

    fn message(&self, text: &str) -> Result<(), DeviceError> {
        message(&self.pool, text)
    }

    /// Puts another table in place.
    fn table(&self, blocks: u64, features: &str) {
        load(&self.pool, &table(blocks, features)).unwrap();
        resume(&self.pool).unwrap();
    }

    fn same_table(&self) {
        self.pool.suspend(SUSPEND).unwrap();
        resume(&self.pool).unwrap();
    }

    fn write(&self, block: u64) -> BlkStatus {
        write_fill(&*self.t, block * BLOCK, 8, 7)
    }

    fn flush(&self) -> BlkStatus {
        request(&*self.t, Op::Flush, 0, 0)
    }

    fn discard(&self, block: u64) {
        assert!(request(&*self.t, Op::Discard, block * BLOCK, BLOCK).is_ok());
    }

    /// To `NO_DATA`, from `WRITE`.
    fn fill_data(&self) {
        for block in 0..DATA_BLOCKS {
            assert!(self.write(block).is_ok());
        }
        assert_eq!(self.write(100), BlkStatus::NoSpc);
    }

    /// To `NO_METADATA`: every volume takes a block. Block 0 of `t` is mapped.
    fn fill_metadata(&self) {
        for id in 1000.. {
            match self.message(&format!("create_thin {id}")) {
                Ok(()) => assert!(id < 1000 + META_BLOCKS),
                Err(exists) if exists.errno() == 17 => {}
                Err(refused) => {
                    assert!([28, 95].contains(&refused.errno()), "{refused}");
                    return;
                }
            }
        }
    }

    /// A change that is not committed.
    fn change(&self) {
        assert!(self.write(0).is_ok());
        self.discard(0);
    }

    fn end(self) {
        self.breaker.set(Fails::Nothing);
        self.t.destroy();
        self.pool.destroy();
        check_clean(&self.meta);
        drop(self.lab);
    }
}

const ERRORS: &str = "1 error_if_no_space";

fn table(blocks: u64, features: &str) -> String {
    let sectors = blocks * BLOCK;
    format!("0 {sectors} thin-pool meta data {BLOCK} 0 {features}")
}

#[test]
fn write_to_out_of_data_space_by_a_write_that_finds_no_block() {
    let w = World::new();
    w.edge(WRITE, World::fill_data, NO_DATA);
    assert!(w.write(0).is_ok(), "what is mapped can be written");
    assert!(w.flush().is_ok());
    w.message("create_thin 5").unwrap();
    w.message("create_snap 6 0").unwrap();
    assert_eq!(w.write(0), BlkStatus::NoSpc, "shared now");
    w.message("delete 6").unwrap();
    w.end();
}

#[test]
fn out_of_data_space_to_write_by_a_discard() {
    let w = World::new();
    w.fill_data();
    w.edge(NO_DATA, |w| w.discard(3), WRITE);
    assert!(w.write(50).is_ok());
    w.end();
}

#[test]
fn out_of_data_space_to_write_by_a_deletion() {
    let w = World::new();
    w.fill_data();
    w.message("create_snap 1 0").unwrap();
    w.discard(3);
    w.edge(NO_DATA, |w| w.message("delete 1").unwrap(), WRITE);
    w.end();
}

#[test]
fn out_of_data_space_to_write_by_a_table_that_grows() {
    let w = World::new();
    w.fill_data();
    w.data.grow(Sector(2 * DATA_BLOCKS * BLOCK));
    w.edge(NO_DATA, |w| w.table(2 * DATA_BLOCKS, ERRORS), WRITE);
    assert!(w.write(100).is_ok());
    w.end();
}

#[test]
fn out_of_data_space_to_write_by_any_table_and_back_by_the_next_write() {
    let w = World::new();
    w.fill_data();
    w.edge(NO_DATA, |w| w.table(DATA_BLOCKS, ERRORS), WRITE);
    w.edge(
        WRITE,
        |w| assert_eq!(w.write(100), BlkStatus::NoSpc),
        NO_DATA,
    );
    w.end();
}

#[test]
fn out_of_data_space_stays_by_a_resume_of_the_same_table() {
    let w = World::new();
    w.fill_data();
    w.edge(NO_DATA, World::same_table, NO_DATA);
    w.end();
}

#[test]
fn out_of_data_space_to_out_of_metadata_space() {
    let w = World::new();
    w.fill_data();
    w.edge(NO_DATA, World::fill_metadata, NO_METADATA);
    assert!(w.write(0).is_ok(), "what is mapped can be written");
    assert_eq!(w.write(100), BlkStatus::IoErr);
    assert!(w.flush().is_ok());
    w.end();
}

#[test]
fn out_of_data_space_gives_its_writes_up_after_a_minute() {
    let time = Arc::new(ManualTime::default());
    let w = World::with(Lab::with(
        Arc::new(ManualSpawner(time.clone())),
        time.clone(),
    ));
    w.table(DATA_BLOCKS, "");
    for block in 0..DATA_BLOCKS {
        assert!(w.write(block).is_ok());
    }
    let t = w.t.clone();
    let writer = std::thread::spawn(move || write_fill(&*t, 100 * BLOCK, 8, 7));
    until("full", || w.mode() == NO_DATA);
    let before = w.pool.event().number();
    time.advance(Duration::from_secs(61));
    assert_eq!(writer.join().unwrap(), BlkStatus::NoSpc);
    assert!(info(&w.pool).contains(" out_of_data_space discard_passdown error_if_no_space "));
    assert_eq!(w.pool.event().number(), before + 1);
    // The table still says otherwise.
    w.same_table();
    assert!(info(&w.pool).contains(" out_of_data_space discard_passdown queue_if_no_space "));
    w.end();
}

#[test]
fn write_to_out_of_metadata_space_by_a_commit_that_leaves_the_reserve() {
    let w = World::new();
    assert!(w.write(0).is_ok());
    w.edge(WRITE, World::fill_metadata, NO_METADATA);
    assert!(w.write(0).is_ok(), "what is mapped can be written");
    assert!(w.flush().is_ok());
    assert!(read_bytes(&*w.t, 50 * BLOCK, 8).1.is_ok());
    assert_eq!(w.write(50), BlkStatus::IoErr);
    for refused in [
        "create_thin 7",
        "create_snap 7 0",
        "reserve_metadata_snap",
        "nonsense",
    ] {
        assert_eq!(w.message(refused).unwrap_err().errno(), 95, "{refused}");
    }
    w.message("set_transaction_id 0 9").unwrap();
    assert!(info(&w.pool).starts_with("9 "));
    w.end();
}

#[test]
fn out_of_metadata_space_to_write_by_a_deletion() {
    let w = World::new();
    w.fill_metadata();
    w.edge(NO_METADATA, |w| w.message("delete 1000").unwrap(), WRITE);
    w.message("create_thin 1000").unwrap();
    assert_eq!(w.mode(), NO_METADATA, "where it was");
    w.end();
}

#[test]
fn out_of_metadata_space_to_write_by_a_discard() {
    let w = World::new();
    w.table(DATA_BLOCKS, "1 skip_block_zeroing");
    w.data.grow(Sector(600 * BLOCK));
    w.table(600, "1 skip_block_zeroing");
    for block in 0..600 {
        assert!(w.write(block).is_ok());
    }
    w.fill_metadata();
    w.edge(
        NO_METADATA,
        |w| assert!(request(&*w.t, Op::Discard, 0, 600 * BLOCK).is_ok()),
        WRITE,
    );
    assert_eq!(used(&info(&w.pool)), 0);
    w.end();
}

#[test]
fn out_of_metadata_space_to_write_by_giving_up_a_metadata_snapshot() {
    let w = World::new();
    w.message("reserve_metadata_snap").unwrap();
    w.fill_metadata();
    w.edge(
        NO_METADATA,
        |w| w.message("release_metadata_snap").unwrap(),
        WRITE,
    );
    w.end();
}

#[test]
fn out_of_metadata_space_to_write_by_a_device_that_has_grown_and_a_resume() {
    let w = World::new();
    w.fill_metadata();
    w.meta.grow(Sector(8 * 4 * META_BLOCKS));
    w.edge(NO_METADATA, World::same_table, WRITE);
    assert!(info(&w.pool).ends_with(" 64 "), "{}", info(&w.pool));
    assert!(w.write(50).is_ok());
    w.end();
}

#[test]
fn out_of_metadata_space_to_write_and_back_by_a_table_that_brings_no_room() {
    let w = World::new();
    w.fill_metadata();
    let before = w.pool.event().number();
    w.table(DATA_BLOCKS, ERRORS);
    assert_eq!(w.mode(), NO_METADATA);
    assert_eq!(w.pool.event().number(), before + 2, "there and back");
    w.end();
}

#[test]
fn out_of_metadata_space_stays_by_a_resume_of_the_same_table() {
    let w = World::new();
    w.fill_metadata();
    w.edge(NO_METADATA, World::same_table, NO_METADATA);
    w.end();
}

#[test]
fn write_to_read_only_by_a_table_and_back() {
    let w = World::new();
    assert!(w.write(0).is_ok());
    w.edge(WRITE, |w| w.table(DATA_BLOCKS, "1 read_only"), READ_ONLY);
    assert!(w.write(0).is_ok(), "its own block");
    assert_eq!(w.write(5), BlkStatus::IoErr);
    w.edge(READ_ONLY, World::same_table, READ_ONLY);
    w.edge(READ_ONLY, |w| w.table(DATA_BLOCKS, ERRORS), WRITE);
    w.end();
}

#[test]
fn out_of_data_space_to_read_only_by_a_table() {
    let w = World::new();
    w.fill_data();
    w.edge(NO_DATA, |w| w.table(DATA_BLOCKS, "1 read_only"), READ_ONLY);
    w.end();
}

#[test]
fn out_of_metadata_space_to_read_only_by_a_table() {
    let w = World::new();
    w.fill_metadata();
    w.edge(
        NO_METADATA,
        |w| w.table(DATA_BLOCKS, "1 read_only"),
        READ_ONLY,
    );
    w.end();
}

/// One failed write: the commit is lost, marking the metadata works.
fn fail_a_commit(w: &World) {
    w.change();
    // Reads work, so that the transaction can be given up.
    w.breaker.set(Fails::Changes);
    let failed = w.flush();
    w.breaker.set(Fails::Nothing);
    assert_eq!(failed, BlkStatus::IoErr);
}

#[test]
fn write_to_fail_by_a_commit_that_fails_with_its_mark() {
    let w = World::new();
    w.edge(WRITE, fail_a_commit, FAIL);
    assert_eq!(w.write(0), BlkStatus::IoErr);
    assert_eq!(read_bytes(&*w.t, 0, 8).1, BlkStatus::IoErr);
    assert_eq!(w.message("delete 0").unwrap_err().errno(), 95);
    w.end();
}

#[test]
fn out_of_data_space_to_fail() {
    let w = World::new();
    w.fill_data();
    w.message("create_snap 1 0").unwrap();
    w.edge(
        NO_DATA,
        |w| {
            w.breaker.set(Fails::Changes);
            let _ = w.message("create_thin 5");
            w.breaker.set(Fails::Nothing);
        },
        FAIL,
    );
    w.end();
}

#[test]
fn out_of_metadata_space_to_fail() {
    let w = World::new();
    w.fill_metadata();
    w.edge(
        NO_METADATA,
        |w| {
            w.breaker.set(Fails::Everything);
            let _ = w.message("delete 1000");
            w.breaker.set(Fails::Nothing);
        },
        FAIL,
    );
    w.end();
}

#[test]
fn fail_stays_by_every_table() {
    let w = World::new();
    fail_a_commit(&w);
    w.edge(FAIL, World::same_table, FAIL);
    w.edge(FAIL, |w| w.table(DATA_BLOCKS, ERRORS), FAIL);
    w.edge(FAIL, |w| w.table(DATA_BLOCKS, "1 read_only"), FAIL);
    w.end();
}

/// A data device whose flush fails inside a commit: nothing was written, and the mark can be.
fn fail_the_flush_of_data(w: &World) {
    w.change();
    w.data_double.fail_in.store(0, Ordering::SeqCst);
    assert_eq!(w.flush(), BlkStatus::IoErr);
}

#[test]
fn write_to_read_only_to_be_checked_by_a_commit_that_fails() {
    let w = World::new();
    w.edge(WRITE, fail_the_flush_of_data, TO_CHECK);
    assert_eq!(w.message("delete 0").unwrap_err().errno(), 95);
    w.end();
}

#[test]
fn out_of_data_space_to_read_only_to_be_checked() {
    let w = World::new();
    w.fill_data();
    w.edge(
        NO_DATA,
        |w| {
            w.data_double.fail_in.store(0, Ordering::SeqCst);
            let _ = w.message("create_thin 5");
        },
        TO_CHECK,
    );
    w.end();
}

#[test]
fn out_of_metadata_space_to_read_only_to_be_checked() {
    let w = World::new();
    w.fill_metadata();
    w.edge(
        NO_METADATA,
        |w| {
            w.data_double.fail_in.store(0, Ordering::SeqCst);
            let _ = w.message("delete 1000");
        },
        TO_CHECK,
    );
    w.end();
}

#[test]
fn read_only_to_be_checked_stays_by_every_table_and_does_not_grow() {
    let w = World::new();
    fail_the_flush_of_data(&w);
    w.edge(TO_CHECK, World::same_table, TO_CHECK);
    w.data.grow(Sector(2 * DATA_BLOCKS * BLOCK));
    w.meta.grow(Sector(8 * 2 * META_BLOCKS));
    w.edge(TO_CHECK, |w| w.table(2 * DATA_BLOCKS, ERRORS), TO_CHECK);
    let status = info(&w.pool);
    assert!(
        status.contains("/64 ") && status.contains("/8 "),
        "{status}"
    );
    w.end();
}

#[test]
fn a_pool_that_fails_takes_no_other_device_with_it() {
    let w = World::new();
    w.lab.memory("meta2", 8 * META_BLOCKS);
    w.lab.memory("data2", DATA_BLOCKS * BLOCK);
    let other = w.lab.live(
        "other",
        &format!("0 {} thin-pool meta2 data2 128 0", DATA_BLOCKS * BLOCK),
    );
    message(&other, "create_thin 0").unwrap();
    let u = w.lab.live("u", "0 8192 thin other 0");
    // On the failed pool's own data device.
    w.lab.memory("plain", 1024);
    let line = w.lab.live("line", "0 1024 linear plain 0");
    fail_a_commit(&w);
    assert_eq!(w.mode(), FAIL);
    for (dev, at) in [(&u, 0), (&line, 8)] {
        assert!(write_fill(&**dev, at, 8, 3).is_ok());
        assert!(request(&**dev, Op::Flush, 0, 0).is_ok());
        assert!(read_bytes(&**dev, at, 8).0.iter().all(|b| *b == 3));
    }
    message(&other, "create_snap 1 0").unwrap();
    assert!(info(&other).contains(" rw "), "{}", info(&other));
    for dev in [&u, &other, &line] {
        dev.destroy();
    }
    w.end();
}
