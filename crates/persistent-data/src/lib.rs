//! The metadata engine under the thin pool: Linux `drivers/md/persistent-data`, in user space.
//!
//! Layers, each knowing only those before it:
//! 1. [`MetadataDevice`]: the one door to storage, four methods, 4096-byte blocks;
//! 2. [`BlockCache`]: clean blocks, verified when read, bounded by a budget;
//! 3. space maps: a reference count for each block, of the metadata device itself
//!    ([`TransactionManager`] holds that one) and of anything else ([`DiskSpaceMap`]);
//! 4. [`TransactionManager`]: new and shadowed blocks, commit and abort;
//! 5. [`btree`]: copy-on-write trees with `u64` keys and values of a fixed size;
//! 6. [`array`]: copy-on-write arrays of values of a fixed size, over such a tree; [`bitset`]: arrays of bits.
//!
//! Everything is synchronous. `&` methods may run at once on many threads, `&mut` ones change the
//! open transaction. A damaged image gives [`ErrorKind::Corrupt`]; it never panics, never loops
//! without end and never asks for memory in proportion to what it claims to hold.
//!
//! The format and the commit protocol are in `docs/internals/format.md` and `commit.md`.
#![forbid(unsafe_code)]

pub mod array;
pub mod bitset;
mod block;
pub mod btree;
pub mod bulk;
mod cache;
mod commit;
mod device;
mod error;
mod space_map;
mod transaction_manager;

pub use block::{BlockBytes, BlockKind, META_BLOCK_SIZE, kind_of, seal, verify};
pub use cache::{BlockCache, MayRead};
pub use commit::Commit;
pub use device::{Block4k, MetadataDevice};
pub use error::{ErrorKind, MetadataError, Result, Space};
pub use space_map::{
    DiskSpaceMap, ENTRIES_PER_BITMAP, IndexEntry, METADATA_BITMAPS_MAX, METADATA_BLOCKS_MAX,
    SpaceMapRoot, index_entry, small_count,
};
pub use transaction_manager::{Reader, TransactionManager};
