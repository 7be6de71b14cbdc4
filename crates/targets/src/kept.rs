//! Memory that outlives the process, of a form that the next one can trust. See `docs/internals/continuity.md`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use thinmap_dm::{DeviceId, MemoryKeeper};
use thinmap_runtime::SharedMemory;

const MAGIC_AT: usize = 0;
const FORM_AT: usize = 1;

/// A name for what belongs to a device below, whichever mapped device has it.
pub fn name_on(kind: &str, device: DeviceId) -> String {
    match device {
        DeviceId::Block(number) => format!("{kind}-{number}"),
        DeviceId::File { dev, ino } => format!("{kind}-file-{dev}-{ino}"),
    }
}

/// Memory under a name. Its first two words are taken: for whose it is, and what the rest means.
pub struct Named {
    memory: SharedMemory,
    keeper: Arc<dyn MemoryKeeper>,
    name: String,
    is_new: bool,
}

impl Named {
    /// The memory as the last process left it, or new memory, all zero but for magic and form.
    ///
    /// # Errors
    /// What the keeper says; and what another line has left there, of another form, is not touched.
    pub fn open(
        keeper: Arc<dyn MemoryKeeper>,
        name: String,
        (magic, form, words): (u64, u64, usize),
    ) -> std::io::Result<Self> {
        let memory = keeper.open(&name, words)?;
        Self::of(memory, keeper, name, (magic, form, words))
    }

    fn of(
        memory: SharedMemory,
        keeper: Arc<dyn MemoryKeeper>,
        name: String,
        (magic, form, words): (u64, u64, usize),
    ) -> std::io::Result<Self> {
        let word = |at: usize| memory.words()[at].load(SeqCst);
        let is_new = memory.words().len() == words && word(MAGIC_AT) == 0;
        let is_same =
            memory.words().len() == words && word(MAGIC_AT) == magic && word(FORM_AT) == form;
        if !is_new && !is_same {
            let text = format!("{name}: what was kept there is of another form");
            return Err(std::io::Error::other(text));
        }
        memory.words()[FORM_AT].store(form, SeqCst);
        memory.words()[MAGIC_AT].store(magic, SeqCst);
        Ok(Self {
            memory,
            keeper,
            name,
            is_new,
        })
    }

    /// The same for secrets, in memory that nobody else can read.
    ///
    /// # Errors
    /// As of [`Named::open`]; the keeper has no such memory on some systems.
    pub fn open_secret(
        keeper: Arc<dyn MemoryKeeper>,
        name: String,
        form: (u64, u64, usize),
    ) -> std::io::Result<Self> {
        let memory = keeper.open_secret(&name, form.2)?;
        Self::of(memory, keeper, name, form)
    }

    /// Whether the last process had left none.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// All of it.
    pub fn words(&self) -> &[AtomicU64] {
        self.memory.words()
    }

    /// One word, which must be there.
    pub fn word(&self, at: usize) -> &AtomicU64 {
        &self.memory.words()[at]
    }

    /// Nothing is left for a next process.
    pub fn forget(&self) {
        self.keeper.forget(&self.name);
    }

    /// The line ends before it was ever live: see [`MemoryKeeper::put_back`].
    pub fn put_back(&self) {
        self.keeper.put_back(&self.name);
    }
}
