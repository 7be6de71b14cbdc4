//! The worker: commits, writes the journal out, notes stretches in the bitmap, does discards, recalculates.
//!
//! COMPAT: a kernel has a thread for each of these; what any of them promises is the same.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use parking_lot::MutexGuard;
use thinmap_block::{Io, IoFlags, Op, submit_all_and_wait, submit_and_wait};
use thinmap_dm::Environment;
use thinmap_runtime::{Actor, IoBuf, NextTurn};
use thinmap_units::{BlkStatus, Sector};

use super::bits::{self, BITMAP_BLOCK};
use super::data::DISCARDED;
use super::shared::{Fast, Mode, Shared, Slow};

/// The line's hold on its worker: dropping it ends that, and waits for it.
pub(super) struct SharedRef(Arc<Shared>);

impl std::ops::Deref for SharedRef {
    type Target = Arc<Shared>;

    fn deref(&self) -> &Arc<Shared> {
        &self.0
    }
}

impl Drop for SharedRef {
    fn drop(&mut self) {
        self.0.stop.store(true, SeqCst);
        if let Some(handle) = self.0.handle.get() {
            handle.wake();
            handle.join();
        }
    }
}

impl SharedRef {
    /// Starts a worker.
    pub fn start(env: &Environment, shared: Shared) -> std::io::Result<Self> {
        let shared = Arc::new(shared);
        let actor = Arc::new(IntegrityActor(shared.clone()));
        let handle = env.spawner.spawn("thinmap-integ", actor)?;
        let _ = shared.handle.set(handle);
        Ok(Self(shared))
    }
}

struct IntegrityActor(Arc<Shared>);

impl Actor for IntegrityActor {
    fn turn(&self, now: Duration) -> NextTurn {
        let shared = &self.0;
        if shared.stop.load(SeqCst) {
            return NextTurn::Stop;
        }
        let mut slow = shared.slow.lock();
        if !shared.running.load(SeqCst) {
            return NextTurn::WhenWoken;
        }
        let mut now = now;
        loop {
            let worked = shared.work(&mut slow, now);
            if shared.stop.load(SeqCst) || !worked && !shared.recalculate(&mut slow) {
                break;
            }
            // A suspend wants the lock.
            MutexGuard::bump(&mut slow);
            if !shared.running.load(SeqCst) {
                return NextTurn::WhenWoken;
            }
            now = shared.clock.now();
        }
        let times = [shared.fast.lock().commit_at, slow.clear_bits_at];
        match times.into_iter().flatten().min() {
            Some(time) => NextTurn::At(time),
            None => NextTurn::WhenWoken,
        }
    }

    fn panicked(&self) {
        let shared = &self.0;
        shared.fail("the worker, which ended by a panic", BlkStatus::IoErr);
        let waiting = {
            let mut fast = shared.fast.lock();
            fast.dead = true;
            fast.ranges.give_up()
        };
        shared.fail_waiting(BlkStatus::IoErr);
        for io in waiting {
            io.complete(BlkStatus::IoErr);
        }
    }
}

impl Shared {
    /// Does what is to be done now; whether there was anything.
    fn work(self: &Arc<Self>, slow: &mut Slow, now: Duration) -> bool {
        if let Some(status) = self.failed() {
            slow.clear_bits_at = None;
            return self.fail_waiting(status);
        }
        let low = self.tuning.free_low;
        let (commit, write_out, unnoted, discards) = {
            let mut fast = self.fast.lock();
            let is_due = fast.commit_at.is_some_and(|time| time <= now);
            if is_due {
                fast.commit_at = None;
            }
            let stalled = !fast.stalled.is_empty();
            let journal = fast.journal.as_ref();
            let crowded = journal.is_some_and(|j| j.free() <= low && j.has_uncommitted());
            let full = journal.is_some_and(|j| j.free() <= low && j.has_committed()) || stalled;
            (
                is_due || stalled || crowded || !fast.flushes.is_empty(),
                full,
                std::mem::take(&mut fast.unnoted),
                std::mem::take(&mut fast.discards),
            )
        };
        let clear_bits = slow.clear_bits_at.is_some_and(|time| time <= now);
        let tags = self.tags.is_crowded();
        let idle = unnoted.is_empty() && discards.is_empty();
        if commit {
            self.commit(slow);
        }
        if write_out {
            self.write_out();
            self.go_on_with_stalled();
        }
        if !unnoted.is_empty() {
            self.note(slow, unnoted);
        }
        for io in discards {
            self.discard(slow, io);
        }
        if clear_bits {
            self.clear_bits(slow);
        }
        if tags && self.failed().is_none() {
            self.check("writing tags", self.tags.write_dirty());
        }
        commit || write_out || !idle || clear_bits || tags
    }

