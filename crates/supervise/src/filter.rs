//! The seccomp filter: which system calls wait for the supervisor.

use std::os::fd::{FromRawFd, OwnedFd};

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W,
    SECCOMP_RET_ALLOW, SECCOMP_RET_USER_NOTIF, c_long, sock_filter,
};
use rustix::io::Errno;

use crate::call::{ARGUMENT_OF_IOCTL_REQUEST, Kind, NOTIFIED};

/// The kernel's name of the one calling convention that is looked at; programs in another see the kernel's own answers.
#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;
/// Numbers from here on are those of x86's x32 convention.
#[cfg(target_arch = "x86_64")]
const X32_NR_FIRST: u32 = 0x4000_0000;

// Offsets in struct seccomp_data (bytes); of an argument the lower half, which comes first on both machines.
const OFFSET_OF_NR: u32 = 0;
const OFFSET_OF_ARCH: u32 = 4;
const OFFSET_OF_ARGUMENTS: u32 = 16;
const ARGUMENT_BYTES: u32 = 8;

/// The type byte of an ioctl's number, and device mapper's there.
const IOCTL_TYPE_MASK: u32 = 0xff00;
const IOCTL_TYPE_OF_DM: u32 = 0xfd00;

/// Installs the filter on the calling thread, for good and for all that it starts. Gives the descriptor from which the supervisor
/// takes the calls; until it does, every call that the filter names hangs.
pub fn install() -> Result<OwnedFd, Errno> {
    let killable = libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    let installed = install_with(killable).or_else(|errno| match errno {
        // Only who may do more than others may filter itself without giving up set-user-id programs.
        Errno::ACCESS => {
            rustix::thread::set_no_new_privs(true)?;
            install_with(killable)
        }
        errno => Err(errno),
    });
    match installed {
        // Before Linux 5.19: a signal makes the call be made again.
        Err(Errno::INVAL) => install_with(0),
        installed => installed,
    }
}

fn install_with(flags: libc::c_ulong) -> Result<OwnedFd, Errno> {
    let mut code = program();
    let program = libc::sock_fprog {
        len: code.len() as u16,
        filter: code.as_mut_ptr(),
    };
    // SAFETY: the program and its instructions outlive the call; the kernel copies them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &program,
        )
    };
    if fd < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::NOSYS));
    }
    // SAFETY: a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn program() -> Vec<sock_filter> {
    let mut code = vec![
        load(OFFSET_OF_ARCH),
        jump(BPF_JEQ, AUDIT_ARCH, 1, 0),
        give(SECCOMP_RET_ALLOW),
        load(OFFSET_OF_NR),
    ];
    #[cfg(target_arch = "x86_64")]
    code.extend([jump(BPF_JGE, X32_NR_FIRST, 0, 1), give(SECCOMP_RET_ALLOW)]);
    for (nr, kind) in NOTIFIED {
        code.extend(check(*nr, *kind));
    }
    code.push(give(SECCOMP_RET_ALLOW));
    code
}

/// With the call's number loaded: decides about this one, or goes on with the number still loaded.
fn check(nr: c_long, kind: Kind) -> Vec<sock_filter> {
    let notify = give(SECCOMP_RET_USER_NOTIF);
    let allow = give(SECCOMP_RET_ALLOW);
    let decide = match kind {
        Kind::Ioctl => vec![
            load(argument(ARGUMENT_OF_IOCTL_REQUEST)),
            statement(BPF_ALU | BPF_AND | BPF_K, IOCTL_TYPE_MASK),
            jump(BPF_JEQ, IOCTL_TYPE_OF_DM, 0, 1),
            notify,
            allow,
        ],
        // fstat is this with an empty path; there are many of it and none is ours.
        Kind::StatAt { flags, .. } | Kind::Statx { flags } => vec![
            load(argument(flags)),
            jump(BPF_JSET, libc::AT_EMPTY_PATH as u32, 1, 0),
            notify,
            allow,
        ],
        _ => vec![notify],
    };
    let mut code = vec![jump(BPF_JEQ, nr as u32, 0, decide.len() as u8)];
    code.extend(decide);
    code
}

const fn argument(index: usize) -> u32 {
    OFFSET_OF_ARGUMENTS + ARGUMENT_BYTES * index as u32
}

const fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

const fn load(offset: u32) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset)
}

const fn give(action: u32) -> sock_filter {
    statement(BPF_RET | BPF_K, action)
}

/// Skips `then` instructions if the condition holds, else `otherwise`.
const fn jump(condition: u32, k: u32, then: u8, otherwise: u8) -> sock_filter {
    sock_filter {
        code: (BPF_JMP | condition | BPF_K) as u16,
        jt: then,
        jf: otherwise,
        k,
    }
}
