//! `cache`: a line whose often used blocks lie on a faster device as well.
//!
//! Arguments: `<metadata device> <cache device> <origin> <block sectors> <n> <feature>... <policy> <n> <key> <value>...`. Status and
//! messages: see `docs/targets/cache.md`.
//!
//! COMPAT: the line's sectors are the origin's, wherever the line begins.

mod args;
mod bits;
mod disk;
mod map;
mod message;
mod metadata;
mod migration;
mod policy;
mod shared;
mod traffic;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use thinmap_block::{Extent, Io, Op, QueueLimits};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, Environment, KeptMemory, MapOutcome, MessageError,
    ResumeError, StatusFlags, StatusKind, TableError, Target, TargetArgs, TargetFeatures,
    TargetInfo, TargetType,
};
use thinmap_persistent_data::{ErrorKind, MetadataError};
use thinmap_units::{BlkStatus, Sector};

use self::args::{Features, IoMode, Line};
use self::map::begin_of;
use self::metadata::Metadata;
use self::shared::{Counts, Health, Parts, Shape, Shared, State};
use self::worker::SharedRef;
use crate::args::measured;
use crate::thin_pool::BlockMetadataDevice;

/// The target type.
pub struct CacheType;

impl TargetType for CacheType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: NAME,
            version: VERSION,
            features: TargetFeatures::default(),
        }
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        let mut line = Line::parse(args.argv, args.len, cx)?;
        let shape = shape_of(&line, args)?;
        let no_memory = || TableError::new(NAME, "could not allocate the policy", ENOMEM);
        let mut state = State::new(&shape, cx.env.clock.now()).ok_or_else(no_memory)?;
        let metadata = open_metadata(&line).map_err(|error| {
            let reason = format!("Error creating metadata object: {error}");
            TableError::new(NAME, reason, error.errno())
        })?;
        if metadata.needs_check() {
            let reason =
                "Unable to get write access to metadata, please check/repair metadata.".to_owned();
            return Err(TableError::invalid(NAME, reason));
        }
        line.features.discard_passdown &= can_pass_down(&line.origin, line.block);
        state.discard_passdown = line.features.discard_passdown;
        state.migration_threshold = line.migration_threshold;
        // COMPAT: as the last shutdown before the load left them, not the resume.
        state.counts = Counts::from_kept(metadata.counts());
        let shared = Shared::new(Parts {
            origin: line.origin.dev.clone(),
            cache: line.cache.dev.clone(),
            event: cx.event.clone(),
            shape,
            mode: line.features.mode,
            migrates: line.policy.migrates(),
            kept: cx.env.shared.of::<KeptMemory>().keeper().is_some(),
            state,
            metadata,
        });
        let shared = SharedRef::start(cx.env, shared).map_err(|error| {
            let reason = format!("could not create workqueue for metadata object: {error}");
            TableError::new(NAME, reason, error.raw_os_error().unwrap_or(ENOMEM))
        })?;
        Ok(Arc::new(Cache {
            len: args.len,
            line,
            env: cx.env.clone(),
            loaded: AtomicBool::new(false),
            suspended: AtomicBool::new(true),
            shared,
        }))
    }
}

fn shape_of(line: &Line, args: &TargetArgs<'_>) -> Result<Shape, TableError> {
    let block = u64::from(line.block);
    if !args.begin.raw().is_multiple_of(block) {
        let reason = format!(
            "the line must begin at a multiple of the block size: {}",
            args.begin
        );
        return Err(TableError::invalid(NAME, reason));
    }
    let cache_blocks = line.cache.dev.size().raw() / block;
    let cache_blocks = u32::try_from(cache_blocks)
        .ok()
        .filter(|blocks| *blocks <= CACHE_BLOCKS_MAX)
        .ok_or_else(|| {
            let reason = format!("too many blocks in the cache device: {cache_blocks}");
            TableError::invalid(NAME, reason)
        })?;
    let origin_blocks = args.len.raw() / block;
    if origin_blocks > ORIGIN_BLOCKS_MAX {
        let reason = format!("too many blocks: {origin_blocks}");
        return Err(TableError::invalid(NAME, reason));
    }
    let mut discard_block = block;
    while args.len.raw() / discard_block > DISCARD_BLOCKS_MAX {
        discard_block *= 2;
    }
    Ok(Shape {
        block,
        origin_blocks,
        cache_blocks,
        discard_block,
        discard_blocks: args.len.raw().div_ceil(discard_block),
    })
}

fn can_pass_down(origin: &DeviceUse, block: u32) -> bool {
    let limits = origin.dev.limits();
    let can = limits.supports_discard() && limits.max_discard >= Sector(u64::from(block));
    if !can {
        tracing::warn!(device = %origin, "cache: discards are not passed down: the origin does not take them");
    }
    can
}

