//! `thin`: a volume of a pool. Arguments: `<pool device> <device id> [<external origin>]`.
//!
//! The fast path is [`map`](Target::map) in `map.rs`; everything that must wait or change metadata is the pool
//! worker's (see [`crate::thin_pool`]).

mod map;
mod origin;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use thinmap_block::{Extent, Io, Op, QueueLimits};
use thinmap_dm::{
    ConstructCx, DeviceId, DeviceRole, DeviceUse, MapOutcome, ResumeError, StatusFlags, StatusKind,
    TableError, Target, TargetArgs, TargetFeatures, TargetInfo, TargetType,
};
use thinmap_thin_metadata::{ErrorKind, Lookup, MayRead};
use thinmap_units::{BlkStatus, Sector, ThinId, VirtBlock};

pub(crate) use self::origin::OriginRead;
use crate::args::open_device;
use crate::thin_pool::Mode;
use crate::thin_pool::pool::{PoolRef, PoolRegistry, Volume};

const NAME: &str = "thin";
/// The largest discard: 16 GiB.
const DISCARD_SECTORS_MAX: u64 = 2048 * 1024 * 16;

/// The target type.
pub struct ThinType;

impl TargetType for ThinType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: NAME,
            version: [1, 22, 0],
            features: TargetFeatures::default(),
        }
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        let (pool_spec, id, origin) = match args.argv {
            [pool, id] => (pool, id, None),
            [pool, id, origin] => (pool, id, Some(origin)),
            _ => return wrong("Invalid argument count"),
        };
        if origin == Some(pool_spec) {
            return wrong("Error setting origin device");
        }
        let origin = match origin {
            Some(spec) => Some(open(cx, "Error opening origin device", spec, true)?),
            None => None,
        };
        let pool_dev = open(cx, "Error opening pool device", pool_spec, false)?;
        if origin.as_ref().is_some_and(|o| o.id == pool_dev.id) {
            return wrong("Error setting origin device");
        }
        let Some(id) = parse_id(id) else {
            return wrong("Invalid device id");
        };
        let DeviceId::Block(dev_no) = pool_dev.id else {
            return wrong("Couldn't get pool mapped device");
        };
        let registry = cx.env.shared.of::<PoolRegistry>();
        let Some(pool) = registry.by_device(dev_no) else {
            return wrong("Couldn't find pool object");
        };
        if pool.mode() == Mode::Fail {
            return wrong("Couldn't open thin device, Pool is in fail mode");
        }
        let mapped = pool.ask(move |worker, answer| answer.give(worker.find_volume(id)));
        let mapped = match mapped {
            Ok(Ok(mapped)) => mapped,
            Ok(Err(error)) => {
                let reason = format!("Couldn't open thin internal device: {error}");
                return Err(TableError::new(NAME, reason, error.errno()));
            }
            Err(_) => return wrong("Couldn't open thin device, Pool is in fail mode"),
        };
        if pool.suspended.load(SeqCst) {
            return wrong("Unable to activate thin device while pool is suspended");
        }
        let volume = pool.open_volume(id, mapped > 0);
        let port = Arc::new(Port {
            volume,
            begin: args.begin,
            origin,
            origin_size: AtomicU64::new(0),
            requeue: AtomicBool::new(false),
        });
        Ok(Arc::new(Thin {
            port,
            pool_dev,
            pool,
        }))
    }
}

fn wrong<T>(reason: &str) -> Result<T, TableError> {
    Err(TableError::invalid(NAME, reason))
}

fn open(
    cx: &ConstructCx<'_>,
    what: &str,
    spec: &str,
    read_only: bool,
) -> Result<DeviceUse, TableError> {
    open_device(cx, NAME, spec, read_only, what)
}

fn parse_id(word: &str) -> Option<ThinId> {
    let digits = word.strip_prefix('+').unwrap_or(word);
    crate::args::parse_u64(digits).and_then(ThinId::new)
}

/// One line's way to its volume; requests that the worker has carry it.
pub struct Port {
    pub(crate) volume: Arc<Volume>,
    /// The line's first sector in its mapped device.
    pub(crate) begin: Sector,
    pub(crate) origin: Option<DeviceUse>,
    /// In sectors, as it was at the last resume: asking for it may wait for its disk.
    origin_size: AtomicU64,
    requeue: AtomicBool,
}

impl Port {
    /// Where a request lies in the volume.
    pub(crate) fn virtual_sector(&self, io: &Io) -> Sector {
        io.sector - self.begin
    }

    /// The device is being suspended without flush: requests go back.
    pub(crate) fn is_requeuing(&self) -> bool {
        self.requeue.load(SeqCst)
    }
}

