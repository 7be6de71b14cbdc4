//! Requests to a mapped device, as an input says.

use thinmap_block::{BlockDevice, IoFlags, Op, submit_and_wait};
use thinmap_dm::MappedDevice;
use thinmap_runtime::IoBuf;
use thinmap_units::Sector;

use crate::Input;

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
