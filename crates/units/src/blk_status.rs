//! The outcome of one I/O: small, `Copy`, with one map to errno.

/// How an I/O ended, after the kernel's `blk_status_t`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum BlkStatus {
    /// Done.
    Ok,
    /// The medium or the device failed the request (EIO).
    IoErr,
    /// No room is left to provision (ENOSPC).
    NoSpc,
    /// The device does not do this operation (EOPNOTSUPP).
    NotSupp,
    /// The device cannot take the request now; the submitter holds it and tries again.
    Requeue,
    /// The request itself is wrong: outside the device or misaligned (EINVAL).
    Inval,
    /// The medium cannot give or take these sectors (ENODATA); the way to it is good.
    Medium,
    /// The device refuses the request, whoever brings it (EREMOTEIO).
    Target,
    /// Another host has the device reserved (EBADE).
    ReservationConflict,
    /// The data do not match their protection information (EILSEQ).
    Protection,
}

impl BlkStatus {
    /// The Linux errno an application sees, 0 for [`BlkStatus::Ok`].
    pub const fn errno(self) -> i32 {
        match self {
            Self::Ok => 0,
            Self::IoErr => 5,
            Self::NoSpc => 28,
            Self::NotSupp => 95,
            Self::Requeue => 11,
            Self::Inval => 22,
            Self::Medium => 61,
            Self::Target => 121,
            Self::ReservationConflict => 52,
            Self::Protection => 84,
        }
    }

    /// The status for an errno that a backing system call gave; unknown ones are [`BlkStatus::IoErr`].
    pub const fn from_errno(errno: i32) -> Self {
        match errno {
            0 => Self::Ok,
            28 | 122 => Self::NoSpc,
            52 => Self::ReservationConflict,
            61 => Self::Medium,
            84 => Self::Protection,
            95 => Self::NotSupp,
            121 => Self::Target,
            _ => Self::IoErr,
        }
    }

    /// Whether the I/O succeeded.
    pub const fn is_ok(self) -> bool {
        matches!(self, Self::Ok)
    }

    /// The first failure of two statuses, for an I/O that was split.
    pub const fn and(self, other: Self) -> Self {
        if self.is_ok() { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::BlkStatus::*;
    use super::*;

    #[test]
    fn errno_round_trip() {
        for status in [
            Ok,
            IoErr,
            NoSpc,
            NotSupp,
            Medium,
            Target,
            ReservationConflict,
            Protection,
        ] {
            assert_eq!(BlkStatus::from_errno(status.errno()), status);
        }
    }

    #[test]
    fn first_failure_wins() {
        assert_eq!(NoSpc.and(IoErr), NoSpc);
        assert_eq!(Ok.and(IoErr), IoErr);
    }
}
