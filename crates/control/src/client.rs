//! The commands' side of the control socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::frame::{BODY_BYTES_MAX, RequestFrame, ResponseFrame};
use crate::ioctl::Header;
use crate::native::{NativeRequest, NativeResponse};
use crate::request::Request;
use crate::response::Response;
use crate::service::DmError;

/// The buffer that a command offers first, in bytes; libdevmapper's choice. Doubled while answers do not fit.
const BUFFER_BYTES_FIRST: usize = 16 << 10;

/// A connection to the daemon. One request at a time.
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// What a forwarded ioctl gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forwarded {
    /// 0, or a positive errno.
    pub errno: i32,
    /// The bytes to copy over the start of the caller's buffer.
    pub buffer: Vec<u8>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon answered with an errno.
    #[error(transparent)]
    Refused(#[from] DmError),
    /// The daemon could not be asked or did not answer to the end.
    #[error("control socket {path}: {source}", path = path.display())]
    Transport { path: PathBuf, source: io::Error },
}

impl CallError {
    /// The errno that a program waiting in `ioctl(2)` would get.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Refused(error) => error.errno,
            Self::Transport { source, .. } => source
                .raw_os_error()
                .unwrap_or(Errno::CONNRESET.raw_os_error()),
        }
    }

    /// What the kernel would have logged, or what went wrong on the way.
    pub fn text(&self) -> String {
        match self {
            Self::Refused(error) => error.text.clone(),
            transport => transport.to_string(),
        }
    }
}

impl Client {
    /// Connects to the daemon's control socket.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self {
            stream: UnixStream::connect(path)?,
            path: path.to_owned(),
        })
    }

    /// One raw ioctl. Gives the bytes to copy over the start of the caller's buffer.
    pub fn ioctl(&mut self, nr: u32, buffer: Vec<u8>) -> Result<Vec<u8>, CallError> {
        self.call(&RequestFrame::Ioctl { nr, buffer })
    }

    /// One raw ioctl for a program that waits in `ioctl(2)`: a refusal is an answer too, with what the kernel would have
    /// written into the caller's buffer. `wait` comes between request and answer, with the connection; what it gives up with ends
    /// the call, and the connection is of no use afterwards.
    pub fn forward(
        &mut self,
        nr: u32,
        buffer: Vec<u8>,
        wait: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> Result<Forwarded, CallError> {
        let request = RequestFrame::Ioctl { nr, buffer };
        let answer = self.exchange(&request, wait);
        request.wipe();
        let answer = answer?;
        Ok(Forwarded {
            errno: i32::try_from(answer.errno).unwrap_or(i32::MAX),
            buffer: answer.body,
        })
    }

    /// One request in typed form, with as large a buffer as it takes.
    pub fn run(&mut self, request: &Request) -> Result<Response, CallError> {
        let mut size = BUFFER_BYTES_FIRST;
        loop {
            let buffer = request.encode(size);
            let sent = buffer.len();
            let answer = self.ioctl(request.command().nr(), buffer)?;
            if let Some(response) = Response::decode(request, &answer)? {
                return Ok(response);
            }
            size = sent * 2;
            if size > BODY_BYTES_MAX {
                return Err(DmError::new(Errno::NOMEM, "the answer is too long").into());
            }
        }
    }

    /// The interface version that the daemon speaks.
    pub fn interface_version(&mut self) -> Result<[u32; 3], CallError> {
        let answer = self.ioctl(Request::Version.command().nr(), Request::Version.encode(0))?;
        Header::version_of(&answer)
            .ok_or_else(|| DmError::new(Errno::PROTO, "the daemon told no version").into())
    }

    /// Makes the connection one on which the daemon sends a byte for each event of any device.
    pub fn watch_events(mut self) -> Result<UnixStream, CallError> {
        self.native(&NativeRequest::WatchEvents)?;
        Ok(self.stream)
    }

    /// One native request.
    pub fn native(&mut self, request: &NativeRequest) -> Result<NativeResponse, CallError> {
        let json = serde_json::to_vec(request).map_err(|error| self.transport(error.into()))?;
        let answer = self.call(&RequestFrame::Native { json })?;
        serde_json::from_slice(&answer).map_err(|error| self.transport(error.into()))
    }

    fn exchange(
        &mut self,
        request: &RequestFrame,
        wait: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> Result<ResponseFrame, CallError> {
        let answer = request
            .write(&mut self.stream)
            .and_then(|()| wait(self.stream.as_fd()))
            .and_then(|()| ResponseFrame::read(&mut self.stream));
        answer.map_err(|source| self.transport(source))
    }

    fn call(&mut self, request: &RequestFrame) -> Result<Vec<u8>, CallError> {
        let answer = self.exchange(request, |_| Ok(()))?;
        if answer.errno == 0 {
            return Ok(answer.body);
        }
        Err(CallError::Refused(DmError {
            errno: i32::try_from(answer.errno).unwrap_or(i32::MAX),
            text: answer.text,
        }))
    }

    fn transport(&self, source: io::Error) -> CallError {
        CallError::Transport {
            path: self.path.clone(),
            source,
        }
    }
}
