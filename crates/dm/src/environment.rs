//! What targets get from the process around them: clock, actors, openers, state shared between devices.

use std::any::{Any, TypeId};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;

use parking_lot::Mutex;
use thinmap_runtime::{Clock, SharedMemory, Spawner};
use thinmap_units::DevNo;

use crate::device_use::DeviceOpener;

/// Given to every constructor. A simulator supplies its own parts.
pub struct Environment {
    /// Opens the devices that tables name.
    pub opener: Arc<dyn DeviceOpener>,
    /// Runs workers.
    pub spawner: Arc<dyn Spawner>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Freezes file systems around a suspend; `None` where nothing can be mounted (tests, NBD only).
    pub freezer: Option<Arc<dyn FileSystemFreezer>>,
    /// What devices of one kind share (thin's table of pools).
    pub shared: SharedState,
}

/// Stops a mounted file system's writes, so that what lies on its device is consistent (FIFREEZE).
pub trait FileSystemFreezer: Send + Sync {
    /// Freezes the file system mounted on `dev`, if any. May block until it has written everything back, so
    /// `dev` still takes requests. An errno when it cannot be frozen.
    fn freeze(&self, dev: DevNo) -> Result<(), i32>;

    /// Takes back a [`FileSystemFreezer::freeze`] that succeeded.
    fn thaw(&self, dev: DevNo);
}

/// Memory that outlives the process, by name: what a target keeps there is found by the next daemon after a crash. One for an
/// [`Environment`], in its shared state; without a keeper there is none.
#[derive(Default)]
pub struct KeptMemory {
    keeper: OnceLock<Arc<dyn MemoryKeeper>>,
    /// The threads that bring tables back.
    bringing_back: Mutex<HashSet<ThreadId>>,
}

impl KeptMemory {
    /// Names the keeper, once.
    pub fn set(&self, keeper: Arc<dyn MemoryKeeper>) {
        let _ = self.keeper.set(keeper);
    }

    /// Says whether tables that the calling thread loads from now on are those of the last process: what they kept should be there.
    pub fn set_bringing_back(&self, on: bool) {
        let (mut threads, this) = (self.bringing_back.lock(), std::thread::current().id());
        if on {
            threads.insert(this);
        } else {
            threads.remove(&this);
        }
    }

    /// See [`KeptMemory::set_bringing_back`].
    pub fn is_bringing_back(&self) -> bool {
        self.bringing_back
            .lock()
            .contains(&std::thread::current().id())
    }

    /// The keeper, if there is one.
    pub fn keeper(&self) -> Option<Arc<dyn MemoryKeeper>> {
        self.keeper.get().cloned()
    }
}

/// Holds memory beyond the end of the process.
pub trait MemoryKeeper: Send + Sync {
    /// The memory of this name as the last process left it, or new memory of so many words of 8 bytes, all zero.
    fn open(&self, name: &str, words: usize) -> std::io::Result<SharedMemory>;

    /// The same for secrets: memory that nobody else can read.
    ///
    /// # Errors
    /// The system's where it has none.
    fn open_secret(&self, name: &str, words: usize) -> std::io::Result<SharedMemory>;

    /// Lets go of it, for good.
    fn forget(&self, name: &str);

    /// Who opened it has not used it, for a table that cannot be loaded. What the last process left stays for another try, until this
    /// process serves; all else is forgotten.
    fn put_back(&self, name: &str) {
        self.forget(name);
    }
}

/// One value per type, made at first use: lets targets share state that the core knows nothing of.
#[derive(Default)]
pub struct SharedState {
    values: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

impl SharedState {
    /// The value of type `T`.
    pub fn of<T: Any + Send + Sync + Default>(&self) -> Arc<T> {
        let value = self
            .values
            .lock()
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Arc::new(T::default()))
            .clone();
        value.downcast().expect("stored under its own type")
    }
}
