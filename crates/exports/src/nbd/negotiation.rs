//! The handshake as a state machine without I/O: bytes in, bytes out, until the client has an export or goes.
//!
//! INVARIANT: what a client can make us hold is one option of at most [`OPTION_BYTES_MAX`] bytes, what it has sent in
//! one receive, and [`OUTPUT_BYTES_MAX`] of replies and the one that went beyond.

use thinmap_units::Sector;

use super::protocol::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, GREETING_MAGIC,
    OPTION_MAGIC, OPTION_REPLY_MAGIC, PAYLOAD_BYTES_MAX, be16, be32, be64, counted, info, option,
    option_reply, transmission,
};
use super::registry::{Export, Opening, Registry};

/// Longest option data taken, in bytes; a client that announces more is cut off.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;

/// No option is answered beyond this until the client has fetched its replies, in bytes: a small one can have a large answer.
pub const OUTPUT_BYTES_MAX: usize = 256 << 10;

/// What the client and the server have agreed on.
pub struct Agreement {
    /// The export, counted as open.
    pub export: Opening,
    /// Size told to the client; later growth is for later connections.
    pub size: Sector,
    /// Limits told to the client.
    pub limits: thinmap_block::QueueLimits,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Structured replies were asked for.
    pub structured: bool,
    /// base:allocation was asked for on this export.
    pub base_allocation: bool,
}

/// Where the handshake stands after some input.
pub enum Step {
    /// More input is needed.
    More,
    /// The client must fetch replies first; the input may hold more options.
    Full,
    /// The reply that announces it is in the output; after it, TLS.
    StartTls,
    /// The client said good-bye (its reply is in the output).
    Bye,
    /// Done; what input is left belongs to the transmission.
    Done(Box<Agreement>),
}

/// The client broke the protocol; it is cut off.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Flags after the greeting that were not offered.
    #[error("client flags {0:#x} were not offered")]
    ClientFlags(u32),
    /// No option where one must be.
    #[error("no option magic")]
    OptionMagic,
    /// Longer than [`OPTION_BYTES_MAX`].
    #[error("option {option} with {len} bytes of data")]
    OptionTooLong {
        /// Its number.
        option: u32,
        /// Its announced length.
        len: u32,
    },
    /// EXPORT_NAME has no way to say no.
    #[error("EXPORT_NAME for an export that is not there or not allowed")]
    ExportName,
    /// Bytes sent in clear after STARTTLS, which an attacker may have put there.
    #[error("plain text after STARTTLS")]
    PlainAfterStartTls,
}

/// Whether the connection must, may or cannot turn to TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsState {
    /// Not configured.
    Off,
    /// Nothing else is allowed before it.
    Required,
    /// On.
    Active,
}

/// One client's handshake.
pub struct Negotiation {
    flags_seen: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export name SET_META_CONTEXT chose base:allocation for.
    context_for: Option<Vec<u8>>,
    tls: TlsState,
}

