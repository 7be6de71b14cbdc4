//! Framing on the control socket: one request, one answer, in turn, per connection.
//!
//! | request, 16 bytes | answer, 16 bytes |
//! |---|---|
//! | magic `TMC1` | magic `TMC1` |
//! | kind: 1 ioctl, 2 native | errno, 0 when done |
//! | ioctl number (0 for native) | length of the text |
//! | length of the body | length of the body |
//!
//! Numbers are 32-bit little-endian. An ioctl's body is the caller's buffer; the answer's body replaces its
//! beginning. A native body is JSON. The text is what the kernel would log, for people.

use std::io::{self, Read, Write};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, LittleEndian, U32, Unaligned};
use zeroize::Zeroize;

/// The longest body or text, in bytes.
pub const BODY_BYTES_MAX: usize = 64 << 20;

const MAGIC: [u8; 4] = *b"TMC1";
const KIND_IOCTL: u32 = 1;
const KIND_NATIVE: u32 = 2;
/// Bodies grow by this much as their bytes arrive, so that a length alone reserves no memory.
const READ_STEP_BYTES: usize = 64 << 10;

/// What a client sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RequestFrame {
    Ioctl { nr: u32, buffer: Vec<u8> },
    Native { json: Vec<u8> },
}

/// What the server answers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ResponseFrame {
    /// 0 when done.
    pub errno: u32,
    pub text: String,
    pub body: Vec<u8>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 4],
    words: [U32<LittleEndian>; 3],
}

impl RequestFrame {
    /// Sends the request.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, nr, body) = match self {
            Self::Ioctl { nr, buffer } => (KIND_IOCTL, *nr, buffer),
            Self::Native { json } => (KIND_NATIVE, 0, json),
        };
        write_head(to, [kind, nr, length(body)?])?;
        to.write_all(body)?;
        to.flush()
    }

    /// Overwrites an ioctl's buffer, which may hold a key.
    pub fn wipe(self) {
        if let Self::Ioctl { mut buffer, .. } = self {
            buffer.zeroize();
        }
    }

    /// Receives a request; `None` when the peer closed between requests.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let Some([kind, nr, len]) = read_head(from)? else {
            return Ok(None);
        };
        let body = read_body(from, len)?;
        match kind {
            KIND_IOCTL => Ok(Some(Self::Ioctl { nr, buffer: body })),
            KIND_NATIVE => Ok(Some(Self::Native { json: body })),
            other => Err(wrong(&format!("unknown kind of request {other}"))),
        }
    }
}

impl ResponseFrame {
    /// Sends the answer.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let text = self.text.as_bytes();
        write_head(to, [self.errno, length(text)?, length(&self.body)?])?;
        to.write_all(text)?;
        to.write_all(&self.body)?;
        to.flush()
    }

    /// Receives an answer.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let [errno, text_len, body_len] = read_head(from)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let text = String::from_utf8_lossy(&read_body(from, text_len)?).into_owned();
        let body = read_body(from, body_len)?;
        Ok(Self { errno, text, body })
    }
}

fn length(body: &[u8]) -> io::Result<u32> {
    u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= BODY_BYTES_MAX)
        .ok_or_else(|| wrong("request or answer is too long"))
}

fn write_head(to: &mut impl Write, words: [u32; 3]) -> io::Result<()> {
    let head = Head {
        magic: MAGIC,
        words: words.map(U32::new),
    };
    to.write_all(head.as_bytes())
}

fn read_head(from: &mut impl Read) -> io::Result<Option<[u32; 3]>> {
    let mut bytes = [0; size_of::<Head>()];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let head = Head::read_from_bytes(&bytes).map_err(|_| wrong("frame head"))?;
    if head.magic != MAGIC {
        return Err(wrong("this is not thinmap's control protocol"));
    }
    Ok(Some(head.words.map(U32::get)))
}

fn read_body(from: &mut impl Read, len: u32) -> io::Result<Vec<u8>> {
    let len = len as usize;
    if len > BODY_BYTES_MAX {
        return Err(wrong("request or answer is too long"));
    }
    let mut body = Vec::new();
    while body.len() < len {
        let start = body.len();
        let step = READ_STEP_BYTES.max(start).min(len - start);
        body.resize(start + step, 0);
        from.read_exact(body.get_mut(start..).unwrap_or_default())?;
    }
    Ok(body)
}

fn wrong(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
