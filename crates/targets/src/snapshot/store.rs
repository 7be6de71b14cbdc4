//! The exception store of a persistent snapshot: reading it, and every change of it, in the order that survives a power cut.
//!
//! Calls wait for the COW device: for the worker and control threads only.
//!
//! INVARIANT: `area` is what the area `current` holds on disk, or will hold when the call that changes it returns.

use std::ops::Range;

use thinmap_block::{BlockDevice, IoFlags, Op, submit_and_wait};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::disk::{Found, HeaderDisk, SLOT_BYTES, Slot, VERSION};
use super::room::Room;

/// Slots written in one commit: what a power cut can leave half done is that long.
pub(super) const COMMIT_SLOTS_MAX: usize = 4096;
/// Bytes read or written in one request.
const PIECE_BYTES: usize = 1 << 20;
/// The chunk size where neither line nor store says one: 16 KiB.
const CHUNK_SECTORS_DEFAULT: u32 = 32;
/// Areas are written in whole blocks of this size where chunks are that large.
const WRITE_BYTES: usize = 4096;

/// See the module.
pub(super) struct Store {
    chunk: Sector,
    per_area: usize,
    /// The current area, a chunk long. Untouched pages of it cost nothing.
    area: Vec<u8>,
    current: u64,
    /// Slots in use in it.
    used: usize,
}

/// A store that was read, or made.
pub(super) struct Opened {
    pub store: Store,
    pub room: Room,
    /// What the header says.
    pub valid: bool,
    pub exceptions: Vec<Slot>,
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("the COW device cannot be read or written")]
    Device,
    #[error("Invalid or corrupt snapshot: the COW device holds something else")]
    Foreign,
    #[error("unable to handle snapshot disk version {0}")]
    Version(u32),
    #[error("invalid on-disk chunk size: {0}")]
    Chunk(String),
}

impl OpenError {
    /// The kernel's.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Device => 5,
            Self::Foreign => 6,
            Self::Version(_) | Self::Chunk(_) => 22,
        }
    }
}

impl From<BlkStatus> for OpenError {
    fn from(_: BlkStatus) -> Self {
        Self::Device
    }
}

/// Exceptions at the end of the list that lie one after another in both devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Consecutive {
    /// First chunk in the origin.
    pub old: u64,
    /// First chunk in the COW device.
    pub new: u64,
    pub count: usize,
}

/// Merged exceptions that could not be taken off the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NotForgotten {
    /// They are on it, durably.
    InForce,
    /// Who reads the store next may find them, or not.
    Unknown,
}

impl Consecutive {
    /// The chunks in the origin. A damaged store may name the last number there is, which no origin has.
    pub fn range(&self) -> Range<u64> {
        self.old..self.old.saturating_add(self.count as u64)
    }
}

impl Store {
    /// Reads the store on `cow`, or makes one with chunks of `chunk` sectors (0: as is usual) where there is none. `check` says what
    /// is wrong with the chunk size that a header tells.
    pub fn open(
        cow: &dyn BlockDevice,
        chunk: u32,
        check: impl Fn(u32) -> Result<(), String>,
    ) -> Result<Opened, OpenError> {
        let block = cow.limits().logical_block_size;
        let asked = if chunk == 0 {
            CHUNK_SECTORS_DEFAULT.max(block >> 9)
        } else {
            chunk
        };
        let asked = Sector(u64::from(asked));
        if cow.size() < asked {
            return Err(OpenError::Device);
        }
        let first = read(cow, Sector::ZERO, (block as usize).max(512))?;
        let header = match HeaderDisk::unpack(&first) {
            Found::Nothing => return Self::make(cow, asked),
            Found::Foreign => return Err(OpenError::Foreign),
            Found::Header(header) => header,
        };
        if header.version != VERSION {
            return Err(OpenError::Version(header.version));
        }
        let chunk = Sector(u64::from(header.chunk));
        if chunk != asked {
            check(header.chunk).map_err(OpenError::Chunk)?;
            tracing::warn!(on_disk = header.chunk, asked = %asked, "snapshot: the store's chunk size overrides the table's");
        }
        let mut store = Self::empty(chunk);
        let mut room = Room::new(chunk, Some(store.per_area as u64 + 1));
        let mut exceptions = Vec::new();
        if header.valid {
            store.read_all(cow, &mut exceptions)?;
            exceptions.iter().for_each(|slot| room.note(slot.new));
            room.settle();
        }
        Ok(Opened {
            store,
            room,
            valid: header.valid,
            exceptions,
        })
    }

    fn empty(chunk: Sector) -> Self {
        let bytes = chunk.bytes() as usize;
        Self {
            chunk,
            per_area: bytes / SLOT_BYTES,
            area: vec![0; bytes],
            current: 0,
            used: 0,
        }
    }

