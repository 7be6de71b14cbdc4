//! What to do about one request: decided from its header alone, before anything is allocated for it.

use thinmap_block::{IoFlags, Op, QueueLimits};
use thinmap_units::Sector;

use super::negotiation::Agreement;
use super::protocol::{NbdError, PAYLOAD_BYTES_MAX, Request, command, command_flag};

/// A decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Ask the device. A write's payload of `bytes` follows the header.
    Submit(Work),
    /// Say no; `payload` bytes that follow the header are skipped.
    Refuse { error: NbdError, payload: u32 },
    /// The client goes.
    Disconnect,
    /// The client's stream makes no sense any more.
    Violation(&'static str),
}

/// A request for the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work {
    /// What kind.
    pub kind: WorkKind,
    /// First sector.
    pub start: Sector,
    /// Length.
    pub len: Sector,
    /// Modifiers.
    pub flags: IoFlags,
}

/// Kinds of work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkKind {
    /// A device operation.
    Op(Op),
    /// What is allocated; `one` run only.
    BlockStatus { one: bool },
}

impl Work {
    /// Bytes of memory the request needs while it is in flight.
    pub fn buffer_bytes(&self) -> usize {
        match self.kind {
            WorkKind::Op(Op::Read | Op::Write) => {
                usize::try_from(self.len.bytes()).expect("checked against the largest payload")
            }
            WorkKind::Op(_) | WorkKind::BlockStatus { .. } => 0,
        }
    }
}

/// Checks a request against the protocol and what was agreed.
pub fn decide(request: &Request, agreement: &Agreement) -> Action {
    if request.command == command::DISC {
        return Action::Disconnect;
    }
    let payload = if request.command == command::WRITE {
        request.len
    } else {
        0
    };
    if payload > PAYLOAD_BYTES_MAX {
        return Action::Violation("a write of more than 32 MiB");
    }
    match check(request, agreement) {
        Ok(kind) => Action::Submit(work(request, kind)),
        Err(error) => Action::Refuse { error, payload },
    }
}

fn work(request: &Request, kind: WorkKind) -> Work {
    let fua = request.flags & command_flag::FUA != 0;
    Work {
        kind,
        start: Sector::from_bytes(request.offset),
        len: Sector::from_bytes(u64::from(request.len)),
        flags: IoFlags {
            fua: fua
                && matches!(
                    kind,
                    WorkKind::Op(Op::Write | Op::WriteZeroes | Op::Discard)
                ),
            no_unmap: request.flags & command_flag::NO_HOLE != 0,
        },
    }
}

fn check(request: &Request, agreement: &Agreement) -> Result<WorkKind, NbdError> {
    let (kind, allowed) = match request.command {
        command::READ if agreement.structured => (WorkKind::Op(Op::Read), command_flag::DF),
        command::READ => (WorkKind::Op(Op::Read), 0),
        command::WRITE => (WorkKind::Op(Op::Write), 0),
        command::FLUSH => (WorkKind::Op(Op::Flush), 0),
        command::TRIM => (WorkKind::Op(Op::Discard), 0),
        command::WRITE_ZEROES => (
            WorkKind::Op(Op::WriteZeroes),
            command_flag::NO_HOLE | command_flag::FAST_ZERO,
        ),
        command::BLOCK_STATUS if agreement.base_allocation => (
            WorkKind::BlockStatus {
                one: request.flags & command_flag::REQ_ONE != 0,
            },
            command_flag::REQ_ONE,
        ),
        _ => return Err(NbdError::Inval),
    };
    // FUA is valid on every command, and means nothing on those that write nothing.
    if request.flags & !(allowed | command_flag::FUA) != 0 {
        return Err(NbdError::Inval);
    }
    let changes = matches!(
        kind,
        WorkKind::Op(Op::Write | Op::Discard | Op::WriteZeroes)
    );
    if changes && agreement.read_only {
        return Err(NbdError::Perm);
    }
    if kind == WorkKind::Op(Op::Flush) {
        return match (request.offset, request.len) {
            (0, 0) => Ok(kind),
            _ => Err(NbdError::Inval),
        };
    }
    check_range(request, agreement, changes)?;
    check_ability(request, kind, &agreement.limits)?;
    Ok(kind)
}

fn check_range(request: &Request, agreement: &Agreement, changes: bool) -> Result<(), NbdError> {
    let len = u64::from(request.len);
    let block = u64::from(agreement.limits.logical_block_size.max(512));
    if len == 0 || !request.offset.is_multiple_of(block) || !len.is_multiple_of(block) {
        return Err(NbdError::Inval);
    }
    let size = agreement.size.bytes();
    if request.offset.checked_add(len).is_none_or(|end| end > size) {
        // The protocol's choice: a write beyond the end finds no space, a read finds nothing to read.
        return Err(if changes {
            NbdError::NoSpc
        } else {
            NbdError::Inval
        });
    }
    Ok(())
}

fn check_ability(request: &Request, kind: WorkKind, limits: &QueueLimits) -> Result<(), NbdError> {
    match kind {
        WorkKind::Op(Op::Read) if request.len > PAYLOAD_BYTES_MAX => Err(NbdError::Inval),
        // Not offered then, so no client should ask.
        WorkKind::Op(Op::Discard) if !limits.supports_discard() => Err(NbdError::Inval),
        WorkKind::Op(Op::WriteZeroes) if request.flags & command_flag::FAST_ZERO != 0 => {
            let len = Sector::from_bytes(u64::from(request.len));
            if len > limits.max_write_zeroes {
                return Err(NbdError::NotSup);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
