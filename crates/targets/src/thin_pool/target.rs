//! The `thin-pool` line as device mapper sees it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use thinmap_block::{Io, Op, QueueLimits};
use thinmap_dm::kit::Copier;
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, KeptMemory, MapOutcome, MessageError, ResumeError,
    StatusFlags, StatusKind, TableError, TableEvent, Target, TargetArgs, TargetFeatures,
    TargetInfo, TargetType,
};
use thinmap_thin_metadata::{METADATA_BLOCKS_MAX, MetadataError, OpenOptions, PoolMetadata};
use thinmap_units::Sector;

use super::args::{self, Features, NAME, PoolArgs};
use super::journal::{self, Entry, Journal};
use super::lost::Lost;
use super::metadata_dev::BlockMetadataDevice;
use super::mode::Mode;
use super::pool::{Conflict, NewPool, Pool, PoolRef, PoolRegistry};
use super::tuning::PoolTuning;
use super::worker::{Binding, PoolActor, Refusal, WorkerState, not_in_this_mode};
use super::{message, status};
use crate::args::open_device;
use crate::flush::flush;

/// Clean metadata blocks kept in memory: 64 MiB.
const CACHE_BLOCKS: usize = 16384;
/// Copies are done in pieces of at most 512 KiB.
const COPY_PIECE_SECTORS_MAX: u64 = 1024;
/// Sectors of a metadata block.
const METADATA_BLOCK_SECTORS: u64 = 8;

/// The target type.
pub struct ThinPoolType;

impl TargetType for ThinPoolType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: NAME,
            version: [1, 22, 0],
            features: TargetFeatures {
                singleton: true,
                always_writeable: true,
                immutable: true,
                wildcard: false,
            },
        }
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        let parsed = args::parse(args.argv)?;
        let open = |what: &str, spec: &str| open_device(cx, NAME, spec, false, what);
        let metadata = open("Error opening metadata block device", &parsed.metadata)?;
        warn_if_too_big(&metadata);
        let data = open("Error getting data device", &parsed.data)?;
        if metadata.id == data.id {
            let reason = "Error setting metadata or data device";
            return Err(TableError::invalid(NAME, reason));
        }
        let registry = cx.env.shared.of::<PoolRegistry>();
        let (meta_id, data_id) = (metadata.id, data.id);
        let (pool, created) = registry.find_or_create(cx.dev_no, meta_id, data_id, || {
            create_pool(&parsed, cx, &metadata, &data)
        })?;
        if !created && parsed.features.discard_enabled != pool.features().discard_enabled {
            let reason = "Discard support cannot be disabled once enabled";
            return Err(TableError::invalid(NAME, reason));
        }
        let adjusted = adjust(&parsed.features, &data, pool.geometry.block());
        Ok(Arc::new(ThinPool {
            begin: args.begin,
            len: args.len,
            low_water: parsed.low_water,
            requested: parsed.features,
            adjusted,
            event: cx.event.clone(),
            was_live: AtomicBool::new(false),
            metadata,
            data,
            pool,
        }))
    }
}

/// Opens (or formats) the metadata and starts the worker.
fn create_pool(
    args: &PoolArgs,
    cx: &ConstructCx<'_>,
    metadata: &DeviceUse,
    data: &DeviceUse,
) -> Result<Arc<Pool>, TableError> {
    let options = OpenOptions {
        data_block_size: args.block,
        format_if_zeroed: !args.features.read_only,
        read_only: metadata.read_only,
        cache_blocks_max: CACHE_BLOCKS,
    };
    let device = Arc::new(BlockMetadataDevice::new(metadata.dev.clone()));
    let failed = |e: MetadataError| {
        let reason = format!("Error creating metadata object: {e}");
        TableError::new(NAME, reason, e.errno())
    };
    let mut opened = PoolMetadata::open(device.clone(), &options).map_err(failed)?;
    let lost = open_lost(cx)?;
    if let Some(lost) = lost.as_ref().filter(|lost| lost.pool_has_failed()) {
        tracing::error!(pool = %cx.dev_no, "thin: the pool had failed under the last daemon: its metadata must be checked");
        opened.set_needs_check().map_err(failed)?;
        lost.note_failure(false);
    }
    // Also of a pool that may only be read now: another table may change that, and what was promised is kept.
    let journal = match open_journal(cx, device)? {
        Some(journal) if !options.read_only => {
            let left = journal.left().map_err(failed)?;
            take_over(cx, &mut opened, [metadata, data], &left).map_err(failed)?;
            journal.reset().map_err(failed)?;
            Some(journal)
        }
        _ => None,
    };
    let piece = args.block.raw().min(COPY_PIECE_SECTORS_MAX);
    let sizes = cx.env.shared.of::<PoolTuning>().sizes();
    let buffers = usize::try_from((sizes.copy_buffer_sectors / piece).max(1)).unwrap_or(1);
    let copier = Copier::new(Sector(piece), buffers);
    let low_water = status::metadata_low_water(device_blocks(metadata));
    let pool = Arc::new(Pool::new(NewPool {
        dev_no: cx.dev_no,
        metadata_dev: metadata.clone(),
        data: data.clone(),
        metadata: opened,
        features: args.features,
        worker: WorkerState::new(copier, low_water, sizes, journal),
        lost,
    }));
    let name = format!("thin-{}", cx.dev_no.minor);
    let actor = Arc::new(PoolActor(pool.clone()));
    let handle = cx.env.spawner.spawn(&name, actor).map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(12);
        TableError::new(
            NAME,
            format!("cannot start the pool's worker: {error}"),
            errno,
        )
    })?;
    pool.set_handle(handle);
    Ok(pool)
}

