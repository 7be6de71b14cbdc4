//! What a pool makes of its devices' abilities: reflinks, discards it cannot pass down, giant blocks, a worker that
//! panics, and the tools that administrators check a pool with.

mod support;
mod thin_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use thinmap_block::backing::{FileDevice, MemoryDevice, OpenMode};
use thinmap_block::{BlockDevice, Io, Op, QueueLimits};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use support::{Double, read_bytes, request, write_fill};
use thin_support::{BLOCK, Lab, PoolLab, check_clean, info, message, used};

/// Memory that clones ranges, or panics when asked to.
struct Cloning {
    below: MemoryDevice,
    clones: AtomicU32,
    panics: AtomicBool,
}

impl BlockDevice for Cloning {
    fn limits(&self) -> QueueLimits {
        self.below.limits()
    }

    fn size(&self) -> Sector {
        self.below.size()
    }

    fn submit(&self, io: Io) {
        self.below.submit(io);
    }

    fn reflink(&self, from: Sector, to: Sector, len: Sector) -> Result<(), BlkStatus> {
        assert!(!self.panics.load(Ordering::SeqCst), "wanted by the test");
        self.clones.fetch_add(1, Ordering::SeqCst);
        let (buf, _) = thinmap_block::read(&self.below, from, IoBuf::alloc(len.bytes() as usize));
        thinmap_block::write(&self.below, to, buf);
        Ok(())
    }
}

fn cloning() -> (Lab, Arc<MemoryDevice>, Arc<Cloning>) {
    let lab = Lab::new();
    let meta = lab.memory("meta", 8192);
    let data = Arc::new(Cloning {
        below: MemoryDevice::new(Sector(64 * BLOCK)),
        clones: AtomicU32::new(0),
        panics: AtomicBool::new(false),
    });
    lab.add("data", data.clone());
    (lab, meta, data)
}

#[test]
fn sharing_is_broken_by_reflink_where_the_device_can() {
    let (lab, meta, data) = cloning();
    let pool = lab.live("pool", "0 8192 thin-pool meta data 128 0");
    message(&pool, "create_thin 0").unwrap();
    let t = lab.live("t", "0 8192 thin pool 0");
    assert!(write_fill(&*t, 0, 2 * BLOCK, 1).is_ok());
    message(&pool, "create_snap 1 0").unwrap();
    assert!(write_fill(&*t, 8, 8, 2).is_ok());
    assert!(write_fill(&*t, BLOCK, BLOCK, 3).is_ok());
    assert_eq!(
        data.clones.load(Ordering::SeqCst),
        1,
        "none for the whole block"
    );
    let (bytes, _) = read_bytes(&*t, 0, 2 * BLOCK);
    let at = |sector: usize| bytes[sector * 512];
    assert_eq!((at(7), at(8), at(15), at(16), at(128)), (1, 2, 2, 1, 3));
    let snap = lab.live("s", "0 8192 thin pool 1");
    assert!(read_bytes(&*snap, 0, 2 * BLOCK).0.iter().all(|b| *b == 1));
    for dev in [&snap, &t, &pool] {
        dev.destroy();
    }
    check_clean(&meta);
}

#[test]
fn a_worker_that_panics_fails_its_pool_and_no_other() {
    let (lab, meta, data) = cloning();
    let pool = lab.live("pool", "0 8192 thin-pool meta data 128 0");
    message(&pool, "create_thin 0").unwrap();
    let t = lab.live("t", "0 8192 thin pool 0");
    assert!(write_fill(&*t, 0, 2 * BLOCK, 1).is_ok());
    message(&pool, "create_snap 1 0").unwrap();
    lab.memory("meta2", 8192);
    lab.memory("data2", 8192);
    let other = lab.live("other", "0 8192 thin-pool meta2 data2 128 0");
    let before = pool.event().number();
    data.panics.store(true, Ordering::SeqCst);
    assert_eq!(write_fill(&*t, 8, 8, 2), BlkStatus::IoErr);
    assert_eq!(
        (info(&pool), info(&t)),
        ("Fail".to_owned(), "Fail".to_owned())
    );
    assert!(pool.event().number() > before);
    assert_eq!(write_fill(&*t, 8, 8, 2), BlkStatus::IoErr);
    assert_eq!(request(&*t, Op::Flush, 0, 0), BlkStatus::IoErr);
    assert_eq!(
        message(&pool, "create_thin 9").expect_err("failed").errno(),
        95
    );
    message(&other, "create_thin 0").unwrap();
    for dev in [&t, &pool, &other] {
        dev.destroy();
    }
    check_clean(&meta);
}