fn open_metadata(line: &Line) -> Result<Metadata, MetadataError> {
    let device = Arc::new(BlockMetadataDevice::new(line.metadata.dev.clone()));
    Metadata::open(device, line.block, line.features.metadata_version)
}

struct Cache {
    len: Sector,
    line: Line,
    env: Arc<Environment>,
    /// The metadata were taken over.
    loaded: AtomicBool,
    suspended: AtomicBool,
    shared: SharedRef,
}

impl Cache {
    /// Before each resume: the cache device is as large as it was, and nothing on disk says any more that all is in order.
    fn begin(&self) -> Result<(), MetadataError> {
        let shape = &self.shared.shape;
        let blocks = self.line.cache.dev.size().raw() / shape.block;
        if blocks != u64::from(shape.cache_blocks) {
            let what = format!(
                "unable to resize cache from {} to {blocks} blocks due to missing cache table reload",
                shape.cache_blocks
            );
            return Err(MetadataError::new(ErrorKind::Inval, what));
        }
        if !self.loaded.load(SeqCst) {
            self.take_over()?;
            self.loaded.store(true, SeqCst);
            return Ok(());
        }
        self.shared.metadata.lock().begin()
    }

    /// Takes the metadata as the line before has left them.
    fn take_over(&self) -> Result<(), MetadataError> {
        let shape = &self.shared.shape;
        let mut metadata = open_metadata(&self.line)?;
        if metadata.needs_check() {
            let what = "unable to switch cache to write mode until repaired.";
            return Err(MetadataError::new(ErrorKind::Inval, what));
        }
        metadata.resize(shape.cache_blocks)?;
        let mut state = State::new(shape, self.env.clock.now())
            .ok_or_else(|| MetadataError::new(ErrorKind::Inval, "no memory for the policy"))?;
        metadata.load(&self.line.policy.disk(), |found| {
            if found.dirty && self.line.features.mode == IoMode::Passthrough {
                let what = "cannot enter passthrough mode unless all blocks are clean";
                return Err(MetadataError::new(ErrorKind::Busy, what));
            }
            state.dirty.put(u64::from(found.cblock), found.dirty);
            let (cblock, oblock) = (found.cblock, found.oblock);
            let end = (oblock + 1).checked_mul(shape.block);
            if end.is_none_or(|end| end > SECTORS_MAX) {
                let what = format!(
                    "cache block {cblock} holds origin block {oblock}, which no device can have"
                );
                return Err(MetadataError::corrupt(0, what));
            }
            match state.policy.load(cblock, oblock, found.dirty, found.hint) {
                true => Ok(()),
                false => {
                    let what = format!("cache block {cblock} cannot hold origin block {oblock}");
                    Err(MetadataError::corrupt(0, what))
                }
            }
        })?;
        state.policy.loaded();
        for sectors in metadata.discarded()? {
            let block = shape.discard_block;
            let end = (sectors.end / block).min(shape.discard_blocks);
            for at in sectors.start.div_ceil(block)..end {
                state.discards.put(at, true);
            }
        }
        metadata.commit(false)?;
        let mut now = self.shared.state.lock();
        state.discard_passdown = now.discard_passdown;
        state.counts = now.counts;
        state.migration_threshold = now.migration_threshold;
        *now = state;
        drop(now);
        *self.shared.metadata.lock() = metadata;
        Ok(())
    }

    fn info(&self, flags: StatusFlags) -> String {
        let shared = &self.shared;
        if !flags.noflush && !self.suspended.load(SeqCst) {
            // What it says when it fails is in the health.
            let _ = shared.commit();
        }
        if shared.state.lock().health == Health::Fail {
            return "Fail".to_owned();
        }
        let (used, total, needs_check) = {
            let metadata = shared.metadata.lock();
            let (used, total) = metadata.used();
            (used, total, metadata.needs_check())
        };
        let state = shared.state.lock();
        let counts = &state.counts;
        format!(
            "{METADATA_BLOCK_SECTORS} {used}/{total} {} {}/{} {} {} {} {} {} {} {} {} \
             2 migration_threshold {} {} {} {} ",
            self.line.block,
            state.policy.residency(),
            shared.shape.cache_blocks,
            counts.read_hits,
            counts.read_misses,
            counts.write_hits,
            counts.write_misses,
            counts.demotions,
            counts.promotions,
            state.dirty.ones(),
            self.line.features.status(),
            state.migration_threshold,
            self.line.policy.status(),
            if state.health == Health::Write {
                "rw"
            } else {
                "ro"
            },
            if needs_check { "needs_check" } else { "-" },
        )
    }