    fn make(cow: &dyn BlockDevice, chunk: Sector) -> Result<Opened, OpenError> {
        let store = Self::empty(chunk);
        // CRASH: the area first: a header that is there must not be followed by what the device held before.
        store.zero_chunk(cow, store.area_chunk(0))?;
        store.zero_chunk(cow, 0)?;
        flush(cow)?;
        store.write_header(cow, true)?;
        Ok(Opened {
            room: Room::new(chunk, Some(store.per_area as u64 + 1)),
            store,
            valid: true,
            exceptions: Vec::new(),
        })
    }

    fn read_all(
        &mut self,
        cow: &dyn BlockDevice,
        exceptions: &mut Vec<Slot>,
    ) -> Result<(), OpenError> {
        loop {
            self.read_area(cow)?;
            let slots = (0..self.per_area).map(|index| Slot::unpack(&self.area, index));
            let before = exceptions.len();
            exceptions.extend(slots.take_while(|slot| slot.new != 0));
            self.used = exceptions.len() - before;
            if self.used < self.per_area {
                break;
            }
            self.current += 1;
        }
        self.clear_behind_the_end(cow)?;
        Ok(())
    }

    /// Reads the current area, to a piece behind the end of its list.
    fn read_area(&mut self, cow: &dyn BlockDevice) -> Result<(), BlkStatus> {
        let begin = self.sector_of(self.area_chunk(self.current))?;
        self.area = vec![0; self.chunk.bytes() as usize];
        let (mut at, mut ended) = (0, false);
        while at < self.area.len() {
            let len = PIECE_BYTES.min(self.area.len() - at);
            let sector = begin + Sector::from_bytes(at as u64);
            let piece = &mut self.area[at..at + len];
            piece.copy_from_slice(&read(cow, sector, len)?);
            if ended {
                break;
            }
            ended = (0..len / SLOT_BYTES).any(|index| Slot::unpack(piece, index).new == 0);
            at += len;
        }
        Ok(())
    }

    /// CRASH: a commit that was cut may have left slots behind the first free one. They were never in force, and would be when the
    /// gap is filled.
    fn clear_behind_the_end(&mut self, cow: &dyn BlockDevice) -> Result<(), BlkStatus> {
        let begin = self.used * SLOT_BYTES;
        let Some(last) = self.area[begin..].iter().rposition(|byte| *byte != 0) else {
            return Ok(());
        };
        let end = begin + last + 1;
        tracing::warn!(
            area = self.current,
            from = self.used,
            "snapshot: slots behind the end of the list are cleared"
        );
        self.area[begin..end].fill(0);
        if cow.limits().read_only {
            return Ok(());
        }
        self.write_area(cow, begin, end)?;
        flush(cow)
    }

    /// Size of a chunk.
    pub fn chunk(&self) -> Sector {
        self.chunk
    }

    /// The current area's number.
    pub fn area(&self) -> u64 {
        self.current
    }

    /// How many exceptions the next commit takes, at least one.
    pub fn commit_room(&self) -> usize {
        (self.per_area - self.used).min(COMMIT_SLOTS_MAX)
    }

    /// Makes exceptions durable whose content was written, at most [`Store::commit_room`]. After an error the store
    /// must be invalidated.
    pub fn commit(&mut self, cow: &dyn BlockDevice, slots: &[Slot]) -> Result<(), BlkStatus> {
        let begin = self.used;
        for slot in slots {
            slot.pack(&mut self.area, self.used);
            self.used += 1;
        }
        let full = self.used == self.per_area;
        if full {
            // CRASH: before this area becomes full and so is followed by the next one.
            self.zero_chunk(cow, self.area_chunk(self.current + 1))?;
        }
        // CRASH: the content before the slots that point to it.
        flush(cow)?;
        self.write_area(cow, begin * SLOT_BYTES, self.used * SLOT_BYTES)?;
        if full {
            self.current += 1;
            self.used = 0;
            self.area.fill(0);
        }
        Ok(())
    }

    /// The exceptions to merge next, at most `max` (at least one); `None` when there are none left.
    pub fn last_consecutive(
        &mut self,
        cow: &dyn BlockDevice,
        max: usize,
    ) -> Result<Option<Consecutive>, BlkStatus> {
        if self.used == 0 {
            if self.current == 0 {
                return Ok(None);
            }
            self.current -= 1;
            self.read_area(cow)?;
            self.used = self.per_area;
        }
        let last = Slot::unpack(&self.area, self.used - 1);
        let follows = |count: &usize| {
            let slot = Slot::unpack(&self.area, self.used - 1 - count);
            let back = *count as u64;
            last.old.checked_sub(back) == Some(slot.old)
                && last.new.checked_sub(back) == Some(slot.new)
        };
        let count = (1..self.used.min(max)).take_while(follows).count() + 1;
        let back = count as u64 - 1;
        Ok(Some(Consecutive {
            old: last.old - back,
            new: last.new - back,
            count,
        }))
    }