#[test]
fn a_device_without_discard_is_not_passed_any() {
    let lab = Lab::new();
    let meta = lab.memory("meta", 8192);
    let data = Double::new(Arc::new(MemoryDevice::new(Sector(8192))));
    data.limits.lock().max_discard = Sector::ZERO;
    lab.add("data", data.clone());
    let pool = lab.live("pool", "0 8192 thin-pool meta data 128 0");
    assert!(
        info(&pool).contains(" no_discard_passdown "),
        "{}",
        info(&pool)
    );
    message(&pool, "create_thin 0").unwrap();
    let t = lab.live("t", "0 8192 thin pool 0");
    assert_eq!(t.limits().discard_granularity, 65536);
    assert!(write_fill(&*t, 0, 4 * BLOCK, 1).is_ok());
    assert!(request(&*t, Op::Discard, 0, 4 * BLOCK).is_ok());
    assert_eq!(used(&info(&pool)), 0);
    assert!(data.seen.lock().iter().all(|(op, ..)| *op != Op::Discard));
    t.destroy();
    pool.destroy();
    check_clean(&meta);
}

#[test]
fn a_pool_that_ignores_discards_offers_none() {
    let lab = PoolLab::new(64, "1 ignore_discard");
    let t = lab.volume(0, 64);
    assert!(lab.status().contains(" ignore_discard "));
    assert!(!t.limits().supports_discard());
    assert!(write_fill(&*t, 0, 4 * BLOCK, 1).is_ok());
    assert!(request(&*t, Op::WriteZeroes, 0, 3 * BLOCK).is_ok());
    assert!(read_bytes(&*t, 0, 3 * BLOCK).0.iter().all(|b| *b == 0));
    assert_eq!(used(&lab.status()), 4, "zeroed in place");
    t.destroy();
    lab.close_and_check();
}

#[test]
fn a_discard_of_a_tebibyte_goes_in_steps() {
    const TIB: u64 = 1 << 31;
    let lab = PoolLab::new(64, "");
    lab.message("create_thin 0").unwrap();
    let t = lab.lab.live("t", &format!("0 {TIB} thin pool 0"));
    for n in 0..32 {
        assert!(write_fill(&*t, n * (TIB / 32), 8, 1).is_ok());
    }
    assert_eq!(used(&lab.status()), 32);
    assert!(request(&*t, Op::Discard, 0, TIB).is_ok());
    assert_eq!(used(&lab.status()), 0);
    assert_eq!(info(&t), "0 -");
    t.destroy();
    lab.close_and_check();
}

#[test]
fn blocks_larger_than_all_copy_buffers() {
    const BIG: u64 = 64 * 2048;
    let lab = Lab::new();
    let meta = lab.memory("meta", 8192);
    lab.memory("data", 3 * BIG);
    let pool = lab.live(
        "pool",
        &format!("0 {} thin-pool meta data {BIG} 0", 3 * BIG),
    );
    message(&pool, "create_thin 0").unwrap();
    let t = lab.live("t", &format!("0 {BIG} thin pool 0"));
    assert!(write_fill(&*t, BIG / 2 + 3, 8, 1).is_ok());
    message(&pool, "create_snap 1 0").unwrap();
    assert!(write_fill(&*t, 5, 8, 2).is_ok());
    let (bytes, _) = read_bytes(&*t, 0, BIG);
    for (sector, expect) in [
        (4, 0),
        (5, 2),
        (12, 2),
        (13, 0),
        (BIG / 2 + 3, 1),
        (BIG - 1, 0),
    ] {
        assert_eq!(bytes[sector as usize * 512], expect, "sector {sector}");
    }
    assert_eq!(bytes.iter().map(|b| u64::from(*b)).sum::<u64>(), 4096 * 3);
    t.destroy();
    pool.destroy();
    check_clean(&meta);
}

#[test]
fn thin_check_finds_nothing_wrong() {
    if std::process::Command::new("thin_check")
        .arg("-V")
        .output()
        .is_err()
    {
        eprintln!("skipped: thin_check is not installed");
        return;
    }
    let lab = PoolLab::new(64, "");
    let t = lab.volume(0, 64);
    assert!(write_fill(&*t, 0, 20 * BLOCK, 1).is_ok());
    lab.message("create_snap 1 0").unwrap();
    assert!(write_fill(&*t, 8, 8, 2).is_ok());
    assert!(request(&*t, Op::Discard, 4 * BLOCK, 4 * BLOCK).is_ok());
    lab.message("reserve_metadata_snap").unwrap();
    assert!(write_fill(&*t, 40 * BLOCK, BLOCK, 2).is_ok());
    t.destroy();
    let meta = lab.meta.clone();
    lab.close_and_check();
    let (image, _) = read_bytes(&*meta, 0, 8192);
    let path = std::env::temp_dir().join(format!("thinmap-thin-check-{}", std::process::id()));
    std::fs::write(&path, image).unwrap();
    let checked = std::process::Command::new("thin_check")
        .arg(&path)
        .output()
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
}

