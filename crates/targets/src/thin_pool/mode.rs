//! The modes of a pool, and what each allows. Facts: Linux `dm-thin.c`, `enum pool_mode`.

use super::message::Message;

/// From best to worst; a pool is only ever moved along the arrows of `docs/internals/failure-modes.md`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Mode {
    /// Everything works.
    Write,
    /// Metadata may change, but no data block can be allocated.
    OutOfDataSpace,
    /// Metadata may only shrink: nothing but its reserve is free.
    OutOfMetadataSpace,
    /// Metadata may not change: asked for, or after a failure.
    ReadOnly,
    /// Every request fails.
    Fail,
}

impl Mode {
    /// As the kernel's log names it.
    pub fn description(self, error_if_no_space: bool) -> &'static str {
        match self {
            Self::Write => "write",
            Self::OutOfDataSpace if error_if_no_space => "out-of-data-space (error IO)",
            Self::OutOfDataSpace => "out-of-data-space (queue IO)",
            Self::OutOfMetadataSpace => "out-of-metadata-space",
            Self::ReadOnly => "read-only",
            Self::Fail => "failure",
        }
    }

    /// Whether the metadata may take new blocks, for volumes, snapshots and mappings.
    pub fn may_grow_metadata(self) -> bool {
        self < Self::OutOfMetadataSpace
    }

    /// Whether a message is obeyed.
    pub fn obeys(self, message: Message) -> bool {
        match self {
            Self::Write | Self::OutOfDataSpace => true,
            // COMPAT: a kernel obeys none here, and then only a larger device helps.
            Self::OutOfMetadataSpace => message.takes_no_room(),
            Self::ReadOnly | Self::Fail => false,
        }
    }

    /// Whether the metadata may change at all: without room it may change for the better, which a kernel's does not.
    pub fn may_commit(self) -> bool {
        self < Self::ReadOnly
    }

    pub(super) fn from_raw(raw: u8) -> Self {
        match raw {
            0 => Self::Write,
            1 => Self::OutOfDataSpace,
            2 => Self::OutOfMetadataSpace,
            3 => Self::ReadOnly,
            _ => Self::Fail,
        }
    }
}

/// The mode that a pool gets which is in `old` and is asked to go to `new`.
pub fn allowed(old: Mode, new: Mode, needs_check: bool) -> Mode {
    if old == Mode::Fail {
        // Rolling back failed: nothing in memory can be trusted any more.
        return Mode::Fail;
    }
    if new == Mode::Write && needs_check {
        return if old > new { old } else { Mode::ReadOnly };
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fail_is_final_and_a_check_must_come_first() {
        assert_eq!(allowed(Mode::Fail, Mode::Write, false), Mode::Fail);
        assert_eq!(allowed(Mode::ReadOnly, Mode::Write, true), Mode::ReadOnly);
        assert_eq!(allowed(Mode::Write, Mode::Write, true), Mode::ReadOnly);
        assert_eq!(allowed(Mode::ReadOnly, Mode::Write, false), Mode::Write);
        assert_eq!(
            allowed(Mode::OutOfMetadataSpace, Mode::Fail, true),
            Mode::Fail
        );
    }
}
