//! The kernel's FUSE protocol, as far as a flat directory of files needs it.
//!
//! Source: the kernel's user ABI (<linux/fuse.h>, version 7.42); field order and sizes are the ABI.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! wire {
    ($(#[$doc:meta])* $name:ident, $bytes:literal { $($field:ident: $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub struct $name { $(pub $field: $ty),* }
        const _: () = assert!(size_of::<$name>() == $bytes);
    };
}

wire!(/// Before every request.
    InHeader, 40 {
    len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16,
});
wire!(/// Before every reply and notification.
    OutHeader, 16 { len: u32, error: i32, unique: u64 });
wire!(InitIn, 16 { major: u32, minor: u32, max_readahead: u32, flags: u32 });
wire!(/// What follows `InitIn` with [`init_flag::INIT_EXT`].
    InitInMore, 48 { flags2: u32, unused: [u32; 11] });
wire!(InitOut, 64 {
    major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
    max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, unused: [u32; 7],
});
wire!(Attr, 88 {
    ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
    ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
});
wire!(EntryOut, 128 {
    nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32,
    attr: Attr,
});
wire!(AttrOut, 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr });
wire!(OpenOut, 16 { fh: u64, open_flags: u32, padding: u32 });
wire!(/// READ and WRITE share one shape; `rw_flags` is `read_flags` or `write_flags`.
    ReadWriteIn, 40 {
    fh: u64, offset: u64, size: u32, rw_flags: u32, lock_owner: u64, flags: u32, padding: u32,
});
wire!(WriteOut, 8 { size: u32, padding: u32 });
wire!(FallocateIn, 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 });
wire!(SetattrIn, 88 {
    valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
    atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
});
wire!(StatfsOut, 80 {
    blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
    padding: u32, spare: [u32; 6],
});
wire!(LseekIn, 24 { fh: u64, offset: u64, whence: u32, padding: u32 });
wire!(DirentHead, 24 { ino: u64, off: u64, namelen: u32, kind: u32 });

wire!(/// Of an io_uring entry: behind the two areas of 128 bytes for headers.
    RingEntryInOut, 32 { flags: u64, commit_id: u64, payload_bytes: u32, padding: u32, reserved: u64 });
wire!(/// The command area of both ring commands.
    RingCommand, 24 { flags: u64, commit_id: u64, qid: u16, padding: [u16; 3] });

/// What the kernel and we hand each other in an io_uring entry, beside the payload.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RingHead {
    /// `InHeader` of a request, `OutHeader` of a reply.
    pub in_out: [u8; 128],
    /// The request's own structure, READ's or WRITE's.
    pub op_in: [u8; 128],
    pub entry: RingEntryInOut,
}
const _: () = assert!(size_of::<RingHead>() == 288);

pub const MAJOR: u32 = 7;
pub const MINOR: u32 = 38;
pub const ROOT_ID: u64 = 1;

/// Bytes of a WRITE before its data.
pub const WRITE_HEAD_BYTES: usize = size_of::<InHeader>() + size_of::<ReadWriteIn>();

pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const ACCESS: u32 = 34;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const LSEEK: u32 = 46;
}

pub mod init_flag {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const INIT_EXT: u32 = 1 << 30;
    /// In `flags2`.
    pub const OVER_IO_URING: u32 = 1 << (41 - 32);
}

pub const FOPEN_DIRECT_IO: u32 = 1 << 0;
pub const FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

/// SETATTR's `valid` bits.
pub const FATTR_MODE: u32 = 1 << 0;
pub const FATTR_UID: u32 = 1 << 1;
pub const FATTR_GID: u32 = 1 << 2;
pub const FATTR_SIZE: u32 = 1 << 3;

/// In the place of an error, with `unique` 0: all requests that were read and not answered are to be handed out again.
pub const NOTIFY_RESEND: i32 = 7;

/// `_IOR(229, 0, u32)`: makes a new /dev/fuse descriptor one more queue of a connection.
pub const DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;

/// Commands of io_uring entries.
pub const RING_REGISTER: u32 = 1;
pub const RING_COMMIT_AND_FETCH: u32 = 2;
