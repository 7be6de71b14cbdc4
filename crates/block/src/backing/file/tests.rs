//! File backings: every operation, the limits they report, and hostile ranges.

use std::sync::Arc;

use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::*;
use crate::io::IoFlags;
use crate::sync;

const RW: OpenMode = OpenMode {
    read_only: false,
    exclusive: true,
};

/// Both ways of doing file I/O: a disk file system (ring) and a memory one (inline).
fn on_both(test: impl Fn(&Path)) {
    for dir in [std::env::temp_dir(), PathBuf::from("/dev/shm")] {
        let path = dir.join(format!(
            "thinmap-file-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::File::create(&path)
            .and_then(|f| f.set_len(1 << 20))
            .expect("test file");
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&path)));
        std::fs::remove_file(&path).expect("test file is there");
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    }
}

fn filled(bytes: usize, with: u8) -> IoBuf {
    let mut buf = IoBuf::alloc(bytes);
    buf.as_mut_slice().fill(with);
    buf
}

#[test]
fn what_is_written_is_read_and_flushes() {
    on_both(|path| {
        let dev = FileDevice::open(path, RW).expect("open");
        assert_eq!(dev.size(), Sector(2048));
        assert_eq!(
            sync::write(&dev, Sector(7), filled(1536, 5)).1,
            BlkStatus::Ok
        );
        assert_eq!(sync::flush(&dev), BlkStatus::Ok);
        let (buf, status) = sync::read(&dev, Sector(6), IoBuf::alloc(2048));
        assert_eq!((status, buf.len()), (BlkStatus::Ok, 2048));
        assert_eq!(
            (
                buf.as_slice()[511],
                buf.as_slice()[512],
                buf.as_slice()[2047]
            ),
            (0, 5, 5)
        );
    });
}

#[test]
fn a_write_beyond_the_end_fails_and_does_not_grow_the_file() {
    on_both(|path| {
        let dev = FileDevice::open(path, RW).expect("open");
        assert_eq!(
            sync::write(&dev, Sector(2047), filled(1024, 1)).1,
            BlkStatus::IoErr
        );
        assert_eq!(std::fs::metadata(path).expect("stat").len(), 1 << 20);
    });
}

#[test]
fn a_grown_file_is_seen_and_a_truncated_one_gives_errors() {
    on_both(|path| {
        let dev = FileDevice::open(path, RW).expect("open");
        let file = std::fs::File::options()
            .write(true)
            .open(path)
            .expect("open");
        file.set_len(2 << 20).expect("grow");
        assert_eq!(
            sync::write(&dev, Sector(3000), filled(512, 1)).1,
            BlkStatus::Ok
        );
        file.set_len(4096).expect("shrink");
        assert_eq!(
            sync::read(&dev, Sector(100), IoBuf::alloc(512)).1,
            BlkStatus::IoErr
        );
    });
}

#[test]
fn zeroing_reads_as_zeroes_with_and_without_space() {
    on_both(|path| {
        let dev = FileDevice::open(path, RW).expect("open");
        for no_unmap in [true, false] {
            for fua in [true, false] {
                sync::write(&dev, Sector(0), filled(1 << 20, 3));
                let request = (
                    Op::WriteZeroes,
                    IoFlags { fua, no_unmap },
                    Sector(1),
                    Sector(2040),
                    IoBuf::empty(),
                );
                assert_eq!(sync::submit_and_wait(&dev, request).1, BlkStatus::Ok);
                let (buf, _) = sync::read(&dev, Sector(0), IoBuf::alloc(1 << 20));
                assert!(buf.as_slice()[512..512 * 2041].iter().all(|b| *b == 0));
                assert_eq!((buf.as_slice()[511], buf.as_slice()[512 * 2041]), (3, 3));
            }
        }
    });
}

