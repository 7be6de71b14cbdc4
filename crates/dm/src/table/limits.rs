//! What a table's devices allow, combined, and whether they are large and aligned enough.

use thinmap_block::QueueLimits;
use thinmap_units::Sector;

use super::{Line, LineLimits, Table};
use crate::device_use::DeviceUse;
use crate::error::TableError;
use crate::target::DeviceRole;

/// The whole table's limits and each line's. Checks in the kernel's order (`dm_calculate_queue_limits`).
pub(super) fn of_table(table: &Table) -> Result<(QueueLimits, Vec<LineLimits>), TableError> {
    let mut whole = QueueLimits::STACKING;
    let mut by_line = Vec::with_capacity(table.lines.len());
    let mut block_sizes = Vec::with_capacity(table.lines.len());
    for line in &table.lines {
        let devices = stack_devices(line);
        block_sizes.push(devices.logical_block_size);
        let mut limits = devices;
        line.target.io_hints(&mut limits);
        check_areas(line, &limits)?;
        whole.stack(&limits);
        by_line.push(LineLimits {
            max_discard: limits.max_discard,
            max_write_zeroes: limits.max_write_zeroes,
        });
    }
    // What the core writes out itself is no saving, but a table offers write-zeroes if only one line gains.
    whole.max_write_zeroes = by_line
        .iter()
        .map(|line| line.max_write_zeroes)
        .max()
        .unwrap_or(Sector::ZERO);
    check_alignment(table, &block_sizes, whole.logical_block_size)?;
    Ok((whole, by_line))
}

fn stack_devices(line: &Line) -> QueueLimits {
    let mut limits = QueueLimits::STACKING;
    line.target.visit_devices(&mut |device, role| {
        if let DeviceRole::Data { .. } = role {
            limits.stack(&device.dev.limits());
        }
    });
    // A device that refuses writes does not make the mapped one read-only: the kernel goes by the table's mode.
    limits.read_only = false;
    limits
}

fn check_areas(line: &Line, limits: &QueueLimits) -> Result<(), TableError> {
    let mut wrong = None;
    line.target.visit_devices(&mut |device, role| {
        if let DeviceRole::Data { start, len } = role
            && wrong.is_none()
        {
            wrong = check_area(device, start, len, limits);
        }
    });
    wrong.map_or(Ok(()), |reason| Err(TableError::invalid("table", reason)))
}

fn check_area(
    device: &DeviceUse,
    start: Sector,
    len: Sector,
    limits: &QueueLimits,
) -> Option<String> {
    let size = device.dev.size();
    // COMPAT: a device of no size passes: a mapped device that has no table yet.
    if size == Sector::ZERO {
        return None;
    }
    if start >= size || start.checked_add(len).is_none_or(|end| end > size) {
        return Some(format!(
            "{device} too small for target: start={start}, len={len}, dev_size={size}"
        ));
    }
    let block = limits.logical_block_size;
    let mask = u64::from(block >> 9).saturating_sub(1);
    for (what, value) in [("start", start), ("len", len)] {
        if value.raw() & mask != 0 {
            return Some(format!(
                "{what}={value} not aligned to h/w logical block size {block} of {device}"
            ));
        }
    }
    None
}

/// A request that is aligned for the whole device must stay aligned for each target when it is cut at their border.
fn check_alignment(table: &Table, line_block_sizes: &[u32], block: u32) -> Result<(), TableError> {
    let block_sectors = u64::from(block >> 9);
    let (mut next_start, mut remaining) = (0, 0);
    let mut at_fault = table.lines.len().saturating_sub(1);
    for (index, (line, size)) in table.lines.iter().zip(line_block_sizes).enumerate() {
        let mask = u64::from(size >> 9).saturating_sub(1);
        if remaining < line.len.raw() && remaining & mask != 0 {
            at_fault = index;
            break;
        }
        next_start = (next_start + line.len.raw()) % block_sectors.max(1);
        remaining = if next_start == 0 {
            0
        } else {
            block_sectors - next_start
        };
    }
    if remaining == 0 {
        return Ok(());
    }
    let (begin, len) = table
        .lines
        .get(at_fault)
        .map_or((Sector::ZERO, Sector::ZERO), |l| (l.begin, l.len));
    Err(TableError::invalid(
        "table",
        format!(
            "table line {at_fault} (start sect {begin} len {len}) not aligned to h/w logical block size {block}"
        ),
    ))
}
