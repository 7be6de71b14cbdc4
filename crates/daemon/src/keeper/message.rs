//! What keeper and daemon tell each other: one JSON text for each packet of a SOCK_SEQPACKET socket, with at most one descriptor.
//!
//! A keeper lives through upgrades of the daemon: messages may be added, none may change, and one that is new is said only to a keeper
//! which has told that it understands it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Of a device: major and minor number.
pub type Number = (u32, u32);

/// From the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToKeeper {
    /// Hold the descriptor that comes along under this name, in place of an earlier one.
    Keep(String),
    /// Let go of it.
    Forget(String),
    /// The daemon serves. File systems of these devices are frozen and shall stay so, all others shall not.
    Ready(Vec<Number>),
    /// The daemon is ending in good order: it must not be started again.
    Stopping,
    /// The daemon will end with [`UPGRADE_EXIT`]: start this binary, which comes along.
    Upgrade(PathBuf),
    /// Freeze the file system that the descriptor which comes along lies in.
    Freeze(Number),
    /// Thaw it again.
    Thaw(Number),
    /// The daemon does not serve yet and gets on. Only for a keeper that [hears](Beginning::hears_progress) it.
    Progress,
}

/// From the keeper.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToDaemon {
    /// The descriptor that comes along was kept under this name.
    Held(String),
    /// That was all.
    Begin(Beginning),
    /// The answer to [`ToKeeper::Freeze`]: 0 or an errno.
    Frozen(Number, i32),
    /// The answer to [`ToKeeper::Thaw`].
    Thawed(Number),
}

/// What a daemon must know of those before it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Beginning {
    /// Tells this keeper from every other one, so that state of another is never used.
    pub keeper: String,
    /// Daemons before this one.
    pub generation: u32,
    /// The keeper's process.
    pub pid: u32,
    /// It understands [`ToKeeper::Progress`]; one that does not would hear nothing more.
    #[serde(default)]
    pub hears_progress: bool,
}

/// Sends one message.
pub fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    loop {
        let text = [IoSlice::new(&text)];
        match rustix::net::sendmsg(&socket, &text, &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => return Ok(()),
        }
    }
}

/// The next message; `None` when the other end is gone.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut text = vec![0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut into = [IoSliceMut::new(&mut text)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        match rustix::net::recvmsg(&socket, &mut into, &mut control, flags) {
            Err(Errno::INTR) => {}
            // What a process leaves unread that was killed.
            Err(Errno::CONNRESET) => return Ok(None),
            Err(errno) => return Err(errno.into()),
            Ok(received) => break received,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let message = serde_json::from_slice(&text[..received.bytes])?;
    Ok(Some((message, fd)))
}

const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// With this a daemon ends that makes way for its successor.
pub const UPGRADE_EXIT: i32 = 76;
