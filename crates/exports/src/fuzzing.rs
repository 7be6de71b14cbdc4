//! One client's bytes through the NBD and FUSE servers on the calling thread: what the fuzz targets drive.
//!
//! Behind the feature `fuzzing`. The code that runs is the servers' own; only sockets stand in for kernel and network.

pub use crate::fuse::fuzzing::fuse_session;
pub use crate::nbd::fuzzing::nbd_session;
