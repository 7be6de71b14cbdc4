//! What the line, its requests and its worker share.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use thinmap_block::{BlockDevice, Io, IoFlags, Op, flush, submit_all_and_wait};
use thinmap_runtime::{ActorHandle, Clock, IoBuf, Waiting, simulate};
use thinmap_units::{BlkStatus, Sector};

use super::bits::Bits;
use super::cipher::JournalCipher;
use super::hash::Hash;
use super::journal::{CommitIds, Journal, Signer};
use super::kept::KeptJournal;
use super::layout::Layout;
use super::superblock::Superblock;
use super::tags::Tags;

/// How writes become durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    /// D: as it comes.
    Direct,
    /// J: data and tags through the journal.
    Journal,
    /// B: what may be without tags is noted in a bitmap.
    Bitmap,
    /// R: nothing is written or checked.
    Recovery,
}

impl Mode {
    /// As tables have it.
    pub fn letter(self) -> char {
        match self {
            Self::Direct => 'D',
            Self::Journal => 'J',
            Self::Bitmap => 'B',
            Self::Recovery => 'R',
        }
    }
}

/// Times and limits that a table sets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tuning {
    pub commit_time: Duration,
    pub bitmap_flush_interval: Duration,
    /// In J, when there is room for so few blocks, the journal is written out.
    pub free_low: u64,
}

/// See the module.
pub(super) struct Shared {
    pub begin: Sector,
    pub data: Arc<dyn BlockDevice>,
    /// Of superblock, journal and tags: the data device, mostly.
    pub meta: Arc<dyn BlockDevice>,
    pub layout: Layout,
    pub mode: Mode,
    pub tuning: Tuning,
    pub internal_hash: Option<Hash>,
    pub journal_mac: Option<Hash>,
    pub journal_cipher: Option<JournalCipher>,
    pub commit_ids: CommitIds,
    pub allow_discards: bool,
    /// Hashed before everything else, where the superblock says so.
    pub salt: Option<[u8; 16]>,
    pub tags: Arc<Tags>,
    pub clock: Arc<dyn Clock>,
    /// The superblock's flags and recalculation's place as they are now.
    pub flags: AtomicU32,
    pub recalc: AtomicU64,
    pub mismatches: AtomicU64,
    pub failed: OnceLock<BlkStatus>,
    pub fast: Mutex<Fast>,
    /// A range was given back.
    pub freed: Condvar,
    pub slow: Mutex<Slow>,
    pub running: AtomicBool,
    pub stop: AtomicBool,
    pub handle: OnceLock<ActorHandle>,
}

/// What requests change. Never held over I/O.
#[derive(Default)]
pub(super) struct Fast {
    pub ranges: super::ranges::Ranges,
    /// In J, and while a journal is replayed.
    pub journal: Option<Journal>,
    /// Of that, what a daemon that dies must not forget.
    pub kept: Option<KeptJournal>,
    /// In B.
    pub bits: Option<Bits>,
    /// Flushes, and FUA writes that have been done.
    pub flushes: Vec<Io>,
    /// Writes for which there was no room in the journal.
    pub stalled: VecDeque<Stalled>,
    /// Writes to stretches that are not noted in the bitmap.
    pub unnoted: Vec<Io>,
    /// Discards that the worker does.
    pub discards: Vec<Io>,
    /// When the worker commits without being asked.
    pub commit_at: Option<Duration>,
    /// The worker has panicked.
    pub dead: bool,
}

/// A write of which the first blocks are in the journal.
pub(super) struct Stalled {
    pub io: Io,
    pub tags: super::data::TagBytes,
    pub done: usize,
}

/// What only the worker, and the control thread while the line is suspended, change. May be held over I/O.
pub(super) struct Slow {
    pub sb: Superblock,
    /// When bits of the bitmap are cleared.
    pub clear_bits_at: Option<Duration>,
    /// Something was written to the journal since the resume.
    pub journal_used: bool,
    /// Recalculated since the superblock was written, in sectors.
    pub recalculated: u64,
}

impl Shared {
    pub fn wake(&self) {
        if let Some(handle) = self.handle.get() {
            handle.wake();
        }
    }

    /// The status of everything from now on, when something went wrong for good.
    pub fn failed(&self) -> Option<BlkStatus> {
        self.failed.get().copied()
    }

    /// COMPAT: after an error of its own the line fails every request, until a table is loaded again.
    pub fn fail(&self, what: &str, status: BlkStatus) {
        if status == BlkStatus::Protection {
            self.mismatches.fetch_add(1, SeqCst);
        }
        if self.failed.set(status).is_ok() {
            tracing::error!(?status, "integrity: Error on {what}");
        }
    }

    /// [`Shared::fail`], unless the status is good.
    pub fn check(&self, what: &str, status: BlkStatus) {
        if !status.is_ok() {
            self.fail(what, status);
        }
    }

    pub fn has_flag(&self, flag: u32) -> bool {
        self.flags.load(SeqCst) & flag != 0
    }

    pub fn set_flag(&self, flag: u32, value: bool) {
        match value {
            true => self.flags.fetch_or(flag, SeqCst),
            false => self.flags.fetch_and(!flag, SeqCst),
        };
    }

