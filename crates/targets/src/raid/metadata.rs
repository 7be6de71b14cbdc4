//! Superblocks and bitmap on the members' metadata devices: reading them, and every change of them. Calls wait: for the keeper and
//! control threads only.
//!
//! CRASH: the bitmap's head never tells of fewer events than a superblock, or a kernel would take the bitmap for out of date. So it goes
//! first.

use std::ops::Range;
use std::sync::Arc;

use thinmap_block::BlockDevice;
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::assemble::Found;
use super::bitmap_disk::{BITMAP_SECTOR, BitmapHead, BitmapImage, PAGE_BYTES};
use super::members::{MAX_SECTOR, Member, MemberState, Members};
use super::regions::Regions;
use super::superblock::{SuperblockDisk, set_failed};
use super::transfer::{Transfer, transfer_all, transfer_metadata};

/// What superblocks and the bitmap's head say that does not change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub level: u32,
    pub layout: u32,
    pub chunk: Sector,
    pub array_len: Sector,
    pub member_len: Sector,
    pub sync_len: Sector,
    /// Where data would begin after a reshape.
    pub new_data_offset: Sector,
    /// Of the bitmap.
    pub region: Sector,
    /// Seconds.
    pub daemon_sleep: u32,
    /// KiB.
    pub write_behind: u32,
}

/// See the module.
pub(super) struct Metadata {
    members: Arc<Members>,
    facts: Facts,
    events: u64,
    events_cleared: u64,
    image: Option<BitmapImage>,
}

/// Reads a member's superblock.
pub(super) fn read_superblock(meta: &dyn BlockDevice) -> Result<Option<SuperblockDisk>, BlkStatus> {
    let bytes = block_bytes(meta);
    let (buf, status) = thinmap_block::read(meta, Sector::ZERO, IoBuf::alloc(bytes));
    if !status.is_ok() {
        return Err(status);
    }
    Ok(SuperblockDisk::unpack(buf.as_slice()))
}

/// Looks at a member, when it has a metadata device.
pub(super) fn find(has_data: bool, meta: Option<&dyn BlockDevice>) -> Found {
    let mut found = Found {
        has_data,
        has_meta: meta.is_some(),
        ..Found::default()
    };
    if let Some(meta) = meta {
        match read_superblock(meta) {
            Ok(superblock) => found.superblock = superblock,
            Err(_) => found.unreadable = true,
        }
    }
    found
}

/// Reads a bitmap's head, `None` where it cannot be read; what is wrong with it.
pub(super) fn read_bitmap_head(meta: &dyn BlockDevice) -> Result<Option<BitmapHead>, String> {
    let buf = IoBuf::alloc(block_bytes(meta));
    let (buf, status) = thinmap_block::read(meta, BITMAP_SECTOR, buf);
    if !status.is_ok() {
        return Ok(None);
    }
    let head = BitmapHead::unpack(buf.as_slice());
    head.map(Some)
        .map_err(|why| format!("invalid bitmap superblock: {why}"))
}

/// Reads a bitmap of so many regions; `None` where it cannot be read.
pub(super) fn read_bitmap(meta: &dyn BlockDevice, regions: usize) -> Option<BitmapImage> {
    let bytes = BitmapImage::bytes_for(regions);
    let room = meta.size().raw().saturating_sub(BITMAP_SECTOR.raw());
    let room = usize::try_from(Sector(room).bytes()).unwrap_or(usize::MAX);
    let buf = IoBuf::alloc(bytes.min(room));
    let (buf, status) = thinmap_block::read(meta, BITMAP_SECTOR, buf);
    if !status.is_ok() {
        return None;
    }
    let mut image = buf.as_slice().to_vec();
    image.resize(bytes, 0);
    Some(BitmapImage::of(image))
}

fn block_bytes(meta: &dyn BlockDevice) -> usize {
    (meta.limits().logical_block_size as usize).max(512)
}

/// How much of a member is good.
fn mark(member: &Member) -> Sector {
    match member.state() {
        MemberState::Rebuilding => member.recovered(),
        _ => MAX_SECTOR,
    }
}

impl Metadata {
    /// Metadata of an array with a bitmap, or without (`image`).
    pub fn new(
        members: Arc<Members>,
        facts: Facts,
        events: (u64, u64),
        image: Option<BitmapImage>,
    ) -> Self {
        Self {
            members,
            facts,
            events: events.0,
            events_cleared: events.1,
            image,
        }
    }

    fn head(&self) -> BitmapHead {
        BitmapHead {
            events: self.events,
            events_cleared: self.events_cleared.min(self.events),
            sync_len: self.facts.sync_len,
            state: 0,
            region: self.facts.region,
            daemon_sleep: self.facts.daemon_sleep,
            write_behind: self.facts.write_behind,
        }
    }

    /// Writes bitmap and superblocks as the members are now. `resynced`: they agree up to there.
    ///
    /// A member whose metadata cannot be written fails, and the others are told.
    pub fn update(&mut self, resynced: Sector) {
        loop {
            let failures = self.members.failures();
            // CRASH: how far members are recovered, from before the flush: what comes on meanwhile is not on the medium yet.
            let marks: Vec<Sector> = self.members.iter().map(mark).collect();
            self.flush((0..self.members.len()).collect());
            self.events = self.events.saturating_add(1);
            let head = self.head();
            if let Some(image) = &mut self.image {
                image.set_head(&head);
            }
            self.write_bitmap();
            self.write_superblocks(resynced, &marks);
            self.members.recorded(failures);
            if !self.members.has_news() {
                return;
            }
        }
    }

