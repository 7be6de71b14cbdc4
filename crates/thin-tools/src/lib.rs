//! Offline tools on a thin pool's metadata: what thin-provisioning-tools does, on this engine.
//!
//! What is where: `image` a metadata device opened by a tool; `claim` what is refused while somebody else uses it, `loops`,
//! `served` and `mounts` who that may be; `roots`
//! which superblock a tool looks at, the live one or a metadata snapshot's; `progress` what a terminal
//! shows of long work; `nodes`, `runs` and `source` a pool's trees as tools read them, `parallel` work on
//! all cores; `same` whether two paths are one storage; `walk` every tree of an image at once, for `check` and `repair`. Each tool is a folder or file of its own, and its command line is in `command/`,
//! one file for each, entered by the name the program was called with ([`command::TOOLS`]).
//!
//! Threads are allowed here; io_uring is not needed: reads are few and large.
#![forbid(unsafe_code)]

pub mod check;
mod claim;
pub mod command;
pub mod delta;
pub mod dump;
mod error;
mod image;
mod loops;
pub mod ls;
pub mod metadata_size;
mod mounts;
mod nodes;
mod parallel;
mod progress;
pub mod repair;
pub mod restore;
pub mod rmap;
mod roots;
mod runs;
mod same;
mod served;
mod source;
pub mod trim;
mod walk;

pub use error::ToolError;
pub use image::{Access, Image, ImageError, RUN_BLOCKS_MAX};
pub use progress::Progress;
pub use roots::{RootChoice, Roots};
pub use runs::{Run, Times};
pub use served::ServedDevice;
pub use source::{Source, Volume};
