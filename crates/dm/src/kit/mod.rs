//! Parts that several targets are made of.

mod copier;
mod deferred_set;
mod fan_out;
mod prison;

pub use copier::{Copier, CopyDone, CopyRequest, CopySource, Overlay};
pub use deferred_set::{DeferredSet, Generation, Ticket};
pub use fan_out::FanOut;
pub use prison::Prison;