    /// Fails what waits for the worker; whether there was anything.
    fn fail_waiting(&self, status: BlkStatus) -> bool {
        let waiting: Vec<Io> = {
            let mut fast = self.fast.lock();
            fast.commit_at = None;
            let mut all = std::mem::take(&mut fast.flushes);
            all.append(&mut fast.unnoted);
            all.append(&mut fast.discards);
            all.extend(fast.stalled.drain(..).map(|write| write.io));
            all
        };
        let any = !waiting.is_empty();
        for io in waiting {
            io.complete(status);
        }
        any
    }

    /// Makes durable what was written before, and ends the flushes that wait for that.
    pub fn commit(self: &Arc<Self>, slow: &mut Slow) {
        let (flushes, span) = {
            let mut fast = self.fast.lock();
            let flushes = std::mem::take(&mut fast.flushes);
            let Fast { journal, kept, .. } = &mut *fast;
            let span = journal.as_mut().map(|journal| {
                let free = journal.free();
                let span = journal.begin_commit();
                if let Some(kept) = kept {
                    kept.skip(free - journal.free());
                }
                span
            });
            (flushes, span)
        };
        match span {
            None => self.flush_all(),
            Some(span) if span.count > 0 => {
                slow.journal_used = true;
                let sections = self.layout.shape.sections;
                let to_end = span.count.min(sections - span.first);
                self.seal_and_write(span.first, to_end);
                self.seal_and_write(0, span.count - to_end);
                let mut fast = self.fast.lock();
                let Fast { journal, kept, .. } = &mut *fast;
                if let Some(journal) = journal
                    && self.failed().is_none()
                {
                    journal.end_commit(span);
                    if let Some(kept) = kept {
                        let entries = u64::from(self.layout.shape.entries);
                        kept.committed(u64::from(span.count) * entries);
                    }
                }
            }
            Some(_) => {}
        }
        let status = self.failed().unwrap_or(BlkStatus::Ok);
        for io in flushes {
            io.complete(status);
        }
    }

    /// Seals sections and writes them durably.
    fn seal_and_write(&self, first: u32, count: u32) {
        for section in first..first + count {
            let mut fast = self.fast.lock();
            if let Some(journal) = &mut fast.journal {
                journal.seal(section, self.signer());
            }
        }
        self.write_sections((first, count), &|section, see| {
            if let Some(journal) = &self.fast.lock().journal {
                see(journal.section(section));
            }
        });
    }

    /// Writes what is committed to where it belongs.
    pub fn write_out(self: &Arc<Self>) {
        let (span, blocks) = {
            let fast = self.fast.lock();
            let Some(journal) = &fast.journal else {
                return;
            };
            let span = journal.committed();
            (span, journal.blocks_of(span))
        };
        if span.count == 0 {
            return;
        }
        let blocks: Vec<(u64, u32)> = blocks.into_iter().collect();
        self.write_home(&blocks);
        if self.failed().is_none()
            && let Some(journal) = &mut self.fast.lock().journal
        {
            journal.end_write_out(span);
        }
    }

