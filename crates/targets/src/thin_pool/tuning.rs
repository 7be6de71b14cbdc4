//! Sizes that fit real disks. A simulation makes them small, so that small pools meet what only large ones would.

use parking_lot::Mutex;

/// What new pools of one process go by; shared state of the environment.
#[derive(Default)]
pub struct PoolTuning(Mutex<Sizes>);

/// See the fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Volumes with no more metadata blocks of their own than this are deleted in the message.
    pub delete_at_once_nodes: u64,
    /// Leaves dropped in one step of a deletion.
    pub delete_step_nodes: u64,
    /// Copy buffers of a pool, in sectors.
    pub copy_buffer_sectors: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            // 1 MiB.
            delete_at_once_nodes: 256,
            // Some 4,000 mappings, well under a millisecond when they are in memory.
            delete_step_nodes: 16,
            // 4 MiB.
            copy_buffer_sectors: 8192,
        }
    }
}

impl PoolTuning {
    /// The sizes that a pool made now gets.
    pub fn sizes(&self) -> Sizes {
        *self.0.lock()
    }

    /// Sets them for pools that are made from now on.
    pub fn set(&self, sizes: Sizes) {
        *self.0.lock() = sizes;
    }
}
