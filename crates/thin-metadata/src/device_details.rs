//! What the pool knows of one volume besides its mappings.

/// A volume's entry in the device details tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceDetails {
    /// Blocks that have a mapping.
    pub mapped_blocks: u64,
    /// The pool's transaction id when the volume was made.
    pub transaction_id: u64,
    /// The pool's time when the volume was made.
    pub creation_time: u32,
    /// The pool's time when the volume was last an origin or became a snapshot. A mapping older
    /// than this may be shared.
    pub snapshotted_time: u32,
}

impl DeviceDetails {
    /// Bytes on disk.
    pub const SIZE: usize = 24;

    /// Reads an entry of the details tree.
    pub fn unpack(bytes: &[u8; Self::SIZE]) -> Self {
        let mut wide = [0; 8];
        let mut narrow = [0; 4];
        wide.copy_from_slice(&bytes[..8]);
        let mapped_blocks = u64::from_le_bytes(wide);
        wide.copy_from_slice(&bytes[8..16]);
        let transaction_id = u64::from_le_bytes(wide);
        narrow.copy_from_slice(&bytes[16..20]);
        let creation_time = u32::from_le_bytes(narrow);
        narrow.copy_from_slice(&bytes[20..24]);
        Self {
            mapped_blocks,
            transaction_id,
            creation_time,
            snapshotted_time: u32::from_le_bytes(narrow),
        }
    }

    /// The entry's bytes.
    pub fn pack(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.mapped_blocks.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.transaction_id.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.creation_time.to_le_bytes());
        bytes[20..].copy_from_slice(&self.snapshotted_time.to_le_bytes());
        bytes
    }
}
