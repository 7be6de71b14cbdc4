//! Questions by number about block devices that are not ours.
//!
//! Mapped devices are loop (or ublk) devices here, so their major is also that of devices that device mapper knows nothing of. The
//! kernel's major 253 has no such strangers, and libdevmapper asks about every number of the major. Where it walks
//! a tree of devices, the kernel's ENXIO would end the walk.

use thinmap_control::ioctl::{Command, HEADER_BYTES, Header, TargetSpec, flag, nul_padded};
use thinmap_units::DevNo;
use zerocopy::{FromBytes, IntoBytes, NativeEndian, U32, U64};

/// Count and padding before the first number of `struct dm_target_deps`.
const DEPS_BYTES: usize = 8;

/// The answer to a refused question about a stranger. `None` when it was a question about something else, or one
/// whose refusal does no harm.
///
/// - Its dependencies: a device without a name that uses no other.
/// - Its table's status: one linear target. lvm2 takes a device of device mapper's major as a physical volume only if it has a table, and one
///   that passes I/O on.
pub fn answer(nr: u32, request: &[u8], majors: &[u32]) -> Option<Vec<u8>> {
    let (mut header, _) = Header::read_from_prefix(request).ok()?;
    let by_number = header.name[0] == 0 && header.uuid[0] == 0;
    let dev = DevNo::from_kernel(header.dev.get());
    if !by_number || !majors.contains(&dev.major) {
        return None;
    }
    let payload = if nr == Command::TableDeps.nr() {
        vec![0; DEPS_BYTES]
    } else if nr == Command::TableStatus.nr() {
        let sectors = sectors(dev)?;
        header.target_count.set(1);
        header.flags.set(header.flags.get() | flag::ACTIVE_PRESENT);
        linear(sectors)
    } else {
        return None;
    };
    let size = HEADER_BYTES + payload.len();
    if (header.data_size.get() as usize) < size {
        return None;
    }
    header.data_size.set(size as u32);
    header.data_start.set(HEADER_BYTES as u32);
    let mut answer = header.as_bytes().to_vec();
    answer.resize(HEADER_BYTES, 0);
    answer.extend_from_slice(&payload);
    Some(answer)
}

/// The device's size, if it has one: a loop device without a file is nothing.
fn sectors(dev: DevNo) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/sys/dev/block/{dev}/size")).ok()?;
    text.trim_end().parse().ok().filter(|sectors| *sectors > 0)
}

/// The record of a linear target with an empty text.
fn linear(sectors: u64) -> Vec<u8> {
    let spec = TargetSpec {
        sector_start: U64::<NativeEndian>::new(0),
        length: U64::new(sectors),
        status: U32::new(0),
        next: U32::new(size_of::<TargetSpec>() as u32 + 8),
        target_type: nul_padded("linear"),
    };
    let mut record = spec.as_bytes().to_vec();
    record.resize(record.len() + 8, 0);
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use thinmap_control::{DeviceSelector, Request};
    use thinmap_units::DmName;

    fn deps(device: DeviceSelector) -> Vec<u8> {
        let inactive = false;
        Request::TableDeps { device, inactive }.encode(4096)
    }

    #[test]
    fn a_stranger_of_our_major_uses_nothing_and_is_no_error() {
        let nr = Command::TableDeps.nr();
        let by_number = deps(DeviceSelector::Dev(DevNo::new(7, 3)));
        let reply = answer(nr, &by_number, &[7]).expect("answered");
        let (header, _) = Header::read_from_prefix(&reply).expect("a header");
        assert_eq!(header.data_size.get() as usize, reply.len());
        assert!(reply[HEADER_BYTES..].iter().all(|byte| *byte == 0));
        assert_eq!(answer(nr, &by_number, &[259]), None);
        assert_eq!(answer(Command::DevStatus.nr(), &by_number, &[7]), None);
        let by_name = deps(DeviceSelector::Name(DmName::new("x").expect("name")));
        assert_eq!(answer(nr, &by_name, &[7]), None);
    }
}