/// A metadata device whose reads wait until they are let through: a volume of a pool that is out of space.
struct Stuck {
    below: MemoryDevice,
    waiting: AtomicBool,
    let_through: AtomicBool,
}

impl BlockDevice for Stuck {
    fn limits(&self) -> QueueLimits {
        self.below.limits()
    }

    fn size(&self) -> Sector {
        self.below.size()
    }

    fn submit(&self, io: Io) {
        self.waiting.store(true, Ordering::SeqCst);
        while !self.let_through.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        self.below.submit(io);
    }
}

#[test]
fn a_pool_that_waits_for_its_metadata_device_keeps_no_other_waiting() {
    let lab = Lab::new();
    let stuck = Arc::new(Stuck {
        below: MemoryDevice::new(Sector(8192)),
        waiting: AtomicBool::new(false),
        let_through: AtomicBool::new(false),
    });
    lab.add("stuck", stuck.clone());
    for (name, sectors) in [("meta", 8192), ("data", 64 * BLOCK), ("data2", 64 * BLOCK)] {
        lab.memory(name, sectors);
    }
    let table =
        |meta: &str, data: &str| format!("0 {} thin-pool {meta} {data} {BLOCK} 0", 64 * BLOCK);
    std::thread::scope(|scope| {
        let inner = scope.spawn(|| lab.live("inner", &table("stuck", "data")));
        while !stuck.waiting.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        // Its devices are taken, everything else goes on.
        let taken = lab
            .try_load(&table("meta", "data"))
            .expect_err("the data device is taken");
        assert_eq!(taken.errno(), 16);
        let outer = lab.live("outer", &table("meta", "data2"));
        message(&outer, "create_thin 0").expect("a pool that works");
        stuck.let_through.store(true, Ordering::SeqCst);
        let inner = inner.join().expect("loaded in the end");
        message(&inner, "create_thin 0").expect("a pool that works");
        inner.destroy();
        outer.destroy();
    });
    // Free again at once.
    lab.live("again", &table("stuck", "data2")).destroy();
}

/// A file, and what was written to it through requests.
struct Watched {
    below: FileDevice,
    written: AtomicU32,
    copies: AtomicBool,
    fails: AtomicBool,
}

impl BlockDevice for Watched {
    fn limits(&self) -> QueueLimits {
        self.below.limits()
    }

    fn size(&self) -> Sector {
        self.below.size()
    }

    fn submit(&self, io: Io) {
        if io.op == Op::Write {
            let sectors = io.sectors.raw() as u32;
            self.written.fetch_add(sectors, Ordering::SeqCst);
            if self.fails.load(Ordering::SeqCst) {
                return io.complete(BlkStatus::NoSpc);
            }
        }
        self.below.submit(io);
    }

    fn is_synchronous(&self) -> bool {
        self.below.is_synchronous()
    }

    fn is_hole(&self, start: Sector, len: Sector) -> bool {
        self.below.is_hole(start, len)
    }

    fn copy_range(&self, from: Sector, to: Sector, len: Sector) -> Result<(), BlkStatus> {
        if !self.copies.load(Ordering::SeqCst) {
            return Err(BlkStatus::NotSupp);
        }
        self.below.copy_range(from, to, len)
    }
}

impl Watched {
    /// Sectors written since the last call.
    fn written(&self) -> u32 {
        self.written.swap(0, Ordering::SeqCst)
    }
}

/// A pool of `blocks` on an empty file in `dir`, with a volume of eight blocks.
fn on_a_file(dir: &std::path::Path, blocks: u64, test: impl Fn(&Lab, &Arc<Watched>)) {
    let file = tempfile::NamedTempFile::new_in(dir).expect("a file");
    let size = blocks * BLOCK * 512;
    file.as_file().set_len(size).expect("its size");
    let mode = OpenMode {
        read_only: false,
        exclusive: true,
    };
    let data = Arc::new(Watched {
        below: FileDevice::open(file.path(), mode).expect("the file"),
        written: AtomicU32::new(0),
        copies: AtomicBool::new(true),
        fails: AtomicBool::new(false),
    });
    let lab = Lab::new();
    lab.memory("meta", 8192);
    lab.add("data", data.clone());
    test(&lab, &data);
}

fn disk_and_memory() -> [std::path::PathBuf; 2] {
    [std::env::temp_dir(), "/dev/shm".into()]
}

