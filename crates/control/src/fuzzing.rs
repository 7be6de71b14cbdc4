//! One connection's bytes through the control server, on the calling thread: what the fuzz targets drive.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use crate::server::{ControlService, serve};
use crate::service::CancelToken;

/// Serves `input` as what a client sends that then closes, and gives what the client is sent. A request that would wait is
/// cancelled at once.
///
/// # Panics
/// When there are no sockets to be had.
pub fn control_session(service: &dyn ControlService, input: &[u8]) -> Vec<u8> {
    let (server, mut client) = UnixStream::pair().expect("a socket pair");
    let cancel = CancelToken::new();
    cancel.cancel();
    std::thread::scope(|scope| {
        let mut reader = client.try_clone().expect("a descriptor");
        let answers = scope.spawn(move || {
            let mut answers = Vec::new();
            // Whatever came before the end is the answer.
            let _ = reader.read_to_end(&mut answers);
            answers
        });
        scope.spawn(move || {
            // The server may close before it has read all.
            let _ = client.write_all(input);
            let _ = client.shutdown(Shutdown::Write);
        });
        let _ = serve(&server, service, &cancel);
        let _ = server.shutdown(Shutdown::Both);
        answers.join().expect("the reader has no reason to panic")
    })
}
