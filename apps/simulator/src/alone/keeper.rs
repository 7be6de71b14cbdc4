//! What a keeper holds for the next daemon, as it was when the last one died.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::SeqCst;

use parking_lot::Mutex;
use thinmap_dm::MemoryKeeper;
use thinmap_runtime::SharedMemory;

/// Words by name.
pub type Kept = BTreeMap<String, Vec<u64>>;

/// Of one daemon.
pub struct Keeper {
    state: Mutex<State>,
}

struct State {
    /// Of the last daemon, and nobody has opened it.
    left: Kept,
    /// With whether the last daemon had left it.
    held: BTreeMap<String, (OwnedFd, bool)>,
}

impl Keeper {
    /// With what the last daemon has left.
    pub fn new(left: Kept) -> Self {
        let held = BTreeMap::new();
        Self {
            state: Mutex::new(State { left, held }),
        }
    }

    /// The daemon serves: what it has not opened is of devices that are no more.
    pub fn ready(&self) {
        self.state.lock().left.clear();
    }

    /// What it holds now.
    pub fn content(&self) -> Kept {
        let state = self.state.lock();
        let mut all = state.left.clone();
        for (name, (fd, _)) in &state.held {
            let memory = fd.try_clone();
            let memory = memory.and_then(SharedMemory::map).expect("it is there");
            let words = memory.words().iter().map(|word| word.load(SeqCst));
            all.insert(name.clone(), words.collect());
        }
        all
    }
}

impl MemoryKeeper for Keeper {
    fn open(&self, name: &str, words: usize) -> io::Result<SharedMemory> {
        let mut state = self.state.lock();
        if let Some((held, _)) = state.held.get(name) {
            return SharedMemory::map(held.try_clone()?);
        }
        let left = state.left.remove(name);
        let was_left = left.is_some();
        let count = left.as_ref().map_or(words, Vec::len);
        let memory = SharedMemory::new(name, count)?;
        for (word, value) in memory.words().iter().zip(left.into_iter().flatten()) {
            word.store(value, SeqCst);
        }
        let fd = memory.fd().try_clone_to_owned()?;
        state.held.insert(name.to_owned(), (fd, was_left));
        Ok(memory)
    }

    fn open_secret(&self, name: &str, words: usize) -> io::Result<SharedMemory> {
        self.open(name, words)
    }

    fn forget(&self, name: &str) {
        let mut state = self.state.lock();
        state.held.remove(name);
        state.left.remove(name);
    }

    fn put_back(&self, name: &str) {
        let mut state = self.state.lock();
        let was_left = |held: &(OwnedFd, bool)| held.1;
        // What the last daemon had left is for another try.
        if !state.held.get(name).is_some_and(was_left) {
            state.held.remove(name);
        }
    }
}