#[test]
fn discard_gives_space_back() {
    use std::os::unix::fs::MetadataExt;
    on_both(|path| {
        let dev = FileDevice::open(path, RW).expect("open");
        sync::write(&dev, Sector(0), filled(1 << 20, 3));
        sync::flush(&dev);
        let before = std::fs::metadata(path).expect("stat").blocks();
        let request = (
            Op::Discard,
            IoFlags::default(),
            Sector(0),
            Sector(1024),
            IoBuf::empty(),
        );
        assert_eq!(sync::submit_and_wait(&dev, request).1, BlkStatus::Ok);
        let after = std::fs::metadata(path).expect("stat").blocks();
        assert!(
            after <= before - 1024,
            "{before} blocks before, {after} after"
        );
    });
}

#[test]
fn a_file_is_not_opened_twice_for_writing() {
    on_both(|path| {
        let _first = FileDevice::open(path, RW).expect("open");
        let second = FileDevice::open(path, RW);
        assert!(matches!(second, Err(OpenError::Busy { .. })));
    });
}

#[test]
fn a_descriptor_that_a_fork_took_along_does_not_keep_a_closed_file() {
    on_both(|path| {
        let first = FileDevice::open(path, RW).expect("open");
        let _forked = first.inner.fd.try_clone().expect("descriptor");
        drop(first);
        FileDevice::open(path, RW).expect("free again");
    });
}

#[test]
fn read_only_refuses_writes() {
    on_both(|path| {
        let dev = FileDevice::open(
            path,
            OpenMode {
                read_only: true,
                exclusive: true,
            },
        )
        .expect("open");
        assert_eq!(
            sync::write(&dev, Sector(0), filled(512, 1)).1,
            BlkStatus::IoErr
        );
    });
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let error = FileDevice::open(Path::new("/dev/null"), RW)
        .err()
        .expect("no disk");
    assert_eq!(error.errno(), libc::ENOTBLK);
    assert!(error.to_string().contains("/dev/null"));
    let error = FileDevice::open(Path::new("/no/such"), RW)
        .err()
        .expect("missing");
    assert_eq!(error.errno(), libc::ENOENT);
}

#[test]
fn many_requests_from_many_threads() {
    on_both(|path| {
        let dev = Arc::new(FileDevice::open(path, RW).expect("open"));
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let dev = dev.clone();
                scope.spawn(move || {
                    for i in 0..64u64 {
                        let at = Sector(u64::from(thread) * 512 + i * 8);
                        assert_eq!(
                            sync::write(&*dev, at, filled(4096, thread + 1)).1,
                            BlkStatus::Ok
                        );
                        let (buf, _) = sync::read(&*dev, at, IoBuf::alloc(4096));
                        assert!(buf.as_slice().iter().all(|b| *b == thread + 1));
                    }
                });
            }
        });
    });
}

#[test]
fn a_hole_is_told_from_data_and_from_what_was_punched() {
    on_both(|path| {
        let dev = FileDevice::open(path, RW).expect("open");
        let all = (Sector(0), dev.size());
        assert!(dev.is_hole(all.0, all.1));
        assert!(sync::write(&dev, Sector(256), filled(4096, 0)).1.is_ok());
        assert!(!dev.is_hole(all.0, all.1), "zeroes are data too");
        assert!(dev.is_hole(Sector(0), Sector(256)));
        assert!(!dev.is_hole(Sector(0), Sector(257)));
        assert!(dev.is_hole(Sector(264), Sector(2048 - 264)));
        let (at, len) = (Sector(256), Sector(8));
        let punch = (Op::Discard, IoFlags::default(), at, len, IoBuf::empty());
        assert!(sync::submit_and_wait(&dev, punch).1.is_ok());
        assert!(dev.is_hole(all.0, all.1));
    });
}

#[test]
fn copies_inside_a_file_only_where_they_go_round_no_cache() {
    on_both(|path| {
        let dev = FileDevice::open(path, RW).expect("open");
        assert!(sync::write(&dev, Sector(8), filled(64 << 10, 3)).1.is_ok());
        let copied = dev.copy_range(Sector(8), Sector(1001), Sector(128));
        if !dev.is_synchronous() {
            return assert_eq!(copied, Err(BlkStatus::NotSupp));
        }
        assert_eq!(copied, Ok(()));
        let (buf, _) = sync::read(&dev, Sector(1000), IoBuf::alloc(130 * 512));
        let bytes = buf.as_slice();
        assert_eq!((bytes[511], bytes[129 * 512]), (0, 0));
        assert!(bytes[512..129 * 512].iter().all(|b| *b == 3));
        let beyond = dev.copy_range(Sector(4096), Sector(0), Sector(8));
        assert_eq!(beyond, Err(BlkStatus::IoErr), "nothing is there to copy");
    });
}