impl Negotiation {
    /// Starts a handshake: writes the greeting.
    pub fn new(tls: TlsState, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&GREETING_MAGIC.to_be_bytes());
        out.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        out.extend_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        Self {
            flags_seen: false,
            no_zeroes: false,
            structured: false,
            context_for: None,
            tls,
        }
    }

    /// TLS is on now: what was agreed before it is void, since anybody could have said it.
    pub fn tls_started(&mut self) {
        self.tls = TlsState::Active;
        self.structured = false;
        self.context_for = None;
    }

    /// Works through `input`; what is used up is removed from its front, replies are added to `out`.
    pub fn step(
        &mut self,
        input: &mut Vec<u8>,
        out: &mut Vec<u8>,
        registry: &Registry,
    ) -> Result<Step, Violation> {
        let mut rest = &input[..];
        let result = loop {
            if out.len() >= OUTPUT_BYTES_MAX {
                break Ok(Step::Full);
            }
            let before = rest;
            match self.next(&mut rest, out, registry) {
                Ok(Some(Step::More)) => {}
                Ok(None) => {
                    rest = before;
                    break Ok(Step::More);
                }
                Ok(Some(Step::StartTls)) if !rest.is_empty() => {
                    break Err(Violation::PlainAfterStartTls);
                }
                Ok(Some(step)) => break Ok(step),
                Err(violation) => break Err(violation),
            }
        };
        let used = input.len() - rest.len();
        input.drain(..used);
        result
    }

    /// One option, or the client flags; `None` when it is not all there.
    fn next(
        &mut self,
        rest: &mut &[u8],
        out: &mut Vec<u8>,
        registry: &Registry,
    ) -> Result<Option<Step>, Violation> {
        if !self.flags_seen {
            let Some(flags) = be32(rest) else {
                return Ok(None);
            };
            if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
                return Err(Violation::ClientFlags(flags));
            }
            self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
            self.flags_seen = true;
            return Ok(Some(Step::More));
        }
        let Some(magic) = be64(rest) else {
            return Ok(None);
        };
        if magic != OPTION_MAGIC {
            return Err(Violation::OptionMagic);
        }
        let (Some(option), Some(len)) = (be32(rest), be32(rest)) else {
            return Ok(None);
        };
        if len > OPTION_BYTES_MAX {
            return Err(Violation::OptionTooLong { option, len });
        }
        let Some((data, tail)) = rest.split_at_checked(len as usize) else {
            return Ok(None);
        };
        *rest = tail;
        self.option(option, data, out, registry).map(Some)
    }

    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        out: &mut Vec<u8>,
        registry: &Registry,
    ) -> Result<Step, Violation> {
        let must_be_empty = matches!(
            option,
            option::LIST | option::STARTTLS | option::STRUCTURED_REPLY
        );
        match option {
            option::ABORT => {
                reply(out, option, option_reply::ACK, &[]);
                return Ok(Step::Bye);
            }
            option::EXPORT_NAME => return self.export_name(data, out, registry),
            _ if self.tls == TlsState::Required && option != option::STARTTLS => {
                reply(out, option, option_reply::ERR_TLS_REQD, &[]);
            }
            _ if must_be_empty && !data.is_empty() => {
                reply(out, option, option_reply::ERR_INVALID, &[]);
            }
            option::STARTTLS => return Ok(self.start_tls(out)),
            option::LIST => {
                for name in registry.names() {
                    reply(out, option, option_reply::SERVER, &with_length(&name));
                }
                reply(out, option, option_reply::ACK, &[]);
            }
            option::STRUCTURED_REPLY => {
                self.structured = true;
                reply(out, option, option_reply::ACK, &[]);
            }
            option::INFO | option::GO => return Ok(self.info_or_go(option, data, out, registry)),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(option, data, out, registry);
            }
            _ => reply(out, option, option_reply::ERR_UNSUP, &[]),
        }
        Ok(Step::More)
    }

    fn start_tls(&mut self, out: &mut Vec<u8>) -> Step {
        let answer = match self.tls {
            TlsState::Required => option_reply::ACK,
            TlsState::Active => option_reply::ERR_INVALID,
            TlsState::Off => option_reply::ERR_UNSUP,
        };
        reply(out, option::STARTTLS, answer, &[]);
        match self.tls {
            TlsState::Required => Step::StartTls,
            TlsState::Active | TlsState::Off => Step::More,
        }
    }

    fn export_name(
        &mut self,
        name: &[u8],
        out: &mut Vec<u8>,
        registry: &Registry,
    ) -> Result<Step, Violation> {
        if self.tls == TlsState::Required {
            return Err(Violation::ExportName);
        }
        let export = registry.open(name).ok_or(Violation::ExportName)?;
        let agreement = self.agree(export, name);
        out.extend_from_slice(&agreement.size.bytes().to_be_bytes());
        out.extend_from_slice(&transmission_flags(&agreement).to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        Ok(Step::Done(Box::new(agreement)))
    }

    fn info_or_go(
        &mut self,
        option: u32,
        data: &[u8],
        out: &mut Vec<u8>,
        registry: &Registry,
    ) -> Step {
        let Some((name, wants)) = parse_info(data) else {
            reply(out, option, option_reply::ERR_INVALID, &[]);
            return Step::More;
        };
        let (Some((full_name, _)), Some(export)) = (registry.find(name), registry.open(name))
        else {
            reply(out, option, option_reply::ERR_UNKNOWN, b"no such export");
            return Step::More;
        };
        let agreement = self.agree(export, name);
        let block_size_asked = wants.contains(&info::BLOCK_SIZE);
        // Clients that do not ask work in 512-byte blocks: only larger ones come as a surprise.
        if option == option::GO && !block_size_asked && agreement.limits.logical_block_size > 512 {
            reply(out, option, option_reply::ERR_BLOCK_SIZE_REQD, &[]);
            return Step::More;
        }
        let mut export_info = info::EXPORT.to_be_bytes().to_vec();
        export_info.extend_from_slice(&agreement.size.bytes().to_be_bytes());
        export_info.extend_from_slice(&transmission_flags(&agreement).to_be_bytes());
        reply(out, option, option_reply::INFO, &export_info);
        if wants.contains(&info::NAME) {
            let mut name_info = info::NAME.to_be_bytes().to_vec();
            name_info.extend_from_slice(full_name.as_bytes());
            reply(out, option, option_reply::INFO, &name_info);
        }
        let mut block_info = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for size in block_sizes(&agreement.limits) {
            block_info.extend_from_slice(&size.to_be_bytes());
        }
        reply(out, option, option_reply::INFO, &block_info);
        reply(out, option, option_reply::ACK, &[]);
        if option == option::GO {
            Step::Done(Box::new(agreement))
        } else {
            Step::More
        }
    }

    fn meta_context(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>, registry: &Registry) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            // Whatever happens, an earlier choice is void.
            self.context_for = None;
        }
        let parsed = parse_meta_context(data).filter(|_| self.structured);
        let Some((name, queries)) = parsed else {
            reply(out, option, option_reply::ERR_INVALID, &[]);
            return;
        };
        if registry.find(name).is_none() {
            reply(out, option, option_reply::ERR_UNKNOWN, b"no such export");
            return;
        }
        let wanted = queries
            .iter()
            .any(|query| *query == BASE_ALLOCATION || (!set && *query == b"base:"))
            || (!set && queries.is_empty());
        if wanted {
            let id = if set { BASE_ALLOCATION_ID } else { 0 };
            let mut context = id.to_be_bytes().to_vec();
            context.extend_from_slice(BASE_ALLOCATION);
            reply(out, option, option_reply::META_CONTEXT, &context);
            if set {
                self.context_for = Some(name.to_vec());
            }
        }
        reply(out, option, option_reply::ACK, &[]);
    }

    fn agree(&self, export: Opening, name: &[u8]) -> Agreement {
        let limits = export.device.limits();
        Agreement {
            size: whole_blocks(&export, &limits),
            read_only: export.read_only || limits.read_only,
            structured: self.structured,
            base_allocation: self.structured && self.context_for.as_deref() == Some(name),
            limits,
            export,
        }
    }
}

