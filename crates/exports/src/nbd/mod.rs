//! The NBD server: any block device to any client that speaks the fixed newstyle protocol.
//!
//! Three kinds of threads. The listener ([`listener`]) accepts and shakes hands ([`negotiation`]). Each queue
//! ([`queue`]) owns a share of the connections ([`connection`]): it receives many requests per system call,
//! submits them to the devices on its own thread (whose io_uring carries file I/O) and sends many replies per
//! system call. Threads that come and go ([`askers`]) look up block status, which may wait for metadata.
//!
//! It knows devices only as [`thinmap_block::BlockDevice`]. The daemon owns the [`NbdServer`].

mod askers;
mod buffers;
mod command;
mod connection;
mod extents;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod input;
mod listener;
mod negotiation;
mod protocol;
mod queue;
mod registry;
mod server;
mod sockets;
mod tls;
mod transport;

pub use registry::Drain;
pub use server::{NbdConfig, NbdExport, NbdServer, NbdServerError, TcpConfig};
pub use sockets::NbdSockets;
pub use tls::TlsConfig;