    /// Flushes members' data; those that fail it fail.
    fn flush(&self, members: Vec<usize>) {
        let present = |index: &usize| self.members.is_writable(*index);
        let members: Vec<usize> = members.into_iter().filter(present).collect();
        let flushes = members.iter().map(|index| Transfer::flush(*index));
        let results = transfer_all(&self.members, flushes.collect());
        for (index, (_, status)) in members.into_iter().zip(results) {
            if !status.is_ok() {
                self.members.fail(index);
            }
        }
    }

    /// Members whose metadata is kept.
    fn with_metadata(&self) -> Vec<usize> {
        let kept = |index: &usize| {
            let member = self.members.member(*index);
            let written = member.meta.as_ref().is_some_and(|meta| !meta.read_only);
            written && self.members.is_writable(*index)
        };
        (0..self.members.len()).filter(kept).collect()
    }

    fn write_superblocks(&self, resynced: Sector, marks: &[Sector]) {
        let mut failed = [0; 4];
        for index in 0..self.members.len() {
            if !self.members.is_writable(index) {
                set_failed(&mut failed, index);
            }
        }
        let mut writes = Vec::new();
        for index in self.with_metadata() {
            let Some(meta) = &self.members.member(index).meta else {
                continue;
            };
            let mut block = vec![0; block_bytes(&*meta.dev)];
            let superblock = SuperblockDisk {
                failed,
                ..self.superblock(index, resynced, marks[index])
            };
            superblock.pack(&mut block);
            writes.push(Transfer::write(index, Sector::ZERO, &block).durable());
        }
        self.write(writes);
    }

    fn superblock(&self, index: usize, resynced: Sector, recovered: Sector) -> SuperblockDisk {
        let (facts, member) = (&self.facts, self.members.member(index));
        // Fewer than 254 members, and chunks below 2^31 sectors.
        let chunk = facts.chunk.raw() as u32;
        SuperblockDisk {
            compat_features: 1,
            members: self.members.len() as u32,
            position: index as u32,
            events: self.events,
            failed: [0; 4],
            recovered,
            resynced,
            level: facts.level,
            layout: facts.layout,
            chunk,
            flags: 0,
            reshape_position: MAX_SECTOR,
            new_level: facts.level,
            new_layout: facts.layout,
            new_chunk: chunk,
            delta_disks: 0,
            array_len: facts.array_len,
            data_offset: member.data_offset(),
            new_data_offset: facts.new_data_offset,
            member_len: facts.member_len,
            incompat_features: 0,
        }
    }

    fn write(&self, writes: Vec<Transfer>) {
        let members: Vec<usize> = writes.iter().map(|write| write.member).collect();
        let results = transfer_metadata(&self.members, writes);
        for (index, (_, status)) in members.into_iter().zip(results) {
            if !status.is_ok() {
                tracing::error!(
                    member = index,
                    "raid: superblock or bitmap cannot be written"
                );
                self.members.fail(index);
            }
        }
    }

    /// Writes the pages of the bitmap that have changed to all members.
    fn write_bitmap(&mut self) {
        let Some(image) = &mut self.image else {
            return;
        };
        let pages = image.take_changed();
        let mut writes = Vec::new();
        for index in self.with_metadata() {
            let Some(meta) = &self.members.member(index).meta else {
                continue;
            };
            let size = meta.dev.size();
            for (page, bytes) in &pages {
                let sector = BITMAP_SECTOR + Sector::from_bytes((page * PAGE_BYTES) as u64);
                // The last page may stand out over a small device; its used part does not.
                let room = Sector(size.raw().saturating_sub(sector.raw())).bytes();
                let room = usize::try_from(room).unwrap_or(usize::MAX);
                let bytes = &bytes[..bytes.len().min(room)];
                writes.push(Transfer::write(index, sector, bytes).durable());
            }
        }
        self.write(writes);
    }

    /// Makes regions dirty on disk.
    pub fn set_dirty(
        &mut self,
        regions: &Regions,
        spans: impl Iterator<Item = Range<usize>>,
        resynced: Sector,
    ) {
        let Some(image) = &mut self.image else {
            return;
        };
        let spans: Vec<Range<usize>> = spans.collect();
        for index in spans.iter().cloned().flatten() {
            image.set(index, true);
        }
        self.write_bitmap();
        // CRASH: a member that does not have the bits must not be found as good, or its bitmap might be believed.
        if self.members.has_news() {
            self.update(resynced);
        }
        for index in spans.into_iter().flatten() {
            regions.set_on_disk(index);
        }
    }

    /// Makes regions clean on disk, on which nothing is under way any more. `false`, and no change, when that is not to be: a member is
    /// missing, or could not flush.
    pub fn set_clean(&mut self, clean: &[usize]) -> bool {
        // CRASH: what was written there must not be lost when the bitmap says that nothing can differ.
        self.flush((0..self.members.len()).collect());
        if self.members.is_degraded() {
            return false;
        }
        self.events_cleared = self.events;
        let head = self.head();
        if let Some(image) = &mut self.image {
            for index in clean {
                image.set(*index, false);
            }
            image.set_head(&head);
        }
        self.write_bitmap();
        true
    }
}
