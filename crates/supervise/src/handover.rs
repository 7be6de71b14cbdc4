//! How the filter's descriptor gets from the program to its supervisor: over a socket, once.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::filter;

const READY: u8 = b'+';
const HANDED_OVER: u8 = b'!';

/// Puts the calling thread, and all that it executes and starts, under the supervisor at the other end of `supervisor`.
/// Afterwards the thread should do nothing but execute the program.
pub fn submit(mut supervisor: UnixStream) -> io::Result<()> {
    let mut byte = [0];
    supervisor.read_exact(&mut byte)?;
    let listener = filter::install().map_err(explain)?;
    let fds = [listener.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let message = [IoSlice::new(&[HANDED_OVER])];
    rustix::net::sendmsg(&supervisor, &message, &mut ancillary, SendFlags::empty())?;
    Ok(())
}

fn explain(errno: Errno) -> io::Error {
    let reason = match errno {
        Errno::BUSY => {
            "it is under a supervisor already (thinmap run --static inside another, or in a sandbox that uses seccomp notification)"
        }
        Errno::INVAL | Errno::NOSYS => {
            "this kernel or sandbox has no seccomp user notification (Linux 5.14 and later)"
        }
        Errno::PERM | Errno::ACCESS => {
            "this sandbox does not let a program filter its own system calls"
        }
        _ => return errno.into(),
    };
    io::Error::new(io::Error::from(errno).kind(), format!("{reason}: {errno}"))
}

/// The supervisor's side: says that it is there, and waits for the descriptor. `None` if the program has given up.
pub fn receive(mut program: UnixStream) -> io::Result<Option<OwnedFd>> {
    program.write_all(&[READY])?;
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut byte)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::io::retry_on_intr(|| rustix::net::recvmsg(&program, &mut into, &mut ancillary, flags))?;
    Ok(ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    }))
}