    /// Writes blocks of the journal, in the order of their places, to where they belong, with their tags; durably.
    pub fn write_home(self: &Arc<Self>, blocks: &[(u64, u32)]) {
        let mut runs = Vec::new();
        let mut rest = blocks;
        while !rest.is_empty() {
            let (run, others) = rest.split_at(self.run_len(rest));
            runs.push(run);
            rest = others;
        }
        for some in runs.chunks(RUNS) {
            if self.failed().is_some() {
                return;
            }
            self.write_runs(some);
        }
        self.flush_all();
    }

    /// How many of the blocks lie next to each other.
    fn run_len(&self, blocks: &[(u64, u32)]) -> usize {
        let unit = self.layout.block_sectors();
        let (first, _) = blocks[0];
        let end = match self.layout.separate {
            true => u64::MAX,
            false => (first | (self.layout.interleave() - 1)) + 1,
        };
        let expected = (first..end).step_by(unit as usize);
        let same = blocks.iter().zip(expected).take(RUN_BLOCKS);
        same.take_while(|((sector, _), expected)| sector == expected)
            .count()
    }

    fn write_runs(self: &Arc<Self>, runs: &[&[(u64, u32)]]) {
        let unit = self.layout.block_sectors();
        let ranges: Vec<Range<u64>> = runs
            .iter()
            .map(|run| run[0].0..run[0].0 + run.len() as u64 * unit)
            .collect();
        let fetching: Vec<_> = ranges
            .iter()
            .map(|range| self.tags.begin(self.tags_of(range).0))
            .collect();
        let mut requests = Vec::new();
        for ((run, range), fetching) in runs.iter().zip(&ranges).zip(fetching) {
            self.take_waiting(range.clone());
            let buffers = match fetching.wait() {
                Ok(buffers) => buffers,
                Err(status) => {
                    self.fail("reading tags", status);
                    continue;
                }
            };
            let mut buf = IoBuf::alloc(((range.end - range.start) * 512) as usize);
            let mut tags = vec![0; self.tag_bytes(range)];
            {
                let mut fast = self.fast.lock();
                let Some(journal) = &mut fast.journal else {
                    continue;
                };
                let blocks = buf.as_mut_slice().chunks_mut(self.layout.block_bytes());
                let tags = tags.chunks_mut(self.layout.tag_size as usize);
                for (((sector, position), block), tag) in run.iter().zip(blocks).zip(tags) {
                    journal.get(*position, block, tag);
                    journal.is_home(*sector, *position);
                }
            }
            self.set_tags(&buffers, (range.start, self.tags_of(range).1), &tags);
            let sectors = Sector(range.end - range.start);
            let to = self.layout.data_sector(range.start);
            requests.push((Op::Write, IoFlags::default(), to, sectors, buf));
        }
        for (_, status) in submit_all_and_wait(&*self.data, requests) {
            self.check("copying from journal", status);
        }
        for range in &ranges {
            self.release(range);
        }
    }

    /// There may be room in the journal again.
    fn go_on_with_stalled(&self) {
        loop {
            let mut fast = self.fast.lock();
            let Some(mut write) = fast.stalled.pop_front() else {
                return;
            };
            if !self.put(&mut fast, &mut write) {
                return fast.stalled.push_front(write);
            }
            drop(fast);
            self.commit_soon();
            self.put_ended(write.io);
        }
    }

    /// Notes stretches in the bitmap, durably, and lets the writes to them go on.
    fn note(self: &Arc<Self>, slow: &mut Slow, writes: Vec<Io>) {
        let ranges = writes.iter().map(|io| io.sector.raw()..io.end().raw());
        self.note_ranges(slow, ranges.collect());
        for io in writes {
            self.go(io);
        }
    }

