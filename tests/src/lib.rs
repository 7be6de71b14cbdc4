//! What the tests across crates share: a real kernel to compare with, and a way to compare.
//!
//! [`uml`] boots the kernel's device mapper, [`arm`] runs one body of shell cases there or with
//! thinmap, [`transcript`] makes two runs comparable and says where they differ.
#![forbid(unsafe_code)]

pub mod arm;
pub mod transcript;
pub mod uml;
pub mod world;
