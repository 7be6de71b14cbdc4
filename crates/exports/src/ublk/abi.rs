//! The driver's structures and numbers. Source: the kernel's user ABI, <linux/ublk_cmd.h> of Linux 6.16 and later.
//!
//! Everything is in host byte order: it never leaves the machine.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct ublksrv_ctrl_cmd`: a control command.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub(super) struct ControlCommand {
    pub dev_id: u32,
    /// All ones for commands that are not about one queue.
    pub queue_id: u16,
    /// Bytes of the buffer at `addr`.
    pub len: u16,
    pub addr: u64,
    pub data: u64,
    pub dev_path_len: u16,
    pub pad: u16,
    pub reserved: u32,
}

impl ControlCommand {
    pub(super) fn new(dev_id: u32, data: u64) -> Self {
        Self {
            dev_id,
            queue_id: u16::MAX,
            len: 0,
            addr: 0,
            data,
            dev_path_len: 0,
            pad: 0,
            reserved: 0,
        }
    }
}

/// `struct ublksrv_ctrl_dev_info`: a device as it was added.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub(super) struct DeviceInfo {
    pub nr_hw_queues: u16,
    pub queue_depth: u16,
    pub state: u16,
    pub pad0: u16,
    pub max_io_buf_bytes: u32,
    pub dev_id: u32,
    pub server_pid: i32,
    pub pad1: u32,
    /// `FEATURE_*`.
    pub flags: u64,
    /// Ours: the driver only stores it.
    pub server_flags: u64,
    pub owner_uid: u32,
    pub owner_gid: u32,
    pub reserved1: u64,
    pub reserved2: u64,
}

/// `struct ublk_params` up to the part that tells device numbers; the driver takes a shorter one as such.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub(super) struct Params {
    /// Bytes of the whole.
    pub len: u32,
    /// `PARAMS_*`: which parts count.
    pub types: u32,
    pub basic: Basic,
    pub discard: Discard,
    pub numbers: Numbers,
    /// The first word of a part that is not used.
    pub rest: u32,
}

/// `struct ublk_param_basic`.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub(super) struct Basic {
    /// `ATTR_*`.
    pub attrs: u32,
    pub logical_block_shift: u8,
    pub physical_block_shift: u8,
    pub io_opt_shift: u8,
    pub io_min_shift: u8,
    /// Sectors of the largest read or write.
    pub max_sectors: u32,
    pub chunk_sectors: u32,
    /// Size in sectors.
    pub dev_sectors: u64,
    pub virt_boundary_mask: u64,
}

/// `struct ublk_param_discard`.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub(super) struct Discard {
    pub alignment: u32,
    /// Bytes; never 0.
    pub granularity: u32,
    pub max_discard_sectors: u32,
    pub max_write_zeroes_sectors: u32,
    /// 1 when there are discards.
    pub max_discard_segments: u16,
    pub reserved: u16,
}

/// `struct ublk_param_devt`: numbers of the character and the block device; those of the block device are 0 until
/// it has been started.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub(super) struct Numbers {
    pub char_major: u32,
    pub char_minor: u32,
    pub disk_major: u32,
    pub disk_minor: u32,
}

/// `struct ublksrv_io_desc`: a request, in the memory that the driver shares.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub(super) struct Descriptor {
    /// The operation in the lowest byte, `IO_FLAG_*` above.
    pub op_flags: u32,
    pub sectors: u32,
    pub start_sector: u64,
    pub addr: u64,
}

/// `struct ublksrv_io_cmd`: a queue command. `addr` stays 0: data goes through the character device.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub(super) struct QueueCommand {
    pub queue: u16,
    pub tag: u16,
    /// Bytes done or a negated errno.
    pub result: i32,
    pub addr: u64,
}

const _: () = assert!(size_of::<ControlCommand>() == 32);
const _: () = assert!(size_of::<DeviceInfo>() == 64);
const _: () = assert!(size_of::<Basic>() == 32);
const _: () = assert!(size_of::<Discard>() == 20);
const _: () = assert!(size_of::<Numbers>() == 16);
const _: () = assert!(size_of::<Params>() == 80);
const _: () = assert!(size_of::<Descriptor>() == 24);
const _: () = assert!(size_of::<QueueCommand>() == 16);

/// Control commands.
pub(super) mod control {
    use super::{ControlCommand, ioctl_number};

    const fn read(number: u32) -> u32 {
        ioctl_number(2, number, size_of::<ControlCommand>() as u32)
    }

    const fn read_write(number: u32) -> u32 {
        ioctl_number(3, number, size_of::<ControlCommand>() as u32)
    }

    pub const INFO: u32 = read(0x02);
    pub const ADD: u32 = read_write(0x04);
    pub const START: u32 = read_write(0x06);
    pub const STOP: u32 = read_write(0x07);
    pub const SET_PARAMS: u32 = read_write(0x08);
    pub const PARAMS: u32 = read(0x09);
    pub const FEATURES: u32 = read(0x13);
    /// Does not wait for the last user to close.
    pub const DELETE_ASYNC: u32 = read(0x14);
    pub const UPDATE_SIZE: u32 = read_write(0x15);
    /// Stops only a device that nobody has open.
    pub const TRY_STOP: u32 = read_write(0x17);
}