    fn note_ranges(&self, slow: &mut Slow, ranges: Vec<Range<u64>>) {
        let mut blocks = std::collections::BTreeSet::new();
        let touched: Vec<Range<usize>> = {
            let mut fast = self.fast.lock();
            let Some(bits) = &mut fast.bits else {
                return;
            };
            let touched = ranges.iter().map(|range| bits.touched(range));
            let touched: Vec<Range<usize>> = touched.collect();
            for range in &touched {
                bits::put(&mut bits.disk, range.clone(), true);
                let per_block = BITMAP_BLOCK * 8;
                blocks.extend(range.start / per_block..=(range.end - 1) / per_block);
            }
            touched
        };
        for block in blocks {
            self.write_bits(block as u64..block as u64 + 1);
        }
        if self.failed().is_some() {
            return;
        }
        if let Some(bits) = &mut self.fast.lock().bits {
            for range in touched {
                bits::put(&mut bits.may_write, range, true);
            }
        }
        if slow.clear_bits_at.is_none() {
            let interval = self.tuning.bitmap_flush_interval;
            slow.clear_bits_at = Some(self.clock.now() + interval);
        }
    }

    /// Writes blocks of the bitmap durably.
    pub fn write_bits(&self, blocks: Range<u64>) {
        let sectors = BITMAP_BLOCK as u64 / 512;
        let (from, all) = (
            blocks.start * sectors,
            (blocks.end - blocks.start) * sectors,
        );
        self.write_journal(from, all, &|part, bytes| {
            let fast = self.fast.lock();
            if let Some(bits) = &fast.bits {
                let part = part.start as usize * 512..part.end as usize * 512;
                bytes.copy_from_slice(&bits.disk[part]);
            }
        });
    }

    /// Tags become durable, and the stretches are forgotten.
    pub fn clear_bits(self: &Arc<Self>, slow: &mut Slow) {
        slow.clear_bits_at = None;
        self.flush_all();
        let everything = 0..self.layout.provided;
        self.take_waiting(everything.clone());
        self.flush_all();
        let blocks = {
            let mut fast = self.fast.lock();
            let limit = self.recalculated_before();
            fast.bits.as_mut().map_or(0, |bits| {
                let clear = match limit {
                    Some(sector) => bits.touched(&(0..bits.round_down(sector))),
                    None => bits.touched(&everything),
                };
                bits::put(&mut bits.disk, clear.clone(), false);
                bits::put(&mut bits.may_write, clear, false);
                (bits.disk.len() / BITMAP_BLOCK) as u64
            })
        };
        self.write_bits(0..blocks);
        self.release(&everything);
    }

    /// A discard beside a journal or bitmap.
    fn discard(self: &Arc<Self>, slow: &mut Slow, io: Io) {
        let range = io.sector.raw()..io.end().raw();
        let is_in_journal = |fast: &Fast| fast.journal.as_ref().is_some_and(|j| j.has_any(&range));
        if is_in_journal(&self.fast.lock()) {
            self.commit(slow);
            self.write_out();
        }
        self.note_ranges(slow, vec![range.clone()]);
        let (buffers, place) = self.tags_of(&range);
        let fetched = self.tags.begin(buffers).wait();
        self.take_waiting(range.clone());
        let status = match (fetched, self.failed()) {
            (Err(status), _) | (_, Some(status)) => status,
            (Ok(buffers), None) => {
                let tags = vec![DISCARDED; self.tag_bytes(&range)];
                self.set_tags(&buffers, (range.start, place), &tags);
                self.flush_all();
                let to = self.layout.data_sector(range.start);
                let request = (Op::Discard, io.flags, to, io.sectors, IoBuf::empty());
                submit_and_wait(&*self.data, request).1
            }
        };
        self.release(&range);
        io.complete(status.and(self.failed().unwrap_or(BlkStatus::Ok)));
    }

    /// In B nothing may be written but to stretches that are noted; whether that is the mode.
    pub fn has_bits(&self) -> bool {
        self.mode == Mode::Bitmap
    }
}

/// Stretches of the line written at once.
const RUNS: usize = 32;
/// Blocks of one of them.
const RUN_BLOCKS: usize = 1024;