/// The size clients see: a tail shorter than a logical block cannot be addressed.
fn whole_blocks(export: &Export, limits: &thinmap_block::QueueLimits) -> Sector {
    let block = Sector::from_bytes(u64::from(limits.logical_block_size.max(512)));
    let size = export.device.size();
    Sector(size.0 - size.0 % block.0)
}

/// Minimum, preferred and largest request in bytes, in the protocol's order.
fn block_sizes(limits: &thinmap_block::QueueLimits) -> [u32; 3] {
    let minimum = limits.logical_block_size.max(512);
    // The protocol wants a power of two here; an io_opt that is none (a stripe of three) says nothing.
    let optimal = Some(limits.io_opt).filter(|size| size.is_power_of_two());
    let preferred = optimal.unwrap_or(0).clamp(4096, 64 << 10).max(minimum);
    [minimum, preferred, PAYLOAD_BYTES_MAX]
}

fn transmission_flags(agreement: &Agreement) -> u16 {
    // Every device here takes flushes and FUA, and a flush covers writes of all connections: they all
    // go to one device that keeps nothing per connection.
    let mut flags = transmission::HAS_FLAGS
        | transmission::SEND_FLUSH
        | transmission::SEND_FUA
        | transmission::CAN_MULTI_CONN;
    if agreement.structured {
        flags |= transmission::SEND_DF;
    }
    if agreement.read_only {
        return flags | transmission::READ_ONLY;
    }
    flags |= transmission::SEND_WRITE_ZEROES | transmission::SEND_FAST_ZERO;
    if agreement.limits.supports_discard() {
        flags |= transmission::SEND_TRIM;
    }
    flags
}

fn parse_info(data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let mut rest = data;
    let name = counted(&mut rest)?;
    let count = usize::from(be16(&mut rest)?);
    if rest.len() != count * 2 {
        return None;
    }
    let wants: Option<Vec<u16>> = (0..count).map(|_| be16(&mut rest)).collect();
    Some((name, wants?))
}

fn parse_meta_context(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut rest = data;
    let name = counted(&mut rest)?;
    let count = be32(&mut rest)?;
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(counted(&mut rest)?);
    }
    rest.is_empty().then_some((name, queries))
}

fn with_length(name: &str) -> Vec<u8> {
    let len = u32::try_from(name.len()).expect("export names are short");
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend_from_slice(name.as_bytes());
    bytes
}

fn reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    let len = u32::try_from(data.len()).expect("replies are short");
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use thinmap_block::backing::MemoryDevice;

    use super::*;

    #[test]
    fn options_wait_for_room_in_the_output() {
        let registry = Registry::default();
        for n in 0..300 {
            let device = Arc::new(MemoryDevice::new(Sector(8)));
            assert!(registry.add(&format!("{n:0100}"), device, false));
        }
        let mut negotiation = Negotiation::new(TlsState::Off, &mut Vec::new());
        let mut input = 0u32.to_be_bytes().to_vec();
        for _ in 0..256 {
            input.extend(OPTION_MAGIC.to_be_bytes());
            input.extend(option::LIST.to_be_bytes());
            input.extend(0u32.to_be_bytes());
        }
        let one = 300 * (20 + 4 + 100) + 20;
        let (mut bytes, mut turns) = (0, 0);
        loop {
            let mut out = Vec::new();
            let step = negotiation.step(&mut input, &mut out, &registry);
            assert!(out.len() < OUTPUT_BYTES_MAX + one);
            bytes += out.len();
            turns += 1;
            match step.expect("no violation") {
                Step::Full => {}
                Step::More => break,
                _ => panic!("only LIST was asked for"),
            }
        }
        assert_eq!((bytes, input.len()), (256 * one, 0));
        assert!(turns > 30);
    }
}
