//! The system calls that the filter stops, and what their arguments mean.

use libc::{c_long, seccomp_data};

/// Index of ioctl's request number among its arguments.
pub const ARGUMENT_OF_IOCTL_REQUEST: usize = 1;

/// How a call's arguments are to be read; the numbers are argument indexes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Open {
        path: usize,
        flags: usize,
    },
    /// `openat2`: the flags are in the caller's memory.
    OpenHow,
    Stat,
    StatAt {
        flags: usize,
    },
    Statx {
        flags: usize,
    },
    Access {
        path: usize,
    },
    Unlink,
    UnlinkAt,
    Ioctl,
    RequestKey,
}

/// Every call that waits for the supervisor.
#[cfg(target_arch = "x86_64")]
pub const NOTIFIED: &[(c_long, Kind)] = &[
    (libc::SYS_ioctl, Kind::Ioctl),
    (libc::SYS_openat, Kind::Open { path: 1, flags: 2 }),
    (libc::SYS_openat2, Kind::OpenHow),
    (libc::SYS_newfstatat, Kind::StatAt { flags: 3 }),
    (libc::SYS_statx, Kind::Statx { flags: 2 }),
    (libc::SYS_faccessat, Kind::Access { path: 1 }),
    (libc::SYS_faccessat2, Kind::Access { path: 1 }),
    (libc::SYS_unlinkat, Kind::UnlinkAt),
    (libc::SYS_open, Kind::Open { path: 0, flags: 1 }),
    (libc::SYS_stat, Kind::Stat),
    (libc::SYS_lstat, Kind::Stat),
    (libc::SYS_access, Kind::Access { path: 0 }),
    (libc::SYS_unlink, Kind::Unlink),
    (libc::SYS_request_key, Kind::RequestKey),
];
/// Every call that waits for the supervisor.
#[cfg(target_arch = "aarch64")]
pub const NOTIFIED: &[(c_long, Kind)] = &[
    (libc::SYS_ioctl, Kind::Ioctl),
    (libc::SYS_openat, Kind::Open { path: 1, flags: 2 }),
    (libc::SYS_openat2, Kind::OpenHow),
    (libc::SYS_newfstatat, Kind::StatAt { flags: 3 }),
    (libc::SYS_statx, Kind::Statx { flags: 2 }),
    (libc::SYS_faccessat, Kind::Access { path: 1 }),
    (libc::SYS_faccessat2, Kind::Access { path: 1 }),
    (libc::SYS_unlinkat, Kind::UnlinkAt),
    (libc::SYS_request_key, Kind::RequestKey),
];

/// Where a look at a path is to be written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Into {
    /// `struct stat` at this address.
    Stat(u64),
    /// `struct statx` at this address.
    Statx(u64),
}

/// Where a call's flags are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flags {
    Value(u64),
    /// In the first 8 bytes at this address.
    At(u64),
}

/// What is done with a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathCall {
    Open(Flags),
    Look(Into),
    Access { mode: u32 },
    Unlink,
}

/// A stopped call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// `path` is an address in the caller's memory.
    OnPath { path: u64, call: PathCall },
    Ioctl {
        fd: i32,
        request: u32,
        argument: u64,
    },
    /// Addresses of texts.
    RequestKey { kind: u64, description: u64 },
}

impl Call {
    /// `None` for a call that cannot be ours.
    pub fn decode(data: &seccomp_data) -> Option<Self> {
        let (_, kind) = NOTIFIED
            .iter()
            .find(|(nr, _)| *nr == c_long::from(data.nr))?;
        let args = &data.args;
        let on_path = |path: usize, call| {
            Some(Self::OnPath {
                path: args[path],
                call,
            })
        };
        match *kind {
            Kind::Open { path, flags } => on_path(path, PathCall::Open(Flags::Value(args[flags]))),
            Kind::OpenHow => on_path(1, PathCall::Open(Flags::At(args[2]))),
            Kind::Stat => on_path(0, PathCall::Look(Into::Stat(args[1]))),
            Kind::StatAt { .. } => on_path(1, PathCall::Look(Into::Stat(args[2]))),
            Kind::Statx { .. } => on_path(1, PathCall::Look(Into::Statx(args[4]))),
            Kind::Access { path } => {
                let mode = args[path + 1] as u32;
                on_path(path, PathCall::Access { mode })
            }
            Kind::Unlink => on_path(0, PathCall::Unlink),
            Kind::UnlinkAt if args[2] & libc::AT_REMOVEDIR as u64 != 0 => None,
            Kind::UnlinkAt => on_path(1, PathCall::Unlink),
            Kind::Ioctl => Some(Self::Ioctl {
                fd: args[0] as i32,
                request: args[ARGUMENT_OF_IOCTL_REQUEST] as u32,
                argument: args[2],
            }),
            Kind::RequestKey => Some(Self::RequestKey {
                kind: args[0],
                description: args[1],
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(nr: c_long, args: [u64; 6]) -> seccomp_data {
        seccomp_data {
            nr: nr as i32,
            arch: 0,
            instruction_pointer: 0,
            args,
        }
    }

    #[test]
    fn arguments_are_where_the_call_has_them() {
        let args = [10, 11, 12, 13, 14, 15];
        let decode = |nr| Call::decode(&data(nr, args));
        let on_path = |path, call| Some(Call::OnPath { path, call });
        let open = on_path(11, PathCall::Open(Flags::Value(12)));
        assert_eq!(decode(libc::SYS_openat), open);
        let look = on_path(11, PathCall::Look(Into::Statx(14)));
        assert_eq!(decode(libc::SYS_statx), look);
        let access = on_path(11, PathCall::Access { mode: 12 });
        assert_eq!(decode(libc::SYS_faccessat2), access);
        let ioctl = Call::Ioctl {
            fd: 10,
            request: 11,
            argument: 12,
        };
        assert_eq!(decode(libc::SYS_ioctl), Some(ioctl));
        assert_eq!(decode(libc::SYS_read), None);
    }

    #[test]
    fn removing_a_directory_is_the_kernels() {
        let unlink = |flags| Call::decode(&data(libc::SYS_unlinkat, [0, 1, flags, 0, 0, 0]));
        assert_eq!(unlink(libc::AT_REMOVEDIR as u64), None);
        assert!(unlink(0).is_some());
    }
}
