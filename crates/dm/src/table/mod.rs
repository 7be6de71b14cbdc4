//! Tables: from text to targets, and from a sector to its target.
//!
//! INVARIANT: a table's lines start at sector 0, follow one another without a gap, and none is empty.

mod limits;
mod load;

use std::sync::Arc;

use thinmap_block::{Op, QueueLimits};
use thinmap_units::{DevNo, Sector};

pub(crate) use load::retire;

use crate::device_use::{DeviceId, DeviceUse};
use crate::error::TableError;
use crate::target::{DeviceRole, Target, TargetInfo};

/// A loaded table: its targets are constructed, their devices open.
pub(crate) struct Table {
    pub(crate) lines: Vec<Line>,
    pub(crate) read_only: bool,
    pub(crate) immutable_type: Option<&'static str>,
}

/// One line with its target.
pub(crate) struct Line {
    pub(crate) begin: Sector,
    pub(crate) len: Sector,
    pub(crate) info: TargetInfo,
    pub(crate) target: Arc<dyn Target>,
}

impl Line {
    pub(crate) fn end(&self) -> Sector {
        self.begin + self.len
    }
}

impl Table {
    /// Length of the mapped device.
    pub(crate) fn size(&self) -> Sector {
        self.lines.last().map_or(Sector::ZERO, Line::end)
    }

    /// The line that `sector` lies in.
    pub(crate) fn line_at(&self, sector: Sector) -> Option<&Line> {
        self.lines.get(self.index_at(sector)?)
    }

    fn index_at(&self, sector: Sector) -> Option<usize> {
        let index = self.lines.partition_point(|line| line.end() <= sector);
        (index < self.lines.len()).then_some(index)
    }

    /// Every device, in the order in which they were opened, repetitions included.
    pub(crate) fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse)) {
        for line in &self.lines {
            line.target
                .visit_devices(&mut |device: &DeviceUse, _: DeviceRole| visit(device));
        }
    }

    /// The devices' numbers, each once. Plain files have none.
    ///
    /// COMPAT: last opened first, as the kernel lists them.
    pub(crate) fn deps(&self) -> Vec<DevNo> {
        let mut deps = Vec::new();
        self.visit_devices(&mut |device| {
            if let DeviceId::Block(dev) = device.id
                && !deps.contains(&dev)
            {
                deps.push(dev);
            }
        });
        deps.reverse();
        deps
    }
}

/// A table that takes requests: the limits of its devices were found good when it was put in place.
pub(crate) struct LiveTable {
    pub(crate) table: Arc<Table>,
    pub(crate) limits: QueueLimits,
    /// By line.
    pub(crate) line_limits: Vec<LineLimits>,
    /// Sector numbers and counts that share a bit with it are not multiples of the logical block.
    pub(crate) alignment_mask: u64,
}

/// What the data path asks of one line.
#[derive(Clone, Copy)]
pub(crate) struct LineLimits {
    pub(crate) max_discard: Sector,
    pub(crate) max_write_zeroes: Sector,
}

/// A stretch of a request that one target takes whole.
pub(crate) struct Piece<'a> {
    pub(crate) line: &'a Line,
    pub(crate) limits: LineLimits,
    pub(crate) sectors: Sector,
}

impl LiveTable {
    /// Looks at the devices as they are now.
    pub(crate) fn new(table: Arc<Table>) -> Result<Self, TableError> {
        let (mut limits, line_limits) = limits::of_table(&table)?;
        limits.read_only |= table.read_only;
        Ok(Self {
            alignment_mask: u64::from(limits.logical_block_size >> 9).saturating_sub(1),
            table,
            limits,
            line_limits,
        })
    }

    /// The longest piece from `sector` that one target takes in one request of kind `op`; `None` beyond the end.
    pub(crate) fn piece_at(&self, op: Op, sector: Sector) -> Option<Piece<'_>> {
        let index = self.table.index_at(sector)?;
        let line = self.table.lines.get(index)?;
        let limits = *self.line_limits.get(index)?;
        let mut sectors = line.end() - sector;
        if let Some(chunk) = line.target.split_at(op)
            && chunk > Sector::ZERO
        {
            let into = (sector - line.begin).raw() % chunk.raw();
            sectors = sectors.min(Sector(chunk.raw() - into));
        }
        let most = match op {
            Op::Discard => limits.max_discard,
            Op::WriteZeroes => limits.max_write_zeroes,
            Op::Read | Op::Write | Op::Flush => Sector::ZERO,
        };
        if most > Sector::ZERO {
            sectors = sectors.min(most);
        }
        Some(Piece {
            line,
            limits,
            sectors,
        })
    }
}
