//! What meets the operating system: io_uring queues, buffers, clock, and actors on threads of their own.
//!
//! This crate and `exports` are the only ones with `unsafe`; each use says why it is sound.
//! Nothing here knows what a block device is.

mod actor;
mod buffer;
mod clock;
mod command;
mod file_ioctl;
mod keyring;
mod process;
mod pulse;
mod ring;
mod secret;
mod shared_memory;
mod simulation;
mod waker;
mod write_batch;

pub use actor::{Actor, ActorHandle, NextTurn, Spawner, ThreadSpawner, Wake};
pub use buffer::{BUFFER_ALIGN, BufferPool, IoBuf};
pub use clock::{Clock, RealClock};
pub use command::{CommandRing, WideCommandRing, control_command};
pub use file_ioctl::{clone_range, discard_block_range};
pub use keyring::{KeyringError, read_key};
pub use process::{IoFlusherError, lock_memory, mark_io_flusher};
pub use pulse::{Pulse, PulseKind, PulseSeen, pulse_goes_on, pulses};
pub use ring::{Completed, Ring, RingOp};
pub use secret::{SecretBox, SecretBytes, SecretSome, scrub_stack};
pub use shared_memory::SharedMemory;
pub use simulation::{Simulation, Waiting, set_simulation, simulate};
pub use waker::Waker;
pub use write_batch::WriteBatch;
