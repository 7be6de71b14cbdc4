//! What lines, control threads and the worker share, and the worker: it notes first writes to blocks, and digests eras.
//!
//! INVARIANT: a write goes to the origin only when it is durable that its block is written in the current era, or in the one that
//! was current when it came.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use thinmap_block::{BlockDevice, Io};
use thinmap_dm::Environment;
use thinmap_persistent_data::{ErrorKind, MetadataError, Result};
use thinmap_runtime::{Actor, ActorHandle, NextTurn};
use thinmap_units::{BlkStatus, Sector};

use super::metadata::Metadata;
use super::writeset::Writeset;

/// Blocks that a digestion changes before it commits: 16 MiB of memory.
const DIRTY_BLOCKS_MAX: usize = 4096;

/// See the module.
pub(super) struct Shared {
    pub origin: Arc<dyn BlockDevice>,
    /// Where the line begins.
    begin: Sector,
    /// Sectors.
    block: u32,
    metadata: Mutex<Metadata>,
    current: ArcSwap<Writeset>,
    /// Between a resume and a suspend.
    running: AtomicBool,
    inbox: Mutex<Inbox>,
    stop: AtomicBool,
    handle: OnceLock<ActorHandle>,
}

#[derive(Default)]
struct Inbox {
    /// Writes to blocks that are not written in this era yet.
    deferred: Vec<Io>,
    /// The worker has panicked: nothing is taken any more.
    dead: bool,
}

/// The line's hold on its worker: dropping it ends that, and waits for it.
pub(super) struct SharedRef(Arc<Shared>);

impl std::ops::Deref for SharedRef {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Drop for SharedRef {
    fn drop(&mut self) {
        self.0.stop.store(true, SeqCst);
        if let Some(handle) = self.0.handle.get() {
            handle.wake();
            handle.join();
        }
    }
}

impl Shared {
    /// Starts a worker.
    pub fn start(
        env: &Environment,
        origin: Arc<dyn BlockDevice>,
        (begin, block): (Sector, u32),
        metadata: Metadata,
    ) -> std::io::Result<SharedRef> {
        let shared = Arc::new(Self {
            origin,
            begin,
            block,
            metadata: Mutex::new(metadata),
            current: ArcSwap::default(),
            running: AtomicBool::new(false),
            inbox: Mutex::default(),
            stop: AtomicBool::new(false),
            handle: OnceLock::new(),
        });
        let actor = Arc::new(EraActor(shared.clone()));
        let handle = env.spawner.spawn("thinmap-era", actor)?;
        let _ = shared.handle.set(handle);
        Ok(SharedRef(shared))
    }

    /// The metadata. Waits while the worker changes it: never on the data path.
    pub fn metadata(&self) -> MutexGuard<'_, Metadata> {
        self.metadata.lock()
    }

    fn block_of(&self, io: &Io) -> u64 {
        (io.sector - self.begin).raw() / u64::from(self.block)
    }

    /// Whether a write may go on: its block is written in this era.
    pub fn may_pass(&self, io: &Io) -> bool {
        self.current.load().has(self.block_of(io))
    }

    /// Leaves a write to the worker.
    pub fn defer(&self, io: Io) {
        let mut inbox = self.inbox.lock();
        if inbox.dead {
            drop(inbox);
            return io.complete(BlkStatus::IoErr);
        }
        inbox.deferred.push(io);
        drop(inbox);
        self.wake();
    }

    fn wake(&self) {
        if let Some(handle) = self.handle.get() {
            handle.wake();
        }
    }

    /// A new era begins with `change`, which rolls the metadata over; it is durable when this returns.
    pub fn begin_era(&self, change: impl FnOnce(&mut Metadata) -> Result<()>) -> Result<()> {
        let mut metadata = self.metadata();
        let writeset = Writeset::new(metadata.blocks()).ok_or_else(|| {
            MetadataError::new(
                ErrorKind::Inval,
                "couldn't allocate in memory bitset: no memory",
            )
        })?;
        // First: writes that come from here on wait for the new era.
        self.current.store(Arc::new(writeset));
        change(&mut metadata)?;
        metadata.commit()?;
        drop(metadata);
        self.wake();
        Ok(())
    }

    /// Whether the worker works.
    pub fn set_running(&self, running: bool) {
        self.running.store(running, SeqCst);
        self.wake();
    }

    pub fn is_running(&self) -> bool {
        self.running.load(SeqCst)
    }

    /// Notes the blocks of writes, and sends those on; whether there were any.
    fn process_deferred(&self) -> bool {
        let writes = std::mem::take(&mut self.inbox.lock().deferred);
        if writes.is_empty() {
            return false;
        }
        let mut metadata = self.metadata();
        let current = self.current.load_full();
        let noted = self.note(&mut metadata, &current, &writes);
        drop(metadata);
        if let Err(error) = &noted {
            tracing::error!(%error, "era: a write fails since it cannot be noted");
        }
        for io in writes {
            match noted {
                Ok(()) => self.origin.submit(io),
                Err(_) => io.complete(BlkStatus::IoErr),
            }
        }
        true
    }

    fn note(&self, metadata: &mut Metadata, current: &Writeset, writes: &[Io]) -> Result<()> {
        let mut blocks: Vec<u64> = writes.iter().map(|io| self.block_of(io)).collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks.retain(|block| !current.has(*block));
        if blocks.is_empty() {
            return Ok(());
        }
        blocks.iter().try_for_each(|block| metadata.mark(*block))?;
        // CRASH: before the write: a block that was written and is not noted would be missed by a backup.
        metadata.commit()?;
        blocks.iter().for_each(|block| current.set(*block));
        Ok(())
    }

    /// One step; whether there is more.
    fn digest(&self) -> bool {
        let mut metadata = self.metadata();
        if !self.is_running() {
            return false;
        }
        let step = metadata.digest().and_then(|more| {
            if metadata.dirty_blocks() > DIRTY_BLOCKS_MAX {
                metadata.commit()?;
            }
            Ok(more)
        });
        step.unwrap_or_else(|error| {
            tracing::error!(%error, "era: digest step failed, stopping digestion");
            metadata.stop_digest();
            false
        })
    }
}

struct EraActor(Arc<Shared>);

impl Actor for EraActor {
    fn turn(&self, _now: Duration) -> NextTurn {
        loop {
            let more = self.0.digest();
            if !self.0.process_deferred() && !more {
                break;
            }
        }
        match self.0.stop.load(SeqCst) {
            true => NextTurn::Stop,
            false => NextTurn::WhenWoken,
        }
    }

    fn panicked(&self) {
        let deferred = {
            let mut inbox = self.0.inbox.lock();
            inbox.dead = true;
            std::mem::take(&mut inbox.deferred)
        };
        for io in deferred {
            io.complete(BlkStatus::IoErr);
        }
        tracing::error!("era: the worker ended by a panic: first writes to blocks fail");
    }
}