struct Thin {
    port: Arc<Port>,
    pool_dev: DeviceUse,
    pool: PoolRef,
}

impl Drop for Thin {
    fn drop(&mut self) {
        self.pool.close_volume(&self.port.volume);
    }
}

impl Thin {
    fn write_info(&self, flags: StatusFlags, out: &mut String) {
        if self.pool.mode() == Mode::Fail {
            return out.push_str("Fail");
        }
        let _ = flags;
        let metadata = self.pool.metadata.read();
        let id = self.port.volume.id;
        let facts = metadata
            .mapped_blocks(id)
            .and_then(|mapped| Ok((mapped, metadata.highest_mapped(id)?)));
        match facts {
            Ok((mapped, highest)) => {
                let sectors = |blocks: u64| self.pool.geometry.sector(blocks).raw();
                out.push_str(&format!("{} ", sectors(mapped)));
                match highest {
                    Some(v) => out.push_str(&(sectors(v.raw() + 1) - 1).to_string()),
                    None => out.push('-'),
                }
            }
            Err(error) => {
                tracing::error!(thin = %id, %error, "thin: cannot tell what a volume holds");
                out.push_str("Error");
            }
        }
    }
}

impl Target for Thin {
    fn map(&self, io: Io) -> MapOutcome<'_> {
        self.map_request(io)
    }

    fn map_across(&self, io: Io) -> Result<MapOutcome<'_>, Io> {
        self.map_run(io)
    }

    fn split_at(&self, op: Op) -> Option<Sector> {
        match op {
            Op::Read | Op::Write => Some(self.pool.geometry.block()),
            Op::Flush | Op::Discard | Op::WriteZeroes => None,
        }
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        limits.write_cache = true;
        limits.max_write_zeroes = Sector(DISCARD_SECTORS_MAX);
        if !self.pool.features.lock().discard_enabled {
            limits.discard_granularity = 0;
            limits.max_discard = Sector::ZERO;
            return;
        }
        let block = self.pool.geometry.block().bytes();
        limits.discard_granularity = u32::try_from(block).unwrap_or(u32::MAX);
        limits.max_discard = Sector(DISCARD_SECTORS_MAX);
    }

    fn preresume(&self) -> Result<(), ResumeError> {
        if let Some(origin) = &self.port.origin {
            self.port.origin_size.store(origin.dev.size().raw(), SeqCst);
        }
        Ok(())
    }

    fn status(&self, kind: StatusKind, flags: StatusFlags, out: &mut String) {
        match kind {
            StatusKind::Info => self.write_info(flags, out),
            StatusKind::Measurement => {}
            StatusKind::Table => {
                out.push_str(&format!("{} {}", self.pool_dev, self.port.volume.id));
                if let Some(origin) = &self.port.origin {
                    out.push_str(&format!(" {origin}"));
                }
            }
        }
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        if let Some(origin) = &self.port.origin {
            visit(origin, DeviceRole::Other);
        }
        // COMPAT: the pool device counts whole, wherever the volume's blocks lie in it.
        let role = DeviceRole::Data {
            start: Sector::ZERO,
            len: self.pool_dev.dev.size(),
        };
        visit(&self.pool_dev, role);
    }

    fn presuspend(&self, noflush: bool) {
        if !noflush {
            return;
        }
        self.port.requeue.store(true, SeqCst);
        let port = self.port.clone();
        let _ = self.pool.ask(move |worker, answer| {
            worker.requeue(&port);
            answer.give(());
        });
    }

    fn presuspend_undo(&self) {
        self.port.requeue.store(false, SeqCst);
    }

    fn postsuspend(&self) {
        self.port.requeue.store(false, SeqCst);
    }

    fn extents(&self, start: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        let geometry = self.pool.geometry;
        let (mut at, end) = (start - self.port.begin, start - self.port.begin + len);
        while at < end {
            let (v, within) = geometry.split(at);
            let max = (end - at).raw().div_ceil(geometry.block().raw()) + 1;
            let run = {
                let metadata = self.pool.metadata.read();
                let run = metadata.lookup_run(self.port.volume.id, VirtBlock(v), max, MayRead::Yes);
                run.map_err(|error| match error.kind() {
                    ErrorKind::NotFound => BlkStatus::Inval,
                    _ => BlkStatus::IoErr,
                })?
            };
            let sectors = (geometry.sector(run.blocks) - within).min(end - at);
            let mapped = run.first != Lookup::Unmapped;
            let hole = !mapped && self.port.origin.is_none();
            out.push(Extent {
                sectors,
                allocated: !hole,
                zeroes: hole,
            });
            at += sectors;
        }
        Ok(())
    }
}
