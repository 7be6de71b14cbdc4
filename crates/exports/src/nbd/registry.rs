//! The exports of a server by name, and who is connected to each.
//!
//! INVARIANT: a connection is counted under the registry's lock, while its export is still listed. So
//! after a removal the count of the removed export only falls, and zero means drained for good.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use thinmap_block::BlockDevice;

/// One export.
pub struct Export {
    /// What is served.
    pub device: Arc<dyn BlockDevice>,
    /// Whether writes are refused, whatever the device says.
    pub read_only: bool,
    connections: AtomicUsize,
    removed: AtomicBool,
}

impl Export {
    /// Whether its connections should drain and close.
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }
}

/// A client's hold on an export, from the end of its handshake until nothing of it is in flight.
pub struct Opening(Arc<Export>);

impl std::ops::Deref for Opening {
    type Target = Export;

    fn deref(&self) -> &Export {
        &self.0
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Follows the connections of a removed export to their end.
///
/// It does not keep the device alive longer than the last connection does, except while it exists itself.
pub struct Drain(Arc<Export>);

impl Drain {
    /// Whether every connection is closed and every request has come back.
    pub fn is_drained(&self) -> bool {
        self.connections() == 0
    }

    /// Connections that are left.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Acquire)
    }
}

/// All exports of one server.
#[derive(Default)]
pub struct Registry {
    exports: Mutex<BTreeMap<String, Arc<Export>>>,
}

impl Registry {
    /// `false` when the name is taken.
    pub fn add(&self, name: &str, device: Arc<dyn BlockDevice>, read_only: bool) -> bool {
        let mut exports = self.exports.lock();
        if exports.contains_key(name) {
            return false;
        }
        exports.insert(
            name.to_owned(),
            Arc::new(Export {
                device,
                read_only,
                connections: AtomicUsize::new(0),
                removed: AtomicBool::new(false),
            }),
        );
        true
    }

    /// Gives an export another name; its connections stay.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), RenameError> {
        let mut exports = self.exports.lock();
        if !exports.contains_key(from) {
            return Err(RenameError::Unknown);
        }
        if from == to {
            return Ok(());
        }
        if exports.contains_key(to) {
            return Err(RenameError::Taken);
        }
        if let Some(export) = exports.remove(from) {
            exports.insert(to.to_owned(), export);
        }
        Ok(())
    }

    /// Takes an export off the list and marks it; the caller tells the queues to look at the mark.
    pub fn remove(&self, name: &str) -> Option<Drain> {
        let export = self.exports.lock().remove(name)?;
        export.removed.store(true, Ordering::Release);
        Some(Drain(export))
    }

    /// Connections to an export, 0 when there is none of that name.
    pub fn connections(&self, name: &str) -> usize {
        self.exports
            .lock()
            .get(name)
            .map_or(0, |export| export.connections.load(Ordering::Acquire))
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.exports.lock().keys().cloned().collect()
    }

    /// The export a client means and its full name. The empty name means the only export there is.
    pub fn find(&self, name: &[u8]) -> Option<(String, Arc<Export>)> {
        let exports = self.exports.lock();
        Self::find_in(&exports, name)
    }

    /// As [`Registry::find`], and counts the caller as connected.
    pub fn open(&self, name: &[u8]) -> Option<Opening> {
        let exports = self.exports.lock();
        let (_, export) = Self::find_in(&exports, name)?;
        export.connections.fetch_add(1, Ordering::AcqRel);
        Some(Opening(export))
    }

    fn find_in(
        exports: &BTreeMap<String, Arc<Export>>,
        name: &[u8],
    ) -> Option<(String, Arc<Export>)> {
        let name = std::str::from_utf8(name).ok()?;
        let found = match exports.get_key_value(name) {
            Some(found) => Some(found),
            None if name.is_empty() && exports.len() == 1 => exports.iter().next(),
            None => None,
        };
        found.map(|(name, export)| (name.clone(), export.clone()))
    }
}

/// Why an export was not renamed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameError {
    /// There is no export of the old name.
    Unknown,
    /// There is an export of the new name.
    Taken,
}
