//! The wire: numbers and layouts of the NBD protocol, all integers big endian.
//!
//! Source: the protocol description of the NetworkBlockDevice project (doc/proto.md), fixed newstyle
//! handshake. Nothing here keeps state or does I/O.

/// First eight bytes of the greeting.
pub const GREETING_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// Second eight bytes of the greeting, and the first of each option.
pub const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// First eight bytes of each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First four bytes of each request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First four bytes of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First four bytes of each chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag: the 124 zero bytes after EXPORT_NAME may be left out.
pub const FLAG_NO_ZEROES: u16 = 2;

/// Options a client may send.
pub mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of replies to options.
pub mod option_reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR | 1;
    pub const ERR_INVALID: u32 = ERROR | 3;
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR | 8;
}

/// Kinds of information about an export.
pub mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const BLOCK_SIZE: u16 = 3;
}

/// What a connection may do with its export.
pub mod transmission {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Requests.
pub mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Modifiers of requests.
pub mod command_flag {
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Chunk types of structured replies, and the flag of the last one.
pub mod chunk {
    pub const FLAG_DONE: u16 = 1;
    pub const OFFSET_DATA: u16 = 1;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = (1 << 15) | 1;
}

/// The context every server should know: which ranges have space and which read as zeroes.
pub const BASE_ALLOCATION: &[u8] = b"base:allocation";
/// The number that stands for [`BASE_ALLOCATION`] on this server's connections.
pub const BASE_ALLOCATION_ID: u32 = 1;
/// base:allocation: no space is allocated.
pub const STATE_HOLE: u32 = 1;
/// base:allocation: reads as zeroes.
pub const STATE_ZERO: u32 = 2;

/// Largest read or write, in bytes. What clients assume when they do not ask.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// Errors as the protocol numbers them (they happen to be Linux's).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum NbdError {
    Ok = 0,
    Perm = 1,
    Io = 5,
    Inval = 22,
    NoSpc = 28,
    NotSup = 95,
}

impl NbdError {
    /// The protocol's number for how an I/O ended.
    pub fn from_status(status: thinmap_units::BlkStatus) -> Self {
        use thinmap_units::BlkStatus;
        match status {
            BlkStatus::Ok => Self::Ok,
            BlkStatus::NoSpc => Self::NoSpc,
            BlkStatus::NotSupp => Self::NotSup,
            BlkStatus::Inval => Self::Inval,
            // COMPAT: the protocol has no EAGAIN; a device that still says so at the top has failed.
            BlkStatus::IoErr
            | BlkStatus::Requeue
            | BlkStatus::Medium
            | BlkStatus::Target
            | BlkStatus::ReservationConflict
            | BlkStatus::Protection => Self::Io,
        }
    }
}

/// Bytes in a request's header.
pub const REQUEST_BYTES: usize = 28;

/// A request's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// `command_flag` bits.
    pub flags: u16,
    /// A `command`.
    pub command: u16,
    /// The client's name for the request; opaque.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

impl Request {
    /// Reads a header; `None` when it does not start with the magic number.
    pub fn unpack(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let mut rest = &bytes[..];
        if be32(&mut rest)? != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: be16(&mut rest)?,
            command: be16(&mut rest)?,
            cookie: be64(&mut rest)?,
            offset: be64(&mut rest)?,
            len: be32(&mut rest)?,
        })
    }
}

/// Takes a number off the front; `None` when too few bytes are left.
pub fn be16(rest: &mut &[u8]) -> Option<u16> {
    take(rest).map(u16::from_be_bytes)
}

/// Takes a number off the front; `None` when too few bytes are left.
pub fn be32(rest: &mut &[u8]) -> Option<u32> {
    take(rest).map(u32::from_be_bytes)
}

/// Takes a number off the front; `None` when too few bytes are left.
pub fn be64(rest: &mut &[u8]) -> Option<u64> {
    take(rest).map(u64::from_be_bytes)
}

/// Takes a string with its 32-bit length off the front; `None` when too few bytes are left.
pub fn counted<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(be32(rest)?).ok()?;
    let (string, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(string)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

/// Room for the longest fixed part of a reply.
pub const REPLY_HEAD_BYTES: usize = 32;

/// The fixed part of a reply, in place: replies are made per request and must not allocate.
#[derive(Clone, Copy)]
pub struct ReplyHead {
    bytes: [u8; REPLY_HEAD_BYTES],
    len: u8,
}

impl ReplyHead {
    fn new() -> Self {
        Self {
            bytes: [0; REPLY_HEAD_BYTES],
            len: 0,
        }
    }

    fn put(mut self, part: &[u8]) -> Self {
        let at = usize::from(self.len);
        self.bytes[at..at + part.len()].copy_from_slice(part);
        self.len += u8::try_from(part.len()).expect("heads are short");
        self
    }

    /// The bytes to send.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// A simple reply; data follows a successful read.
    pub fn simple(cookie: u64, error: NbdError) -> Self {
        Self::new()
            .put(&SIMPLE_REPLY_MAGIC.to_be_bytes())
            .put(&(error as u32).to_be_bytes())
            .put(&cookie.to_be_bytes())
    }

    /// The only chunk of a read: `len` bytes of data follow.
    pub fn offset_data(cookie: u64, offset: u64, len: u32) -> Self {
        Self::chunk(cookie, chunk::OFFSET_DATA, len + 8).put(&offset.to_be_bytes())
    }

    /// The only chunk of a request that failed. The message is left empty.
    pub fn error_chunk(cookie: u64, error: NbdError) -> Self {
        Self::chunk(cookie, chunk::ERROR, 6)
            .put(&(error as u32).to_be_bytes())
            .put(&0u16.to_be_bytes())
    }

    /// The only chunk of a block status: `descriptors_bytes` of descriptors follow.
    pub fn block_status(cookie: u64, descriptors_bytes: u32) -> Self {
        Self::chunk(cookie, chunk::BLOCK_STATUS, descriptors_bytes + 4)
            .put(&BASE_ALLOCATION_ID.to_be_bytes())
    }

    fn chunk(cookie: u64, kind: u16, len: u32) -> Self {
        Self::new()
            .put(&STRUCTURED_REPLY_MAGIC.to_be_bytes())
            .put(&chunk::FLAG_DONE.to_be_bytes())
            .put(&kind.to_be_bytes())
            .put(&cookie.to_be_bytes())
            .put(&len.to_be_bytes())
    }
}
