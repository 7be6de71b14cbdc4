//! A client's socket, plain or under TLS, never blocking.
//!
//! INVARIANT: a socket is shut down before it is closed, also on drop, so that a poll which still refers
//! to it ends at once.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recvmsg, sendmsg,
};

/// What one receive brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// So many bytes. `more`: a further receive may bring some at once.
    Bytes { count: usize, more: bool },
    /// Nothing now; wait for the socket.
    WouldBlock,
    /// The client sends no more.
    End,
}

/// A socket that never blocks.
pub struct Transport {
    fd: OwnedFd,
    tls: Option<Box<rustls::ServerConnection>>,
}

impl Transport {
    /// `fd` must be in non-blocking mode.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, tls: None }
    }

    /// Everything from here on is inside TLS.
    pub fn start_tls(&mut self, tls: rustls::ServerConnection) {
        self.tls = Some(Box::new(tls));
    }

    /// The descriptor, to be polled.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Receives into `parts` in turn.
    pub fn receive(&mut self, parts: &mut [IoSliceMut<'_>]) -> io::Result<Received> {
        let wanted: usize = parts.iter().map(|part| part.len()).sum();
        let Some(tls) = self.tls.as_deref_mut() else {
            return receive_plain(self.fd.as_fd(), parts, wanted);
        };
        loop {
            match tls.reader().read_vectored(parts) {
                Ok(0) => return Ok(Received::End),
                // What TLS has decrypted waits in it, not in the socket: ask until it says no.
                Ok(count) => return Ok(Received::Bytes { count, more: true }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A connection cut without close_notify: nothing of what we hold depends on the difference.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(Received::End);
                }
                Err(error) => return Err(error),
            }
            match tls.read_tls(&mut Socket(self.fd.as_fd())) {
                Ok(0) => return Ok(Received::End),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Received::WouldBlock);
                }
                Err(error) => return Err(error),
            }
            if let Err(error) = tls.process_new_packets() {
                // The alert tells the client why; best effort.
                let _ = tls.write_tls(&mut Socket(self.fd.as_fd()));
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            // A full handshake turn must go out before the client says more.
            flush_tls(tls, self.fd.as_fd())?;
        }
    }

    /// Sends from `parts` in turn; how many bytes were taken. `WouldBlock` when none.
    pub fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let fd = self.fd.as_fd();
        let Some(tls) = self.tls.as_deref_mut() else {
            return send_plain(fd, parts);
        };
        if !flush_tls(tls, fd)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = tls.writer().write_vectored(parts)?;
        flush_tls(tls, fd)?;
        if count == 0 && !parts.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(count)
    }

    /// Pushes out what an earlier send left inside TLS; whether all of it is out.
    pub fn flush(&mut self) -> io::Result<bool> {
        match self.tls.as_deref_mut() {
            Some(tls) => flush_tls(tls, self.fd.as_fd()),
            None => Ok(true),
        }
    }

    /// Whether bytes that were taken have not gone to the socket.
    pub fn has_unsent(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        if let Some(tls) = self.tls.as_deref_mut() {
            tls.send_close_notify();
            let _ = flush_tls(tls, self.fd.as_fd());
        }
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }
}

/// `Ok(false)`: the socket is full.
fn flush_tls(tls: &mut rustls::ServerConnection, fd: BorrowedFd<'_>) -> io::Result<bool> {
    while tls.wants_write() {
        match tls.write_tls(&mut Socket(fd)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn receive_plain(
    fd: BorrowedFd<'_>,
    parts: &mut [IoSliceMut<'_>],
    wanted: usize,
) -> io::Result<Received> {
    loop {
        let mut control = RecvAncillaryBuffer::default();
        return match recvmsg(fd, parts, &mut control, RecvFlags::DONTWAIT) {
            Ok(message) if message.bytes == 0 => Ok(Received::End),
            Ok(message) => Ok(Received::Bytes {
                count: message.bytes,
                more: message.bytes == wanted,
            }),
            Err(rustix::io::Errno::AGAIN) => Ok(Received::WouldBlock),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => Err(error.into()),
        };
    }
}

fn send_plain(fd: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    loop {
        let mut control = SendAncillaryBuffer::default();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(fd, parts, &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// The socket as rustls wants it.
struct Socket<'a>(BorrowedFd<'a>);

impl Read for Socket<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match receive_plain(self.0, &mut [IoSliceMut::new(buf)], usize::MAX)? {
            Received::Bytes { count, .. } => Ok(count),
            Received::End => Ok(0),
            Received::WouldBlock => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        send_plain(self.0, &[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        send_plain(self.0, parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
