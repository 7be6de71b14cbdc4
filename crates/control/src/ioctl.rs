//! The kernel's device-mapper ioctl structures and numbers, interface version 4.
//!
//! Owns the byte layout and nothing else: what a field means to a command is told in
//! [`crate::request`] and [`crate::response`]. Facts are those of `<linux/dm-ioctl.h>`. Integers are in
//! the host's byte order, as the kernel's are: both ends of the socket live on one host, and a
//! forwarded ioctl buffer must pass through unchanged.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, NativeEndian, U32, U64, Unaligned};

/// The interface version that we answer with: Linux 6.1's.
pub const INTERFACE_VERSION: [u32; 3] = [4, 47, 0];
/// What the kernel's `dmsetup version` line adds to the interface version.
pub const INTERFACE_VERSION_EXTRA: &str = "-ioctl (2022-07-28)";

/// Bytes of a name field, closing NUL included.
pub const NAME_FIELD_BYTES: usize = 128;
/// Bytes of a uuid field, closing NUL included.
pub const UUID_FIELD_BYTES: usize = 129;
/// Bytes of a target type field, closing NUL included.
pub const TARGET_TYPE_BYTES: usize = 16;

/// Size of the whole header structure in bytes.
pub const HEADER_BYTES: usize = 312;
/// Bytes of the header before its `data` tail; the smallest `data_size` the kernel takes.
pub const HEADER_BYTES_MIN: usize = 305;
/// Size of a target's record head in a table or status buffer, in bytes.
pub const TARGET_SPEC_BYTES: usize = 40;

/// The largest `data_size` that the kernel takes, in bytes.
pub const DATA_SIZE_MAX: usize = 1 << 30;
/// The most targets that the kernel takes in a table.
pub const TARGETS_MAX: u32 = 1 << 20;

/// The ioctl type byte ("magic") of every device-mapper ioctl.
pub const IOCTL_TYPE: u8 = 0xfd;

/// One device-mapper command; the discriminant is the ioctl's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u32)]
pub enum Command {
    Version = 0,
    RemoveAll = 1,
    ListDevices = 2,
    DevCreate = 3,
    DevRemove = 4,
    DevRename = 5,
    DevSuspend = 6,
    DevStatus = 7,
    DevWait = 8,
    TableLoad = 9,
    TableClear = 10,
    TableDeps = 11,
    TableStatus = 12,
    ListVersions = 13,
    TargetMsg = 14,
    DevSetGeometry = 15,
    DevArmPoll = 16,
    TargetVersion = 17,
}

impl Command {
    /// Every command, by number.
    pub const ALL: [Self; 18] = [
        Self::Version,
        Self::RemoveAll,
        Self::ListDevices,
        Self::DevCreate,
        Self::DevRemove,
        Self::DevRename,
        Self::DevSuspend,
        Self::DevStatus,
        Self::DevWait,
        Self::TableLoad,
        Self::TableClear,
        Self::TableDeps,
        Self::TableStatus,
        Self::ListVersions,
        Self::TargetMsg,
        Self::DevSetGeometry,
        Self::DevArmPoll,
        Self::TargetVersion,
    ];

    /// The command with this number (`_IOC_NR` of the ioctl).
    pub fn from_nr(nr: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(nr).ok()?).copied()
    }

    /// The number.
    pub const fn nr(self) -> u32 {
        self as u32
    }

    /// Whether the kernel looks at neither the name nor the uuid as those of a device.
    pub const fn ignores_names(self) -> bool {
        matches!(
            self,
            Self::RemoveAll | Self::ListDevices | Self::ListVersions
        )
    }

    /// Whether the kernel ignores all that follows the header (`IOCTL_FLAGS_NO_PARAMS`).
    pub const fn ignores_payload(self) -> bool {
        matches!(
            self,
            Self::RemoveAll
                | Self::DevCreate
                | Self::DevRemove
                | Self::DevSuspend
                | Self::DevStatus
                | Self::TableClear
                | Self::DevArmPoll
        )
    }
}

