//! `snapshot`, `snapshot-origin`, `snapshot-merge`: copy on write of any device, the old content going to another one.
//!
//! See `docs/internals/snapshot-store.md` for format, order of writes and states.

mod args;
mod disk;
mod exceptions;
mod family;
mod kept;
mod line;
mod map;
mod merge;
mod origin;
mod origin_line;
mod room;
#[expect(clippy::module_inception, reason = "the noun is the target's own")]
mod snapshot;
mod state;
mod store;
mod worker;

pub use family::{changes_origin, keeps_old_data_of};
pub use line::{SnapshotMergeType, SnapshotType};
pub use origin_line::SnapshotOriginType;