    /// What sections of the journal are signed with.
    pub fn signer(&self) -> Option<Signer<'_>> {
        self.journal_mac.as_ref().map(|mac| Signer {
            mac,
            salt: self.salt.as_ref(),
        })
    }

    /// Waits for a range: for the worker, which may hold others.
    pub fn take_waiting(&self, range: Range<u64>) {
        let mut fast = self.fast.lock();
        fast.ranges.want(range);
        while !fast.ranges.take_wanted() {
            if MutexGuard::unlocked(&mut fast, || simulate(Waiting::ForDevices)) {
                continue;
            }
            if fast.ranges.take_wanted() {
                return;
            }
            self.freed.wait(&mut fast);
        }
    }

    /// Gives a range back, and lets those try again that waited for it.
    pub fn release(self: &Arc<Self>, range: &Range<u64>) {
        let waited = {
            let mut fast = self.fast.lock();
            self.freed.notify_all();
            fast.ranges.release(range)
        };
        for io in waited {
            self.go(io);
        }
    }

    /// The worker's next commit is so far away at most.
    pub fn commit_soon(&self) {
        let mut fast = self.fast.lock();
        if fast.commit_at.is_none() {
            fast.commit_at = Some(self.clock.now() + self.tuning.commit_time);
            drop(fast);
            self.wake();
        }
    }

    /// Has the worker end a flush, or a FUA write that has been done.
    pub fn flush_later(&self, io: Io) {
        let mut fast = self.fast.lock();
        if fast.dead {
            drop(fast);
            return io.complete(BlkStatus::IoErr);
        }
        fast.flushes.push(io);
        drop(fast);
        self.wake();
    }

    /// Writes tags, and makes everything durable that was written to the devices.
    pub fn flush_all(&self) {
        if self.failed().is_some() {
            return;
        }
        self.check("writing tags", self.tags.write_dirty());
        self.check("flushing disk cache", flush(&*self.meta));
        if self.layout.separate {
            self.check("flushing disk cache", flush(&*self.data));
        }
    }

    /// Writes a part of the journal's place durably. `read` is asked for the bytes from one to another, a piece at a time.
    pub fn write_journal(&self, from: u64, sectors: u64, read: &dyn Fn(Range<u64>, &mut [u8])) {
        let mut at = from;
        while at < from + sectors && self.failed().is_none() {
            let mut requests = Vec::new();
            while at < from + sectors && requests.len() < PIECES {
                let count = (from + sectors - at).min(PIECE_SECTORS);
                let mut buf = IoBuf::alloc((count * 512) as usize);
                read(at..at + count, buf.as_mut_slice());
                let flags = IoFlags {
                    fua: true,
                    ..IoFlags::default()
                };
                let sector = self.layout.journal_sector() + Sector(at);
                requests.push((Op::Write, flags, sector, Sector(count), buf));
                at += count;
            }
            for (_, status) in submit_all_and_wait(&*self.meta, requests) {
                self.check("writing journal", status);
            }
        }
    }

    /// Reads a part of the journal's place from its beginning on.
    pub fn read_journal(&self, bytes: &mut [u8]) {
        let mut at = 0;
        for some in bytes.chunks_mut((PIECE_SECTORS * 512) as usize * PIECES) {
            let pieces = some.chunks((PIECE_SECTORS * 512) as usize);
            let requests = pieces.map(|piece| {
                let sectors = Sector::from_bytes(piece.len() as u64);
                let sector = self.layout.journal_sector() + Sector(at);
                at += sectors.raw();
                let buf = IoBuf::alloc(piece.len());
                (Op::Read, IoFlags::default(), sector, sectors, buf)
            });
            let ended = submit_all_and_wait(&*self.meta, requests.collect());
            let mut to = 0;
            for (buf, status) in ended {
                self.check("reading journal", status);
                some[to..to + buf.len()].copy_from_slice(buf.as_slice());
                to += buf.len();
            }
        }
    }

    /// Writes sections durably, encrypted where they are to be; `image` gives one to be looked at.
    pub fn write_sections(
        &self,
        (first, count): (u32, u32),
        image: &dyn Fn(u32, &mut dyn FnMut(&[u8])),
    ) {
        let sectors = u64::from(self.layout.shape.sectors);
        let (from, all) = (u64::from(first) * sectors, u64::from(count) * sectors);
        self.write_journal(from, all, &|part, bytes| {
            let mut at = part.start;
            let mut rest = bytes;
            while !rest.is_empty() {
                let section = (at / sectors) as u32;
                let skip = (at % sectors * 512) as usize;
                let count = ((sectors * 512) as usize - skip).min(rest.len());
                let (some, others) = rest.split_at_mut(count);
                image(section, &mut |plain| match &self.journal_cipher {
                    None => some.copy_from_slice(&plain[skip..skip + count]),
                    Some(cipher) => {
                        let mut whole = plain.to_vec();
                        cipher.encrypt(section, &mut whole);
                        some.copy_from_slice(&whole[skip..skip + count]);
                    }
                });
                rest = others;
                at += count as u64 / 512;
            }
        });
    }

    /// Writes empty sections.
    pub fn write_blank(&self, first: u32, count: u32, seq: u8) {
        let signer = self.signer();
        self.write_sections((first, count), &|section, see| {
            let place = (section, seq);
            see(&Journal::blank_section(
                &self.layout,
                self.commit_ids,
                place,
                signer,
            ));
        });
    }

    /// Writes the superblock, with flags and place of recalculation as they are.
    pub fn write_superblock(&self, slow: &mut Slow) {
        if self.failed().is_some() {
            return;
        }
        slow.sb.flags = self.flags.load(SeqCst);
        slow.sb.recalc_sector = self.recalc.load(SeqCst);
        let bitmap = self.mode == Mode::Bitmap;
        slow.sb.set_version(bitmap, self.layout.separate);
        let start = Sector(self.layout.start);
        let mac = self.journal_mac.as_ref();
        let status = slow.sb.write(&*self.meta, start, mac);
        self.check("writing superblock", status);
    }
}

/// Sectors of a piece of the journal that is read or written.
const PIECE_SECTORS: u64 = 2048;
/// Pieces at once.
const PIECES: usize = 8;
