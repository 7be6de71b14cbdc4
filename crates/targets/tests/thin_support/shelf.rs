//! What a keeper keeps of a process: for tests of a daemon that dies.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::SeqCst;

use parking_lot::Mutex;
use thinmap_dm::MemoryKeeper;
use thinmap_runtime::SharedMemory;

/// Memory by name, and which of it the last process left to one that does not serve yet.
#[derive(Default)]
pub struct Shelf(Mutex<HashMap<String, OwnedFd>>, Mutex<HashSet<String>>);

impl MemoryKeeper for Shelf {
    fn open(&self, name: &str, words: usize) -> std::io::Result<SharedMemory> {
        let mut shelf = self.0.lock();
        if let Some(fd) = shelf.get(name) {
            return SharedMemory::map(fd.try_clone()?);
        }
        let memory = SharedMemory::new(name, words)?;
        shelf.insert(name.to_owned(), memory.fd().try_clone_to_owned()?);
        Ok(memory)
    }

    /// As in production, but for who else could read it.
    fn open_secret(&self, name: &str, words: usize) -> std::io::Result<SharedMemory> {
        self.open(name, words)
    }

    fn forget(&self, name: &str) {
        self.1.lock().remove(name);
        self.0.lock().remove(name);
    }

    fn put_back(&self, name: &str) {
        if !self.1.lock().contains(name) {
            self.forget(name);
        }
    }
}

impl Shelf {
    /// What the next process finds if this one dies now.
    pub fn at_death(&self) -> Self {
        let copy = Self::default();
        for (name, fd) in &*self.0.lock() {
            let from = SharedMemory::map(fd.try_clone().unwrap()).unwrap();
            let to = copy.open(name, from.words().len()).unwrap();
            for (to, from) in to.words().iter().zip(from.words()) {
                to.store(from.load(SeqCst), SeqCst);
            }
            copy.1.lock().insert(name.clone());
        }
        copy
    }

    /// The process serves: what is put back from now on is gone.
    pub fn serves(&self) {
        self.1.lock().clear();
    }

    /// How much is kept.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }
}