/// Queue commands.
pub(super) mod queue {
    use super::{QueueCommand, ioctl_number};

    /// Asks for the first request of a tag.
    pub const FETCH: u32 = ioctl_number(3, 0x20, size_of::<QueueCommand>() as u32);
    /// Ends a tag's request and asks for the next one.
    pub const COMMIT_AND_FETCH: u32 = ioctl_number(3, 0x21, size_of::<QueueCommand>() as u32);
}

/// What a request wants.
pub(super) mod op {
    pub const READ: u32 = 0;
    pub const WRITE: u32 = 1;
    pub const FLUSH: u32 = 2;
    pub const DISCARD: u32 = 3;
    pub const WRITE_ZEROES: u32 = 5;
    pub const MASK: u32 = 0xff;
}

/// The driver stores where a request's data is found under queue and tag.
pub(super) const fn data_offset(queue: u16, tag: u16) -> u64 {
    0x8000_0000 + ((queue as u64) << 41) + ((tag as u64) << 25)
}

/// Where a queue's descriptors lie in the character device, for `page` bytes of page.
pub(super) const fn descriptors_offset(queue: u16, page: u64) -> u64 {
    let most = DEPTH_MAX * size_of::<Descriptor>() as u64;
    queue as u64 * most.next_multiple_of(page)
}

/// `_IOC('u', ..)` in the layout that all our architectures share.
const fn ioctl_number(direction: u32, number: u32, size: u32) -> u32 {
    direction << 30 | size << 16 | (b'u' as u32) << 8 | number
}

const DEPTH_MAX: u64 = 4096;

/// Commands carry ioctl numbers.
pub(super) const FEATURE_IOCTL_NUMBERS: u64 = 1 << 6;
/// Data is read from and written to the character device.
pub(super) const FEATURE_USER_COPY: u64 = 1 << 7;
/// `UPDATE_SIZE` exists.
pub(super) const FEATURE_UPDATE_SIZE: u64 = 1 << 10;
/// `TRY_STOP` exists.
pub(super) const FEATURE_TRY_STOP: u64 = 1 << 17;
/// No partitions are looked for, as on device mapper's own devices.
pub(super) const FEATURE_NO_PARTITION_SCAN: u64 = 1 << 18;

pub(super) const PARAMS_BASIC: u32 = 1;
pub(super) const PARAMS_DISCARD: u32 = 2;

pub(super) const ATTR_WRITE_CACHE: u32 = 1 << 2;
pub(super) const ATTR_FUA: u32 = 1 << 3;

pub(super) const IO_FLAG_FUA: u32 = 1 << 13;
pub(super) const IO_FLAG_NO_UNMAP: u32 = 1 << 15;

/// Nobody serves the device (any more).
pub(super) const STATE_DEAD: u16 = 0;

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn fields_lie_where_the_kernel_looks() {
        assert_eq!(offset_of!(ControlCommand, addr), 8);
        assert_eq!(offset_of!(ControlCommand, data), 16);
        assert_eq!(offset_of!(DeviceInfo, max_io_buf_bytes), 8);
        assert_eq!(offset_of!(DeviceInfo, dev_id), 12);
        assert_eq!(offset_of!(DeviceInfo, flags), 24);
        assert_eq!(offset_of!(DeviceInfo, server_flags), 32);
        assert_eq!(offset_of!(DeviceInfo, owner_uid), 40);
        assert_eq!(offset_of!(Params, basic), 8);
        assert_eq!(offset_of!(Params, discard), 40);
        assert_eq!(offset_of!(Params, numbers), 60);
        assert_eq!(offset_of!(Basic, max_sectors), 8);
        assert_eq!(offset_of!(Basic, dev_sectors), 16);
        assert_eq!(offset_of!(Discard, max_discard_segments), 16);
        assert_eq!(offset_of!(Descriptor, start_sector), 8);
        assert_eq!(offset_of!(QueueCommand, result), 4);
    }

    #[test]
    fn command_numbers_are_the_kernels() {
        assert_eq!(control::ADD, 0xc020_7504);
        assert_eq!(control::INFO, 0x8020_7502);
        assert_eq!(control::FEATURES, 0x8020_7513);
        assert_eq!(control::UPDATE_SIZE, 0xc020_7515);
        assert_eq!(queue::FETCH, 0xc010_7520);
        assert_eq!(queue::COMMIT_AND_FETCH, 0xc010_7521);
    }

    #[test]
    fn offsets_in_the_character_device() {
        assert_eq!(data_offset(0, 0), 0x8000_0000);
        assert_eq!(data_offset(1, 2), 0x8000_0000 + (1 << 41) + (2 << 25));
        assert_eq!(descriptors_offset(3, 4096), 3 * 98_304);
        assert_eq!(descriptors_offset(1, 65_536), 131_072);
    }
}
