//! The metadata snapshot: a held copy of the superblock, with the mapping and details trees it
//! names, for user space to read while the pool goes on.

use thinmap_persistent_data::btree::{self, Plain};
use thinmap_persistent_data::{BlockKind, ErrorKind, MayRead, MetadataError, Result, SpaceMapRoot};

use crate::deletion::Deletion;
use crate::device_details::DeviceDetails;
use crate::mapping::SubtreeOps;
use crate::pool_metadata::PoolMetadata;
use crate::superblock::Superblock;

impl PoolMetadata {
    /// Takes a metadata snapshot of the open transaction. It is on the device, together with all
    /// else in that transaction, after the caller's next commit.
    ///
    /// CRASH: unlike the kernel, does not commit first. Such a commit would make the reference
    /// counts of data blocks durable that the caller holds without a mapping, and a power cut before
    /// the next one would leak them.
    ///
    /// # Errors
    /// `Busy`: one is held already.
    pub fn reserve_metadata_snap(&mut self) -> Result<()> {
        if self.superblock.held_root != 0 {
            return Err(MetadataError::new(
                ErrorKind::Busy,
                "a metadata snapshot is held already: release it first",
            ));
        }
        self.change(|pool| {
            // The details tree is brought up to date at commits only.
            pool.write_changed_details()?;
            let sb = &mut pool.superblock;
            // Space maps are not part of it: they count for the live pool.
            let held = Superblock {
                data_space_map: SpaceMapRoot::default(),
                metadata_space_map: SpaceMapRoot::default(),
                ..sb.clone()
            };
            let copy = pool.tm.new_block(BlockKind::Superblock)?;
            *pool.tm.write(copy)? = held.pack().0;
            pool.tm.inc(sb.data_mapping_root)?;
            pool.tm.inc(sb.device_details_root)?;
            sb.held_root = copy;
            pool.snap_taken = true;
            Ok(())
        })
    }

    /// Gives up the metadata snapshot. Its space comes back with the caller's next commit. Takes
    /// time with the blocks that it alone maps.
    ///
    /// # Errors
    /// `Inval`: there is none.
    pub fn release_metadata_snap(&mut self) -> Result<()> {
        self.begin_release(u64::MAX).map(|_| ())
    }

    /// Gives up the metadata snapshot. Trees of volumes deleted meanwhile that have more than
    /// `nodes_max` nodes go on being deleted like those of volumes.
    ///
    /// # Errors
    /// `Inval`: there is none.
    pub fn begin_release(&mut self, nodes_max: u64) -> Result<Deletion> {
        self.change(|pool| {
            let block = pool.superblock.held_root;
            if block == 0 {
                return Err(MetadataError::new(
                    ErrorKind::Inval,
                    "no metadata snapshot is held: nothing to release",
                ));
            }
            let kind = BlockKind::Superblock;
            let bytes = pool.tm.reader().read(block, kind, MayRead::Yes)?;
            let (mapping_root, details_root) = roots(&bytes);
            drop(bytes);
            let roots = (mapping_root, details_root);
            let outcome = match nodes_max {
                u64::MAX => Deletion::Done,
                nodes_max => pool.adopt_from_held(roots, nodes_max)?,
            };
            let data_sm = &mut pool.data_sm;
            btree::delete_tree(&mut pool.tm, &mut SubtreeOps { data_sm }, mapping_root)?;
            let details = &mut Plain::<{ DeviceDetails::SIZE }>;
            btree::delete_tree(&mut pool.tm, details, details_root)?;
            pool.tm.dec(block)?;
            pool.superblock.held_root = 0;
            Ok(outcome)
        })
    }
}

/// The roots in a held superblock, which was verified when read or, when the transaction that made
/// it is still open, has no checksum yet.
fn roots(bytes: &[u8; 4096]) -> (u64, u64) {
    let at = |at: usize| {
        let mut le = [0; 8];
        le.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(le)
    };
    (at(320), at(328))
}
