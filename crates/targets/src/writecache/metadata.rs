//! The metadata on the medium: made, read, and written page by page.
//!
//! Calls wait for the device: for the worker and control threads only.

use std::collections::BTreeMap;
use std::sync::Arc;

use thinmap_block::{BlockDevice, IoFlags, Op, flush, read, submit_all_and_wait};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::disk::{CLEARED, EntryDisk, Geometry, PAGE_BYTES, SuperblockDisk, Unfit, entry_at};
use super::journal::Journal;
use super::shared::Shared;
use super::state::State;

/// Metadata in one request, and in requests at once.
const REQUEST_BYTES: usize = 1 << 20;
const REQUESTS: usize = 8;

/// A cache as a device holds it, made where its superblock is blank; whether it was.
pub(super) fn open(
    device: &Arc<dyn BlockDevice>,
    start: Sector,
    block_bytes: u32,
) -> Result<(Geometry, bool), Unfit> {
    let failed = |reason| Unfit { reason, errno: EIO };
    let room = device.size().bytes().saturating_sub(start.bytes());
    // The size is looked at before anything is read.
    let fresh = Geometry::fit(start, room, block_bytes)?;
    let (buf, status) = read(&**device, start, IoBuf::alloc(block_bytes as usize));
    if !status.is_ok() {
        return Err(failed("Unable to read first block of metadata"));
    }
    let mut superblock = SuperblockDisk::unpack(buf.as_slice());
    let is_new = superblock.is_blank();
    if is_new {
        superblock = SuperblockDisk::new(block_bytes, u64::from(fresh.blocks));
        format(&**device, &fresh, &superblock)
            .map_err(|_| failed("Unable to initialize device"))?;
    }
    Ok((
        Geometry::found(&superblock, start, room, block_bytes)?,
        is_new,
    ))
}

/// Entries first, magic number and version last: until then there is no cache, and who comes next makes one.
///
/// COMPAT: a kernel writes its version with the entries. If that is cut off it refuses the device from then on.
fn format(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    superblock: &SuperblockDisk,
) -> Result<(), BlkStatus> {
    let blank = EntryDisk {
        sector: u64::MAX,
        seq: CLEARED,
    };
    let end = geometry.metadata_bytes();
    let piece = |from: usize| {
        let mut buf = IoBuf::alloc(REQUEST_BYTES.min(end - from));
        let to = from + buf.len();
        for index in geometry.entries_in(from, to) {
            blank.pack(&mut buf.as_mut_slice()[entry_at(index) - from..]);
        }
        buf
    };
    for from in (0..end).step_by(REQUEST_BYTES) {
        let mut buf = piece(from);
        if from == 0 {
            let nameless = SuperblockDisk {
                magic: 0,
                version: 0,
                ..*superblock
            };
            nameless.pack(buf.as_mut_slice());
        }
        done(write_at(
            device,
            geometry.start,
            vec![(from, buf)],
            IoFlags::default(),
        ))?;
    }
    done(flush(device))?;
    let mut buf = piece(0);
    superblock.pack(buf.as_mut_slice());
    done(write_at(
        device,
        geometry.start,
        vec![(0, buf)],
        IoFlags::default(),
    ))?;
    done(flush(device))
}

fn done(status: BlkStatus) -> Result<(), BlkStatus> {
    if status.is_ok() { Ok(()) } else { Err(status) }
}

/// Writes buffers at these bytes of the metadata.
fn write_at(
    device: &dyn BlockDevice,
    start: Sector,
    bufs: Vec<(usize, IoBuf)>,
    flags: IoFlags,
) -> BlkStatus {
    let request = |(at, buf): (usize, IoBuf)| {
        let at = start + Sector::from_bytes(at as u64);
        (
            Op::Write,
            flags,
            at,
            Sector::from_bytes(buf.len() as u64),
            buf,
        )
    };
    let ended = submit_all_and_wait(device, bufs.into_iter().map(request).collect());
    let all = ended.iter().map(|(_, status)| *status);
    all.fold(BlkStatus::Ok, BlkStatus::and)
}

impl Shared {
    /// Reads the metadata, before requests come. If they cannot be read nothing is: nobody knows what the origin does not have.
    pub fn load(&self) {
        let end = self.geometry.metadata_bytes();
        let mut loaded = Loaded::default();
        {
            let mut state = self.state.lock();
            state.entries.reset();
            state.dirty.fill(0);
            (state.open, state.uncommitted, state.commit_at) = (0, 0, None);
            (state.writeback, state.is_draining, state.is_live) = (0, false, false);
        }
        for from in (0..end).step_by(REQUEST_BYTES) {
            let buf = IoBuf::alloc(REQUEST_BYTES.min(end - from));
            let at = self.geometry.start + Sector::from_bytes(from as u64);
            let (buf, status) = read(&*self.cache, at, buf);
            if !status.is_ok() {
                // COMPAT: a kernel takes all blocks for free, and reads bring what the origin has.
                return self.fail("unable to read metadata");
            }
            self.load_piece(&mut loaded, from, buf.as_slice());
        }
        if let Some(wrong) = &loaded.wrong {
            return self.fail(wrong);
        }
        if loaded.stale && !self.state.lock().failed {
            // CRASH: before the sequence number rises, or entries that no commit wrote would become valid.
            self.state.lock().dirty_all(&self.geometry);
            if self.write_dirty() && loaded.seq_left.is_some() && self.flush_cache() {
                self.write_superblock();
            }
        }
        // What another process wrote without a flush is relied upon from now on.
        if !flush(&*self.cache).is_ok() {
            self.fail("error flushing metadata");
        }
        let mut state = self.state.lock();
        if let Some(journal) = state.journal.as_ref().filter(|_| !state.failed) {
            (0..2).for_each(|epoch| journal.clear(epoch));
            state.begin_epoch();
        }
        state.is_live = true;
        state.verify_watermark();
    }