/// What was given up of the pool's volumes under the last daemon.
fn open_lost(cx: &ConstructCx<'_>) -> Result<Option<Lost>, TableError> {
    let Some(keeper) = cx.env.shared.of::<KeptMemory>().keeper() else {
        return Ok(None);
    };
    let opened = Lost::open(keeper, format!("pool-lost-{}", cx.dev_no));
    opened.map(Some).map_err(|error| not_kept(&error))
}

fn not_kept(error: &std::io::Error) -> TableError {
    let errno = error.raw_os_error().unwrap_or(5);
    TableError::new(NAME, format!("the pool's journal: {error}"), errno)
}

/// The journal of the pool on this device, where the environment keeps one.
fn open_journal(
    cx: &ConstructCx<'_>,
    metadata: Arc<BlockMetadataDevice>,
) -> Result<Option<Journal>, TableError> {
    let Some(keeper) = cx.env.shared.of::<KeptMemory>().keeper() else {
        return Ok(None);
    };
    let name = format!("pool-{}", cx.dev_no);
    let opened = Journal::open(keeper, name, metadata);
    opened.map(Some).map_err(|error| not_kept(&error))
}

/// Brings the metadata to where the last process had it.
///
/// CRASH: a crash in here finds the journal as it was, or its superblock replaced by the commit that holds it.
fn take_over(
    cx: &ConstructCx<'_>,
    opened: &mut PoolMetadata,
    [metadata, data]: [&DeviceUse; 2],
    left: &[Entry],
) -> Result<(), MetadataError> {
    // The last process may have died between writing its last superblock and flushing it: to this one nothing is dirty, so no
    // later flush would make it durable.
    flush(&*metadata.dev, "metadata device")?;
    if left.is_empty() {
        return Ok(());
    }
    tracing::info!(pool = %cx.dev_no, changes = left.len(), "thin: applying what the last daemon had not committed");
    journal::apply(opened, left)?;
    flush(&*data.dev, "data device")?;
    opened.commit()
}

impl From<Conflict> for TableError {
    fn from(conflict: Conflict) -> Self {
        Self::new(NAME, conflict.reason, conflict.errno)
    }
}

/// Blocks of the metadata device that the format can use.
fn device_blocks(metadata: &DeviceUse) -> u64 {
    (metadata.dev.size().raw() / METADATA_BLOCK_SECTORS).min(METADATA_BLOCKS_MAX)
}

fn warn_if_too_big(metadata: &DeviceUse) {
    let sectors = metadata.dev.size().raw();
    let max = METADATA_BLOCKS_MAX * METADATA_BLOCK_SECTORS;
    if sectors > max {
        let excess = sectors - max;
        tracing::warn!(device = %metadata, "thin: metadata device is larger than {max} sectors: excess space ({excess} sectors) will not be used");
    }
}

/// What the pool does of what was asked, given its data device.
fn adjust(requested: &Features, data: &DeviceUse, block: Sector) -> Features {
    let limits = data.dev.limits();
    let reason = if !limits.supports_discard() {
        "discard unsupported"
    } else if limits.max_discard < block {
        "max discard sectors smaller than a block"
    } else {
        return *requested;
    };
    if requested.discard_enabled && requested.discard_passdown {
        tracing::warn!(device = %data, "thin: data device: {reason}: disabling discard passdown");
    }
    Features {
        discard_passdown: false,
        ..*requested
    }
}

