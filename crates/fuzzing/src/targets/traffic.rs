//! A mapped device and requests to it, as an input says.

use thinmap_block::{BlockDevice, IoFlags, Op, submit_and_wait};
use thinmap_dm::{MappedDevice, SuspendFlags, TableLine};
use thinmap_runtime::IoBuf;
use thinmap_units::Sector;

use crate::Input;

/// Makes a table of one line live: a target and its arguments, over so many sectors. Whether that went well.
pub fn live(device: &MappedDevice, sectors: u64, table: &str) -> bool {
    let (target, params) = table.split_once(' ').expect("a target");
    let line = TableLine {
        start: Sector::ZERO,
        len: Sector(sectors),
        target: target.to_owned(),
        params: params.to_owned(),
    };
    device.load(&[line], false).is_ok() && device.resume(SuspendFlags::default()).is_ok()
}

/// Kinds of request.
pub const KINDS: usize = 6;

/// One request of a kind below [`KINDS`], of whole 4096-byte blocks but at the end, and the device's extents from there.
pub fn request(device: &MappedDevice, kind: usize, input: &mut Input<'_>) {
    let size = device.size().raw();
    let sector = u64::from(input.u16()) * 8 % size.max(1);
    let sectors = (8 * (1 + u64::from(input.u8() % 64))).min(size - sector);
    let op = [
        Op::Read,
        Op::Write,
        Op::Discard,
        Op::WriteZeroes,
        Op::Flush,
        Op::Write,
    ][kind];
    let buf = match op {
        Op::Read | Op::Write => {
            IoBuf::alloc(usize::try_from(sectors * 512).expect("some kilobytes"))
        }
        _ => IoBuf::empty(),
    };
    let (sector, sectors) = match op {
        Op::Flush => (0, 0),
        Op::Discard => (sector, sectors.saturating_mul(16).min(size - sector)),
        _ => (sector, sectors),
    };
    let flags = IoFlags {
        fua: kind == 5,
        ..IoFlags::default()
    };
    submit_and_wait(device, (op, flags, Sector(sector), Sector(sectors), buf));
    let mut extents = Vec::new();
    let _ = device.extents(Sector(sector), Sector(size - sector), &mut extents);
}
