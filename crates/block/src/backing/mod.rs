//! Where bytes end up: files and block devices of the host, and memory for tests.

pub mod file;
mod memory;

pub use file::{FileDevice, OpenError, OpenMode};
pub use memory::MemoryDevice;