    fn measurement(&self) -> String {
        let mode = match self.shared.state.lock().health {
            Health::Write => "rw",
            Health::ReadOnly => "ro",
            Health::Fail => "fail",
        };
        let Features {
            mode: io_mode,
            metadata_version,
            discard_passdown,
        } = self.line.features;
        let yes = |is: bool| if is { 'y' } else { 'n' };
        format!(
            "{},metadata_mode={mode},cache_metadata_device={},cache_device={},cache_origin_device={},\
             writethrough={},writeback={},passthrough={},metadata2={},no_discard_passdown={};",
            measured(NAME, VERSION),
            self.line.metadata,
            self.line.cache,
            self.line.origin,
            yes(io_mode == IoMode::Writethrough),
            yes(io_mode == IoMode::Writeback),
            yes(io_mode == IoMode::Passthrough),
            yes(metadata_version == 2),
            yes(!discard_passdown),
        )
    }
}

impl Target for Cache {
    fn map(&self, io: Io) -> MapOutcome<'_> {
        self.shared.map(io)
    }

    fn split_at(&self, op: Op) -> Option<Sector> {
        (op != Op::Discard).then_some(Sector(self.shared.shape.block))
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        limits.max_write_zeroes = Sector::ZERO;
        let bytes = self.line.block * 512;
        if limits.io_opt < bytes || !limits.io_opt.is_multiple_of(bytes) {
            limits.io_min = bytes;
            limits.io_opt = bytes;
        }
        if self.line.features.discard_passdown {
            let origin = self.line.origin.dev.limits();
            limits.max_discard = origin.max_discard;
            limits.discard_granularity = origin.discard_granularity;
        } else {
            let block = self.shared.shape.discard_block;
            limits.max_discard = Sector((block * DISCARD_BLOCKS_AT_ONCE).min(self.len.raw()));
            limits.discard_granularity = u32::try_from(block * 512).unwrap_or(u32::MAX);
        }
    }

    fn status(&self, kind: StatusKind, flags: StatusFlags, out: &mut String) {
        let line = &self.line;
        match kind {
            StatusKind::Info => out.push_str(&self.info(flags)),
            StatusKind::Table => out.push_str(&format!(
                "{} {} {} {}",
                line.metadata,
                line.cache,
                line.origin,
                line.words.join(" ")
            )),
            StatusKind::Measurement => out.push_str(&self.measurement()),
        }
    }

    fn message(&self, argv: &[String]) -> Result<Option<String>, MessageError> {
        self.obey(argv)
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        let data = |device: &DeviceUse, len: Sector| (device.clone(), len);
        visit(&self.line.metadata, DeviceRole::Other);
        for (device, len) in [
            data(&self.line.cache, self.line.cache.dev.size()),
            data(&self.line.origin, self.len),
        ] {
            let role = DeviceRole::Data {
                start: Sector::ZERO,
                len,
            };
            visit(&device, role);
        }
    }

    fn postsuspend(&self) {
        self.suspended.store(true, SeqCst);
        self.shared.stop_migrations();
        if self.shared.state.lock().health != Health::Write {
            return;
        }
        if let Err(error) = self.shared.leave(self.line.policy) {
            tracing::error!(%error, "cache: not shut down cleanly: all blocks will count as dirty");
        }
    }

    fn preresume(&self) -> Result<(), ResumeError> {
        self.begin().map_err(|error| {
            let reason = format!("could not load cache mappings: {error}");
            ResumeError::new(NAME, reason, error.errno())
        })
    }

    fn resume(&self) {
        self.suspended.store(false, SeqCst);
        let mut state = self.shared.state.lock();
        state.running = true;
        state.policy.tick(self.env.clock.now());
        drop(state);
        self.shared.wake();
    }

    /// One block's worth at a time.
    fn extents(&self, start: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        let block = self.shared.shape.block;
        let oblock = start.raw() / block;
        let len = len.min(begin_of(oblock + 1, block) - start);
        let place = match self.line.features.mode {
            IoMode::Passthrough => None,
            _ => self.shared.state.lock().policy.place(oblock),
        };
        match place {
            None => self.line.origin.dev.extents(start, len, out),
            Some(cblock) => {
                let at = self.shared.in_cache(cblock, start);
                self.line.cache.dev.extents(at, len, out)
            }
        }
    }
}

const NAME: &str = "cache";
const VERSION: [u32; 3] = [2, 3, 0];
const METADATA_BLOCK_SECTORS: u32 = 8;
/// Places in the policy's lists are numbers of 32 bits, some of which mean something else.
const CACHE_BLOCKS_MAX: u32 = 1 << 31;
/// Mappings have 48 bits.
const ORIGIN_BLOCKS_MAX: u64 = 1 << 48;
/// A device's bytes are numbers of 64 bits.
const SECTORS_MAX: u64 = u64::MAX >> 9;
const DISCARD_BLOCKS_MAX: u64 = 1 << 14;
const DISCARD_BLOCKS_AT_ONCE: u64 = 1024;
const ENOMEM: i32 = 12;