    fn load_piece(&self, loaded: &mut Loaded, from: usize, bytes: &[u8]) {
        let now = self.clock.now().as_millis() as u32;
        let mut state = self.state.lock();
        if from == 0 {
            let seq = SuperblockDisk::unpack(bytes).seq;
            if let Some(journal) = &state.journal {
                loaded.look_at(journal, seq);
            }
            state.seq_on_disk = seq;
            state.seq = loaded.seq_left.map_or(seq, |left| left + 1);
        }
        for index in self.geometry.entries_in(from, from + bytes.len()) {
            let entry = EntryDisk::unpack(&bytes[entry_at(index) - from..]);
            loaded.take(
                &mut state,
                index as u32,
                entry,
                now,
                self.geometry.block_sectors(),
            );
        }
    }

    /// Writes the pages that differ. Whether that went well.
    pub fn write_dirty(&self) -> bool {
        loop {
            let bufs = {
                let mut state = self.state.lock();
                let mut bufs = Vec::new();
                while bufs.len() < REQUESTS
                    && let Some(pages) = state.take_dirty(REQUEST_BYTES / PAGE_BYTES)
                {
                    let from = pages.start * PAGE_BYTES;
                    bufs.push((from, self.pages(&state, pages)));
                }
                bufs
            };
            if bufs.is_empty() {
                return true;
            }
            let flags = IoFlags::default();
            if !write_at(&*self.cache, self.geometry.start, bufs, flags).is_ok() {
                self.fail("error writing metadata");
                return false;
            }
        }
    }

    /// Makes durable what the cache device was given. Whether that went well.
    pub fn flush_cache(&self) -> bool {
        let well = flush(&*self.cache).is_ok();
        if !well {
            self.fail("error flushing metadata");
        }
        well
    }

    /// Makes all entries valid that have a lower sequence number than the present one. Whether that went well.
    pub fn write_superblock(&self) -> bool {
        let buf = {
            let mut state = self.state.lock();
            state.seq_on_disk = state.seq;
            self.pages(&state, 0..1)
        };
        let flags = IoFlags {
            fua: true,
            no_unmap: false,
        };
        let well = write_at(&*self.cache, self.geometry.start, vec![(0, buf)], flags).is_ok();
        if !well {
            self.fail("error writing superblock");
        }
        well
    }

    /// Pages as they are to be on the medium.
    fn pages(&self, state: &State, pages: std::ops::Range<usize>) -> IoBuf {
        let from = pages.start * PAGE_BYTES;
        let to = (pages.end * PAGE_BYTES).min(self.geometry.metadata_bytes());
        let mut buf = IoBuf::alloc(to - from);
        let bytes = buf.as_mut_slice();
        if from == 0 {
            let blocks = u64::from(self.geometry.blocks);
            let superblock = SuperblockDisk {
                seq: state.seq_on_disk,
                ..SuperblockDisk::new(self.geometry.block_bytes, blocks)
            };
            superblock.pack(bytes);
        }
        for index in self.geometry.entries_in(from, to) {
            let entry = &state.entries[index as u32];
            let seq = if entry.clearing { CLEARED } else { entry.seq };
            let on_disk = EntryDisk {
                sector: entry.sector,
                seq,
            };
            on_disk.pack(&mut bytes[entry_at(index) - from..]);
        }
        buf
    }
}

/// What was noticed while the metadata were read.
#[derive(Default)]
struct Loaded {
    /// What the last process has written and not committed, by block, and the highest sequence number of that.
    left: BTreeMap<u32, EntryDisk>,
    seq_left: Option<u64>,
    /// Entries are to be cleared on the medium.
    stale: bool,
    wrong: Option<String>,
}

impl Loaded {
    fn look_at(&mut self, journal: &Journal, seq_on_disk: u64) {
        self.left = journal.left(seq_on_disk).into_iter().collect();
        self.seq_left = self.left.values().map(|entry| entry.seq).max();
        if !self.left.is_empty() {
            tracing::info!(
                entries = self.left.len(),
                "writecache: takes over from the last process"
            );
        }
    }

    fn take(&mut self, state: &mut State, index: u32, entry: EntryDisk, now: u32, block: u64) {
        let left = self.left.remove(&index);
        self.stale |= left.is_some();
        let is_valid = left.is_some() || entry.seq < state.seq_on_disk;
        let EntryDisk { sector, seq } = left.unwrap_or(entry);
        if !is_valid {
            self.stale |= seq != CLEARED;
            return state.entries.add_free(index, sector);
        }
        if !sector.is_multiple_of(block) {
            self.wrong.get_or_insert_with(|| {
                format!("entry {index}: sector {sector} is not where a block begins")
            });
        }
        let Some(other) = state.entries.at(sector) else {
            return state.entries.insert(index, sector, seq, now);
        };
        let other_seq = state.entries[other].seq;
        if other_seq == seq {
            self.wrong.get_or_insert_with(|| {
                format!("two identical entries, position {index}, sector {sector}, sequence {seq}")
            });
        }
        self.stale = true;
        if other_seq > seq {
            return state.entries.add_free(index, sector);
        }
        state.entries.supersede(other);
        state.entries.insert(index, sector, seq, now);
    }
}

const EIO: i32 = 5;