/// Writes large and small pieces from a queue thread that leaves copies to others, then ends.
struct Copier {
    dev: FileDevice,
    told: Arc<Told>,
    asked: bool,
}

#[derive(Default)]
struct Told {
    ended: std::sync::atomic::AtomicUsize,
    waker: std::sync::OnceLock<Arc<thinmap_runtime::Waker>>,
}

impl crate::EndIo for Told {
    fn end_io(self: Arc<Self>, _io: Io, _tag: u64, status: BlkStatus) {
        assert!(status.is_ok());
        self.ended.fetch_add(1, Ordering::SeqCst);
        self.waker.get().expect("set before").wake();
    }
}

const SIZES: [usize; 4] = [4096, 64 << 10, 512, 256 << 10];

impl crate::QueueHandler for Copier {
    fn turn(&mut self) -> crate::Turn {
        crate::leave_large_copies(true);
        if !std::mem::replace(&mut self.asked, true) {
            let mut at = Sector(1);
            for (i, bytes) in SIZES.into_iter().enumerate() {
                let len = Sector::from_bytes(bytes as u64);
                let buf = filled(bytes, i as u8 + 1);
                let end = self.told.clone();
                self.dev
                    .submit(Io::new(Op::Write, at, len, buf, end, i as u64));
                at += len;
            }
        }
        if self.told.ended.load(Ordering::SeqCst) == SIZES.len() {
            return crate::Turn::Stop;
        }
        crate::Turn::Idle
    }

    fn poll(&self, _out: &mut Vec<(i32, i16)>) {}
}

#[test]
fn large_copies_left_to_others_arrive_whole() {
    on_both(|path| {
        let dev = FileDevice::open(path, RW).expect("open");
        let waker = Arc::new(thinmap_runtime::Waker::new().expect("eventfd"));
        let told = Arc::new(Told::default());
        assert!(told.waker.set(waker.clone()).is_ok());
        let handler = Copier {
            dev: dev.clone(),
            told,
            asked: false,
        };
        let queue = crate::spawn_queue("copies", waker, move || handler).expect("a queue");
        assert!(queue.join());
        let mut at = Sector(1);
        for (i, bytes) in SIZES.into_iter().enumerate() {
            let (buf, status) = sync::read(&dev, at, IoBuf::alloc(bytes));
            assert!(status.is_ok() && buf.as_slice().iter().all(|b| *b == i as u8 + 1));
            at += Sector::from_bytes(bytes as u64);
        }
    });
}

/// The system tells of it once; what was lost stays lost.
#[test]
fn a_page_cache_that_lost_something_fails_every_later_flush() {
    let path = PathBuf::from(format!("/dev/shm/thinmap-lost-{}", std::process::id()));
    std::fs::File::create(&path)
        .and_then(|f| f.set_len(1 << 20))
        .expect("test file");
    let dev = FileDevice::open(&path, RW).expect("open");
    std::fs::remove_file(&path).expect("test file is there");
    assert!(dev.inner.buffered);
    assert_eq!(sync::flush(&dev), BlkStatus::Ok);
    let flush = Io::flush(Arc::new(Nobody), 0);
    let failed = FileIo::new(flush, dev.inner.clone()).step_on(IoBuf::empty(), -libc::EIO);
    assert!(failed.is_err_and(|(_, status)| status == BlkStatus::IoErr));
    assert_eq!(sync::flush(&dev), BlkStatus::IoErr);
    assert_eq!(
        sync::write(&dev, Sector(0), filled(512, 1)).1,
        BlkStatus::Ok
    );
}

struct Nobody;

impl crate::io::EndIo for Nobody {
    fn end_io(self: Arc<Self>, _io: Io, _tag: u64, _status: BlkStatus) {}
}