struct ThinPool {
    begin: Sector,
    len: Sector,
    low_water: u64,
    requested: Features,
    adjusted: Features,
    event: Arc<TableEvent>,
    /// It has been the live table before.
    was_live: AtomicBool,
    metadata: DeviceUse,
    data: DeviceUse,
    // Last: dropping it may end the worker, which uses the devices.
    pool: PoolRef,
}

impl ThinPool {
    fn gone() -> MessageError {
        const EIO: i32 = 5;
        MessageError::new("the pool's worker has ended: the pool has failed", EIO)
    }
}

impl Target for ThinPool {
    /// The pool device itself is its data device, as in the kernel.
    fn map(&self, mut io: Io) -> MapOutcome<'_> {
        if io.op != Op::Flush {
            io.sector -= self.begin;
        }
        MapOutcome::Remapped(io, &self.data.dev)
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        let block = u32::try_from(self.pool.geometry.block().bytes()).unwrap_or(u32::MAX);
        if limits.io_opt < block || !limits.io_opt.is_multiple_of(block) {
            limits.io_min = block;
            limits.io_opt = block;
        }
        if !self.adjusted.discard_enabled {
            limits.discard_granularity = 0;
            limits.max_discard = Sector::ZERO;
        }
    }

    fn status(&self, kind: StatusKind, flags: StatusFlags, out: &mut String) {
        match kind {
            StatusKind::Table => out.push_str(&format!(
                "{} {} {} {} {}",
                self.metadata,
                self.data,
                self.pool.geometry.block(),
                self.low_water,
                self.requested.table_words()
            )),
            StatusKind::Measurement => {}
            StatusKind::Info if self.pool.mode() == Mode::Fail => out.push_str("Fail"),
            StatusKind::Info => {
                if !flags.noflush && !flags.suspended {
                    let _ = self.pool.ask(|worker, answer| {
                        worker.commit_for_status();
                        answer.give(());
                    });
                }
                let features = self.pool.features();
                let (mode, blocks) = (self.pool.mode(), device_blocks(&self.metadata));
                let metadata = self.pool.metadata.read();
                match mode {
                    Mode::Fail => out.push_str("Fail"),
                    _ => status::write_info(&metadata, mode, &features, blocks, out),
                }
            }
        }
    }

    fn message(&self, argv: &[String]) -> Result<Option<String>, MessageError> {
        let message = message::parse(argv);
        // COMPAT: the kernel looks at the mode before it looks at the message.
        let obeyed = match &message {
            Ok(message) => self.pool.mode().obeys(*message),
            Err(_) => self.pool.mode().may_grow_metadata(),
        };
        if !obeyed {
            return Err(not_in_this_mode());
        }
        let message = message?;
        let answer = self
            .pool
            .ask(move |worker, answer| worker.message(message, answer));
        answer.map_err(|_| Self::gone())?.map(|()| None)
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        visit(&self.metadata, DeviceRole::Other);
        let role = DeviceRole::Data {
            start: Sector::ZERO,
            len: self.len,
        };
        visit(&self.data, role);
    }

    fn presuspend(&self, _noflush: bool) {
        self.pool.suspended.store(true, SeqCst);
    }

    fn presuspend_undo(&self) {
        let _ = self.pool.ask(|worker, answer| {
            worker.resume();
            answer.give(());
        });
    }

    fn postsuspend(&self) {
        let _ = self.pool.ask(|worker, answer| worker.quiesce(answer));
    }

    fn preresume(&self) -> Result<(), ResumeError> {
        self.pool.bind_event(self.event.clone());
        let block = self.pool.geometry.block();
        let binding = Binding {
            features: self.adjusted,
            low_water: self.low_water,
            data_blocks: self.len.raw() / block.raw(),
            is_new: !self.was_live.swap(true, SeqCst),
        };
        let bound = self
            .pool
            .ask(move |worker, answer| answer.give(worker.bind(binding)));
        let refused = |(reason, errno): Refusal| ResumeError::new(NAME, reason, errno);
        match bound {
            Ok(result) => result.map_err(refused),
            // A pool without a worker has failed; its device can still be resumed, and removed.
            Err(_) => Ok(()),
        }
    }

    fn resume(&self) {
        let _ = self.pool.ask(|worker, answer| {
            worker.resume();
            answer.give(());
        });
    }
}