/// Flag bits of [`Header::flags`].
pub mod flag {
    /// In and out: read-only device or table.
    pub const READONLY: u32 = 1 << 0;
    /// In: suspend rather than resume. Out: the device is suspended.
    pub const SUSPEND: u32 = 1 << 1;
    /// In: take the minor number in `dev`.
    pub const PERSISTENT_DEV: u32 = 1 << 3;
    /// In: status gives table lines.
    pub const STATUS_TABLE: u32 = 1 << 4;
    /// Out: there is a live table.
    pub const ACTIVE_PRESENT: u32 = 1 << 5;
    /// Out: there is an inactive table.
    pub const INACTIVE_PRESENT: u32 = 1 << 6;
    /// Out: the result did not fit; call again with a larger buffer.
    pub const BUFFER_FULL: u32 = 1 << 8;
    /// In: obsolete, ignored.
    pub const SKIP_BDGET: u32 = 1 << 9;
    /// In: do not freeze the file system on suspend.
    pub const SKIP_LOCKFS: u32 = 1 << 10;
    /// In: suspend without flushing; status without committing first.
    pub const NOFLUSH: u32 = 1 << 11;
    /// In: speak of the inactive table.
    pub const QUERY_INACTIVE_TABLE: u32 = 1 << 12;
    /// Out: a uevent was sent, so that somebody completes the caller's cookie. Set where the kernel sets it; no uevent
    /// is sent here, and whoever performs the ioctl for a program completes the cookie itself.
    pub const UEVENT_GENERATED: u32 = 1 << 13;
    /// In: rename sets the uuid; list gives uuids.
    pub const UUID: u32 = 1 << 14;
    /// In: wipe the buffer after use.
    pub const SECURE_DATA: u32 = 1 << 15;
    /// Out: a message gave a text back.
    pub const DATA_OUT: u32 = 1 << 16;
    /// In: remove when the last user closes. Out: that is waiting to happen.
    pub const DEFERRED_REMOVE: u32 = 1 << 17;
    /// Out: suspended from inside.
    pub const INTERNAL_SUSPEND: u32 = 1 << 18;
    /// In: give measurement lines (IMA).
    pub const IMA_MEASUREMENT: u32 = 1 << 19;
}

/// Flags of one record of a device list.
pub mod name_list_flag {
    /// A uuid follows.
    pub const HAS_UUID: u32 = 1;
    /// The device has no uuid.
    pub const DOESNT_HAVE_UUID: u32 = 2;
}

/// `struct dm_ioctl` without its seven byte `data` tail, which exists only to round its size.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Interface version; in: what the caller speaks, out: what we speak.
    pub version: [U32<NativeEndian>; 3],
    /// In: size of the whole buffer in bytes. Out: how many of them hold a result.
    pub data_size: U32<NativeEndian>,
    /// Offset of the payload from the start of the buffer, in bytes.
    pub data_start: U32<NativeEndian>,
    /// Number of target records.
    pub target_count: U32<NativeEndian>,
    /// Out: how often the device is open.
    pub open_count: U32<NativeEndian>,
    /// Bits of [`flag`].
    pub flags: U32<NativeEndian>,
    /// Event number (in: the one already seen, or a udev cookie).
    pub event_nr: U32<NativeEndian>,
    /// Unused.
    pub padding: U32<NativeEndian>,
    /// Device number in the kernel's encoding ([`thinmap_units::DevNo::to_kernel`]).
    pub dev: U64<NativeEndian>,
    /// NUL-terminated name.
    pub name: [u8; NAME_FIELD_BYTES],
    /// NUL-terminated uuid.
    pub uuid: [u8; UUID_FIELD_BYTES],
}

/// `struct dm_target_spec`: one target's record head; its NUL-terminated text follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct TargetSpec {
    /// First sector of the mapped device.
    pub sector_start: U64<NativeEndian>,
    /// Length in sectors.
    pub length: U64<NativeEndian>,
    /// Unused; zero.
    pub status: U32<NativeEndian>,
    /// Byte offset of the next record: from this record in a table load, from the first record
    /// in a status result.
    pub next: U32<NativeEndian>,
    /// NUL-terminated target type.
    pub target_type: [u8; TARGET_TYPE_BYTES],
}

const _: () = {
    assert!(size_of::<Header>() == HEADER_BYTES_MIN);
    assert!(size_of::<TargetSpec>() == TARGET_SPEC_BYTES);
    assert!(HEADER_BYTES_MIN.next_multiple_of(8) == HEADER_BYTES);
};

impl Header {
    /// A header of zeroes with our interface version and a buffer size in bytes.
    pub fn new(data_size: usize) -> Self {
        let mut header = Self::new_zeroed();
        header.version = INTERFACE_VERSION.map(U32::new);
        header.data_size = U32::new(u32::try_from(data_size).unwrap_or(u32::MAX));
        header
    }

    /// The interface version at the start of a buffer, if it is long enough.
    pub fn version_of(buffer: &[u8]) -> Option<[u32; 3]> {
        let (version, _) = <[U32<NativeEndian>; 3]>::read_from_prefix(buffer).ok()?;
        Some(version.map(U32::get))
    }

    /// Whether the kernel takes a buffer of this `data_size`.
    pub fn has_good_size(&self) -> bool {
        (HEADER_BYTES_MIN..=DATA_SIZE_MAX).contains(&(self.data_size.get() as usize))
    }

    /// Whether all bits of `flags` are set.
    pub fn has(&self, flags: u32) -> bool {
        self.flags.get() & flags == flags
    }
}

use zerocopy::FromZeros;

/// The bytes of a field up to its NUL, or all of them if there is none.
pub fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(&[])
}

/// A fixed field holding `text`, cut so that a closing NUL remains.
pub fn nul_padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().take(N - 1).zip(text.bytes()) {
        *to = from;
    }
    field
}
