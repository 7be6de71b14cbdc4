//! raid0: chunks dealt out to the members in turn, nothing twice.

use std::ops::Range;
use std::sync::Arc;

use thinmap_block::{Io, Op};
use thinmap_units::{BlkStatus, Sector};

use super::level::{Level, Shape, SyncKind, Synced};
use super::members::Members;

/// See the module.
pub(super) struct Striped {
    members: Arc<Members>,
    chunk: u64,
    member_len: Sector,
}

impl Striped {
    pub fn new(shape: &Shape) -> Self {
        let chunk = shape.chunk.raw();
        Self {
            members: shape.members.clone(),
            chunk,
            member_len: Sector(shape.member_len.raw() / chunk * chunk),
        }
    }
}

impl Level for Striped {
    fn submit(&self, mut io: Io) {
        let count = self.members.len() as u64;
        let (chunk, within) = (io.sector.raw() / self.chunk, io.sector.raw() % self.chunk);
        // The remainder is below the count of members.
        let member = (chunk % count) as usize;
        io.sector = Sector(chunk / count * self.chunk + within);
        self.members.submit(member, io);
    }

    fn split_at(&self, _: Op) -> Option<Sector> {
        Some(Sector(self.chunk))
    }

    fn sync_range(&self, begin: Sector, _: Sector) -> Range<Sector> {
        begin..begin
    }

    fn sync_len(&self) -> Sector {
        self.member_len
    }

    fn recover_len(&self) -> Sector {
        self.member_len
    }

    fn sync(&self, _: SyncKind, _: Range<Sector>) -> Result<Synced, BlkStatus> {
        Ok(Synced::default())
    }

    fn data_members(&self) -> u32 {
        u32::try_from(self.members.len()).unwrap_or(u32::MAX)
    }
}
