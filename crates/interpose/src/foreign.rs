//! Questions by number about block devices that are not ours.
//!
//! Mapped devices are loop (or ublk) devices here, so their major is also that of devices that device mapper knows nothing of. The
//! kernel's major 253 has no such strangers, and libdevmapper asks about every number of the major. Where it walks
//! a tree of devices, the kernel's ENXIO would end the walk.

use thinmap_control::ioctl::{Command, HEADER_BYTES, Header};
use zerocopy::FromBytes;
use zerocopy::IntoBytes;

/// Count and padding before the first number of `struct dm_target_deps`.
const DEPS_BYTES: usize = 8;

/// The answer to a refused question for a stranger's dependencies: a device without a name that uses no other. `None`
/// when it was another question.
pub fn no_dependencies(nr: u32, request: &[u8], majors: &[u32]) -> Option<Vec<u8>> {
    if nr != Command::TableDeps.nr() {
        return None;
    }
    let (mut header, _) = Header::read_from_prefix(request).ok()?;
    let by_number = header.name[0] == 0 && header.uuid[0] == 0;
    let dev = thinmap_units::DevNo::from_kernel(header.dev.get());
    if !by_number || !majors.contains(&dev.major) {
        return None;
    }
    // `struct dm_target_deps` with a count of 0.
    let size = HEADER_BYTES + DEPS_BYTES;
    if (header.data_size.get() as usize) < size {
        return None;
    }
    header.data_size.set(size as u32);
    header.data_start.set(HEADER_BYTES as u32);
    let mut answer = header.as_bytes().to_vec();
    answer.resize(size, 0);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use thinmap_control::{DeviceSelector, Request};
    use thinmap_units::{DevNo, DmName};

    fn deps(device: DeviceSelector) -> Vec<u8> {
        let inactive = false;
        Request::TableDeps { device, inactive }.encode(4096)
    }

    #[test]
    fn a_stranger_of_our_major_uses_nothing_and_is_no_error() {
        let nr = Command::TableDeps.nr();
        let by_number = deps(DeviceSelector::Dev(DevNo::new(7, 3)));
        let answer = no_dependencies(nr, &by_number, &[7]).expect("answered");
        let (header, _) = Header::read_from_prefix(&answer).expect("a header");
        assert_eq!(header.data_size.get() as usize, answer.len());
        assert!(answer[HEADER_BYTES..].iter().all(|byte| *byte == 0));
        assert_eq!(no_dependencies(nr, &by_number, &[259]), None);
        assert_eq!(
            no_dependencies(Command::DevStatus.nr(), &by_number, &[7]),
            None
        );
        let by_name = deps(DeviceSelector::Name(DmName::new("x").expect("name")));
        assert_eq!(no_dependencies(nr, &by_name, &[7]), None);
    }
}
