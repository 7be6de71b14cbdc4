//! A mapping's key in secret memory that outlives the process: the state that the next one reads has only the name of it. See
//! `docs/internals/continuity.md`.
//!
//! INVARIANT: the state is [`WHOLE`] only while key and name are.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use thinmap_dm::MemoryKeeper;
use thinmap_runtime::SecretBytes;

use crate::kept::Named;

const MAGIC: u64 = u64::from_le_bytes(*b"crypt-K1");
const STATE_AT: usize = 2;
const NAME_BYTES_AT: usize = 3;
const NAME_AT: usize = 4;
/// Bytes of the longest name of a kernel's key, with its type.
const NAME_BYTES_MAX: usize = 4096 + 16;
const KEY_AT: usize = NAME_AT + NAME_BYTES_MAX / 8;

/// See the module.
pub(super) struct Kept {
    memory: Named,
    id: String,
    /// The last process's, and not used yet.
    untouched: bool,
}

/// What the last process has left.
pub(super) struct Left {
    /// The key's name, if the kernel keeps it.
    pub(super) name: Option<String>,
    /// `None`: it was wiped.
    pub(super) key: Option<SecretBytes>,
}

impl Kept {
    /// Room for a key of so many bytes.
    pub(super) fn new(keeper: Arc<dyn MemoryKeeper>, key_bytes: usize) -> std::io::Result<Self> {
        // Two keys in one daemon, or in one and the next, must not share a name.
        let id = format!("{:016x}", RandomState::new().hash_one(0));
        Self::open(keeper, id, key_bytes)
    }

    /// The key that the last process has left under this name; `None` where it has left none.
    pub(super) fn take(
        keeper: Arc<dyn MemoryKeeper>,
        id: &str,
        key_bytes: usize,
    ) -> std::io::Result<Option<(Self, Left)>> {
        let mut kept = Self::open(keeper, id.to_owned(), key_bytes)?;
        let state = kept.memory.word(STATE_AT).load(SeqCst);
        if state == NEVER {
            return Ok(None);
        }
        kept.untouched = true;
        let name_bytes = kept.memory.word(NAME_BYTES_AT).load(SeqCst) as usize;
        let mut name = vec![0; name_bytes.min(NAME_BYTES_MAX)];
        kept.read(NAME_AT, &mut name);
        let name = String::from_utf8(name).ok().filter(|name| !name.is_empty());
        let mut key = None;
        if state == WHOLE {
            let mut bytes = SecretBytes::zeroed(key_bytes)?;
            kept.read(KEY_AT, &mut bytes);
            key = Some(bytes);
        }
        Ok(Some((kept, Left { name, key })))
    }

    fn open(keeper: Arc<dyn MemoryKeeper>, id: String, key_bytes: usize) -> std::io::Result<Self> {
        let words = KEY_AT + key_bytes.div_ceil(8);
        let form = (MAGIC, key_bytes as u64, words);
        let memory = Named::open_secret(keeper, format!("crypt-{id}"), form)?;
        Ok(Self {
            memory,
            id,
            untouched: false,
        })
    }

    /// The mapping is live: its end is an end in good order.
    pub(super) fn used(&mut self) {
        self.untouched = false;
    }

    /// What a table line says instead of the key: see [`super::key::KeyWord::kept`].
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Keeps a key. One with a name that is too long is not kept.
    pub(super) fn put(&self, key: &[u8], name: Option<&str>) {
        self.wipe();
        let name = name.unwrap_or_default();
        if name.len() > NAME_BYTES_MAX {
            return;
        }
        self.write(NAME_AT, name.as_bytes());
        let name_bytes = self.memory.word(NAME_BYTES_AT);
        name_bytes.store(name.len() as u64, SeqCst);
        self.write(KEY_AT, key);
        self.memory.word(STATE_AT).store(WHOLE, SeqCst);
    }

    /// There is no key any more, and the next process must not think that there was none ever.
    pub(super) fn wipe(&self) {
        self.memory.word(STATE_AT).store(WIPED, SeqCst);
        let rest = &self.memory.words()[NAME_BYTES_AT..];
        rest.iter().for_each(|word| word.store(0, SeqCst));
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        for (chunk, word) in into.chunks_mut(8).zip(&self.memory.words()[at..]) {
            let bytes = word.load(SeqCst).to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }

    fn write(&self, at: usize, from: &[u8]) {
        let words: &[AtomicU64] = &self.memory.words()[at..];
        for (chunk, word) in from.chunks(8).zip(words) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(bytes), SeqCst);
        }
    }
}

/// The mapping ends in good order; or there is none, as its table could not be loaded, and this is tried again.
impl Drop for Kept {
    fn drop(&mut self) {
        if self.untouched {
            return self.memory.put_back();
        }
        self.wipe();
        self.memory.forget();
    }
}

/// As new memory is.
const NEVER: u64 = 0;
const WIPED: u64 = 1;
const WHOLE: u64 = 2;