    /// Takes the last `count` exceptions off the list, durably: they were merged, and the origin flushed.
    pub fn forget_last(&mut self, cow: &dyn BlockDevice, count: usize) -> Result<(), NotForgotten> {
        let begin = (self.used - count) * SLOT_BYTES;
        let end = self.used * SLOT_BYTES;
        flush(cow).map_err(|_| NotForgotten::InForce)?;
        let slots = self.area[begin..end].to_vec();
        self.area[begin..end].fill(0);
        if self.write_area(cow, begin, end).is_ok() {
            self.used -= count;
            return Ok(());
        }
        // CRASH: a write that failed may have been done all the same. Until the slots are there again for certain, what goes to the
        // chunks of the COW device could be lost with them.
        self.area[begin..end].copy_from_slice(&slots);
        match self.write_area(cow, begin, end) {
            Ok(()) => Err(NotForgotten::InForce),
            Err(_) => Err(NotForgotten::Unknown),
        }
    }

    /// Where new chunks would go had all exceptions been made in order: what the status shows while merging.
    pub fn next_free_in_order(&self) -> u64 {
        self.area_chunk(self.current) + self.used as u64 + 1
    }

    /// Marks the snapshot invalid, durably. There is no way back. Tried twice: after a failure it would come back as a valid one that
    /// lacks what the origin has got since.
    pub fn invalidate(&self, cow: &dyn BlockDevice) -> Result<(), BlkStatus> {
        self.write_header(cow, false)
            .or_else(|_| self.write_header(cow, false))
    }

    fn write_header(&self, cow: &dyn BlockDevice, valid: bool) -> Result<(), BlkStatus> {
        let block = (cow.limits().logical_block_size as usize).max(512);
        let mut bytes = vec![0; block];
        let header = HeaderDisk {
            valid,
            version: VERSION,
            chunk: self.chunk.raw() as u32,
        };
        header.pack(&mut bytes);
        write_fua(cow, Sector::ZERO, &bytes)
    }

    /// Writes these bytes of the current area, and what lies around them in their blocks, FUA.
    fn write_area(&self, cow: &dyn BlockDevice, begin: usize, end: usize) -> Result<(), BlkStatus> {
        let unit = (cow.limits().logical_block_size as usize)
            .max(WRITE_BYTES)
            .min(self.area.len());
        let (begin, end) = (begin / unit * unit, end.div_ceil(unit) * unit);
        let at = self.sector_of(self.area_chunk(self.current))?;
        let sector = at + Sector::from_bytes(begin as u64);
        write_fua(cow, sector, &self.area[begin..end])
    }

    fn area_chunk(&self, area: u64) -> u64 {
        1 + (self.per_area as u64 + 1) * area
    }

    /// A chunk's first sector. No device is so large that this overflows, so it ends reading a store that seems to be.
    fn sector_of(&self, chunk: u64) -> Result<Sector, BlkStatus> {
        let sector = chunk.checked_mul(self.chunk.raw());
        sector.map(Sector).ok_or(BlkStatus::IoErr)
    }

    fn zero_chunk(&self, cow: &dyn BlockDevice, chunk: u64) -> Result<(), BlkStatus> {
        let begin = self.sector_of(chunk)?;
        let mut at = Sector::ZERO;
        while at < self.chunk {
            let len =
                Sector(self.chunk.raw() - at.raw()).min(Sector::from_bytes(PIECE_BYTES as u64));
            let zeroes = IoBuf::alloc(len.bytes() as usize);
            status(thinmap_block::write(cow, begin + at, zeroes).1)?;
            at += len;
        }
        Ok(())
    }
}

fn read(cow: &dyn BlockDevice, sector: Sector, bytes: usize) -> Result<Vec<u8>, BlkStatus> {
    let (buf, end) = thinmap_block::read(cow, sector, IoBuf::alloc(bytes));
    status(end)?;
    Ok(buf.as_slice().to_vec())
}

fn write_fua(cow: &dyn BlockDevice, sector: Sector, bytes: &[u8]) -> Result<(), BlkStatus> {
    let mut buf = IoBuf::alloc(bytes.len());
    buf.as_mut_slice().copy_from_slice(bytes);
    let flags = IoFlags {
        fua: true,
        no_unmap: false,
    };
    let sectors = Sector::from_bytes(bytes.len() as u64);
    status(submit_and_wait(cow, (Op::Write, flags, sector, sectors, buf)).1)
}

/// Makes what was written to a device durable.
pub(super) fn flush(device: &dyn BlockDevice) -> Result<(), BlkStatus> {
    status(thinmap_block::flush(device))
}

fn status(end: BlkStatus) -> Result<(), BlkStatus> {
    if end.is_ok() { Ok(()) } else { Err(end) }
}