#[test]
fn a_new_block_in_a_hole_takes_the_guests_data_alone_and_a_used_one_is_zeroed() {
    for dir in disk_and_memory() {
        on_a_file(&dir, 1, |lab, data| {
            let table = format!("0 {BLOCK} thin-pool meta data 128 0 1 no_discard_passdown");
            let pool = lab.live("pool", &table);
            message(&pool, "create_thin 0").unwrap();
            let t = lab.live("t", "0 1024 thin pool 0");
            assert!(write_fill(&*t, 16, 8, 7).is_ok());
            assert_eq!(data.written(), 8, "{dir:?}");
            let rest_is_zero = |at: usize| {
                let (bytes, _) = read_bytes(&*t, 0, BLOCK);
                let guest = at * 512..(at + 8) * 512;
                assert!(bytes[guest.clone()].iter().all(|b| *b == 7), "{dir:?}");
                assert_eq!(bytes.iter().filter(|b| **b != 0).count(), guest.len());
            };
            rest_is_zero(16);
            // The pool's only block comes back to it with its old content.
            assert!(write_fill(&*t, 0, BLOCK, 9).is_ok());
            assert!(request(&*t, Op::Discard, 0, BLOCK).is_ok());
            assert!(request(&*t, Op::Flush, 0, 0).is_ok());
            data.written();
            assert!(write_fill(&*t, 32, 8, 7).is_ok());
            assert_eq!(data.written(), BLOCK as u32, "{dir:?}");
            rest_is_zero(32);
            for dev in [&t, &pool] {
                dev.destroy();
            }
        });
    }
}

#[test]
fn sharing_is_broken_inside_the_device_or_by_reading_and_writing() {
    for (dir, copies) in disk_and_memory()
        .iter()
        .zip([true, true])
        .chain([(&std::path::PathBuf::from("/dev/shm"), false)])
    {
        on_a_file(dir, 16, |lab, data| {
            data.copies.store(copies, Ordering::SeqCst);
            let pool = lab.live("pool", "0 2048 thin-pool meta data 128 0");
            message(&pool, "create_thin 0").unwrap();
            let t = lab.live("t", "0 1024 thin pool 0");
            assert!(write_fill(&*t, 0, 4 * BLOCK, 1).is_ok());
            message(&pool, "create_snap 1 0").unwrap();
            let inside = data.is_synchronous() && copies;
            // At a block's begin, in its middle, at its end; then all of one.
            let writes = [
                (0, 8),
                (BLOCK + 16, 8),
                (3 * BLOCK - 8, 8),
                (3 * BLOCK, BLOCK),
            ];
            for (at, sectors) in writes {
                data.written();
                assert!(write_fill(&*t, at, sectors, 2).is_ok());
                let expect = if inside { sectors } else { BLOCK };
                assert_eq!(data.written(), expect as u32, "{dir:?} {at}");
            }
            let (bytes, _) = read_bytes(&*t, 0, 4 * BLOCK);
            for (sector, content) in bytes.chunks(512).enumerate() {
                let sector = sector as u64;
                let fresh = writes
                    .iter()
                    .any(|(at, len)| (*at..at + len).contains(&sector));
                let want = if fresh { 2 } else { 1 };
                assert!(content.iter().all(|b| *b == want), "{dir:?} {sector}");
            }
            let snap = lab.live("s", "0 1024 thin pool 1");
            let (bytes, _) = read_bytes(&*snap, 0, 4 * BLOCK);
            assert!(bytes.iter().all(|b| *b == 1), "{dir:?}");
            for dev in [&snap, &t, &pool] {
                dev.destroy();
            }
        });
    }
}

#[test]
fn a_whole_block_over_an_origin_is_written_before_it_is_mapped() {
    for features in ["0", "1 skip_block_zeroing"] {
        on_a_file(std::path::Path::new("/dev/shm"), 16, |lab, data| {
            lab.memory("origin", 1024);
            let origin = lab.live("o", "0 1024 linear origin 0");
            assert!(write_fill(&*origin, 0, 1024, 5).is_ok());
            let table = format!("0 2048 thin-pool meta data 128 0 {features}");
            let pool = lab.live("pool", &table);
            message(&pool, "create_thin 0").unwrap();
            let t = lab.live("t", "0 1024 thin pool 0 origin");
            data.fails.store(true, Ordering::SeqCst);
            assert!(!write_fill(&*t, BLOCK, BLOCK, 9).is_ok());
            data.fails.store(false, Ordering::SeqCst);
            let (bytes, status) = read_bytes(&*t, BLOCK, BLOCK);
            assert!(status.is_ok());
            assert!(bytes.iter().all(|b| *b == 5), "the origin shows through");
            assert!(write_fill(&*t, BLOCK, BLOCK, 9).is_ok());
            let (bytes, _) = read_bytes(&*t, 0, 3 * BLOCK);
            let at = |sector: u64| bytes[sector as usize * 512];
            assert_eq!((at(127), at(128), at(255), at(256)), (5, 9, 9, 5));
            for dev in [&t, &pool, &origin] {
                dev.destroy();
            }
        });
    }
}
