//! `clone`: a line that becomes a copy of another device while it is in use already.
//!
//! Arguments: `<metadata device> <destination> <source> <region sectors> [<n> <feature>...] [<n> <key> <value>...]`. Status and messages:
//! see `docs/targets/clone.md`.

mod args;
mod kept;
mod metadata;
mod regions;
mod shared;
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

use self::args::{BATCH, THRESHOLD, Tuning, parse_region};
use self::kept::Kept;
use self::metadata::Metadata;
use self::regions::Regions;
use self::shared::{Parts, Shared};
use self::worker::SharedRef;
use crate::args::{open_device_in_any_table, parse_u32};
use crate::kept::name_on;
use crate::thin_pool::BlockMetadataDevice;

/// The target type.
pub struct CloneType;

impl TargetType for CloneType {
    fn info(&self) -> TargetInfo {
        TargetInfo {
            name: NAME,
            version: [1, 0, 0],
            features: TargetFeatures::default(),
        }
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        let [metadata, dest, source, line @ ..] = args.argv else {
            return Err(TableError::invalid(NAME, "Invalid number of arguments"));
        };
        let Some((region, rest)) = line.split_first() else {
            return Err(TableError::invalid(NAME, "Invalid number of arguments"));
        };
        let metadata_dev = open(cx, metadata, "metadata", false)?;
        let dest = open(cx, dest, "destination", false)?;
        check_size(&dest, args.len, "destination")?;
        let source = open(cx, source, "source", true)?;
        check_size(&source, args.len, "source")?;
        for (device, what) in [(&dest, "destination"), (&source, "source")] {
            if device.id == metadata_dev.id {
                let reason = format!("Error opening {what} device: it is the metadata device");
                return Err(TableError::invalid(NAME, reason));
            }
        }
        let blocks = [&source, &dest].map(|device| device.dev.limits().logical_block_size);
        let region = parse_region(region, blocks)?;
        if args.len.raw().div_ceil(u64::from(region)) > REGIONS_MAX {
            let reason = "Too many regions. Consider increasing the region size";
            return Err(TableError::invalid(NAME, reason));
        }
        let tuning = Tuning::parse(rest)?;
        let metadata = open_metadata(&metadata_dev, region, args.len).map_err(|error| {
            let reason = format!("Failed to load metadata: {error}");
            TableError::new(NAME, reason, error.errno())
        })?;
        let shared = Shared::new(Parts {
            dest: dest.dev.clone(),
            source: source.dev.clone(),
            event: cx.event.clone(),
            begin: args.begin,
            len: args.len,
            region,
            metadata,
        });
        shared.hydration.store(tuning.hydration, SeqCst);
        shared.threshold.store(tuning.threshold, SeqCst);
        shared.batch.store(tuning.batch, SeqCst);
        let passdown = tuning.discard_passdown && can_pass_down(&dest, region);
        shared.passdown.store(passdown, SeqCst);
        let shared = SharedRef::start(cx.env, shared).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(ENOMEM);
            TableError::new(
                NAME,
                format!("Failed to allocate workqueue: {error}"),
                errno,
            )
        })?;
        Ok(Arc::new(Clone {
            env: cx.env.clone(),
            len: args.len,
            metadata_dev,
            dest,
            source,
            region,
            line: line.to_vec(),
            suspended: AtomicBool::new(true),
            shared,
        }))
    }
}

/// Opens a device as it must be, in a read-only table too.
fn open(
    cx: &ConstructCx<'_>,
    spec: &str,
    what: &str,
    read_only: bool,
) -> Result<DeviceUse, TableError> {
    let what = format!("Error opening {what} device");
    open_device_in_any_table(cx, NAME, spec, read_only, &what)
}

fn check_size(device: &DeviceUse, len: Sector, what: &str) -> Result<(), TableError> {
    if device.dev.size() < len {
        let reason = format!("Device size larger than {what} device");
        return Err(TableError::invalid(NAME, reason));
    }
    Ok(())
}

fn can_pass_down(dest: &DeviceUse, region: u32) -> bool {
    let limits = dest.dev.limits();
    let can = limits.supports_discard() && limits.max_discard >= Sector(u64::from(region));
    if !can {
        tracing::warn!(device = %dest, "clone: discards are not passed down: the destination does not take them");
    }
    can
}

fn open_metadata(device: &DeviceUse, region: u32, len: Sector) -> Result<Metadata, MetadataError> {
    let device = Arc::new(BlockMetadataDevice::new(device.dev.clone()));
    Metadata::open(device, region, len)
}

struct Clone {
    env: Arc<Environment>,
    len: Sector,
    metadata_dev: DeviceUse,
    dest: DeviceUse,
    source: DeviceUse,
    /// Sectors.
    region: u32,
    /// The words after the devices, for the table line.
    line: Vec<String>,
    suspended: AtomicBool,
    shared: SharedRef,
}

fn refuse(error: MetadataError) -> ResumeError {
    let reason = format!("Failed to load metadata: {error}");
    ResumeError::new(NAME, reason, error.errno())
}

impl Clone {
    fn count(&self) -> u64 {
        self.len.raw().div_ceil(u64::from(self.region))
    }

    /// Before the first resume: the metadata as the line before has left them, and what the last process answered since.
    fn take_over(&self) -> Result<(), ResumeError> {
        let metadata = open_metadata(&self.metadata_dev, self.region, self.len).map_err(refuse)?;
        self.keep()?;
        let mut state = self.shared.state.lock();
        let kept = state.kept.as_ref();
        let left = |index| kept.map_or(0, |kept| kept.word(index));
        let word = |index| metadata.word(index).map(|word| word | left(index));
        let no_memory = || {
            let what = "Failed to allocate memory for region bitmap";
            refuse(MetadataError::new(ErrorKind::Inval, what))
        };
        let regions = Regions::load(self.count(), word).map_err(refuse)?;
        let regions = regions.ok_or_else(no_memory)?;
        let words = 0..self.count().div_ceil(64);
        state.dirty = words.filter(|index| left(*index) != 0).collect();
        drop(state);
        *self.shared.metadata.lock() = metadata;
        let _ = self.shared.regions.set(regions);
        Ok(())
    }

    /// Finds what the last process died over, and keeps what the next one will need.
    fn keep(&self) -> Result<(), ResumeError> {
        let keeper = self.env.shared.of::<KeptMemory>().keeper();
        let mut state = self.shared.state.lock();
        let Some(keeper) = keeper.filter(|_| state.kept.is_none()) else {
            return Ok(());
        };
        // Not the mapped device's: a table that was to take the place of another clone's must not find that one's regions.
        let name = name_on(NAME, self.metadata_dev.id);
        let form = (self.count(), u64::from(self.region));
        let kept = Kept::open(keeper, name, form).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(ENOMEM);
            ResumeError::new(NAME, format!("memory for the next daemon: {error}"), errno)
        })?;
        state.kept = Some(kept);
        Ok(())
    }

    fn info(&self, flags: StatusFlags) -> String {
        let shared = &self.shared;
        if !flags.noflush && !self.suspended.load(SeqCst) {
            // What it says when it fails is in the mode.
            let _ = shared.commit();
        }
        let (used, total) = shared.metadata.lock().used();
        let count = self.count();
        let hydrated = shared.regions.get().map_or(0, Regions::hydrated);
        let busy = shared.state.lock().hydrating();
        let mode = match shared.read_only.load(SeqCst) {
            true => "ro",
            false => "rw",
        };
        let tuning = Tuning {
            hydration: shared.hydration.load(SeqCst),
            discard_passdown: shared.passdown.load(SeqCst),
            threshold: shared.threshold.load(SeqCst),
            batch: shared.batch.load(SeqCst),
        };
        format!(
            "{METADATA_BLOCK_SECTORS} {used}/{total} {} {hydrated}/{count} {busy} {} {mode}",
            self.region,
            tuning.status()
        )
    }
}

impl Target for Clone {
    fn map(&self, mut io: Io) -> MapOutcome<'_> {
        if io.op != Op::Flush {
            io.sector -= self.shared.begin;
        }
        self.shared.map(io)
    }

    fn split_at(&self, op: Op) -> Option<Sector> {
        (op != Op::Discard).then_some(Sector(u64::from(self.region)))
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        limits.max_write_zeroes = Sector::ZERO;
        let bytes = self.region * 512;
        if limits.io_opt < bytes || !limits.io_opt.is_multiple_of(bytes) {
            limits.io_min = bytes;
            limits.io_opt = bytes;
        }
        if self.shared.passdown.load(SeqCst) {
            let dest = self.dest.dev.limits();
            limits.max_discard = dest.max_discard;
            limits.discard_granularity = dest.discard_granularity;
        } else {
            let max = u64::from(u32::MAX >> 9);
            limits.max_discard = Sector(max - max % u64::from(self.region));
            limits.discard_granularity = bytes;
        }
    }

    fn status(&self, kind: StatusKind, flags: StatusFlags, out: &mut String) {
        match kind {
            StatusKind::Info => out.push_str(&self.info(flags)),
            StatusKind::Table => out.push_str(&format!(
                "{} {} {} {}",
                self.metadata_dev,
                self.dest,
                self.source,
                self.line.join(" ")
            )),
            StatusKind::Measurement => {}
        }
    }

    fn message(&self, argv: &[String]) -> Result<Option<String>, MessageError> {
        let refused = |reason: String| MessageError::new(format!("{NAME}: {reason}"), EINVAL);
        let is = |word: &str| {
            argv.first()
                .is_some_and(|first| first.eq_ignore_ascii_case(word))
        };
        let number = || match argv {
            [_, value] => parse_u32(value).ok_or_else(|| refused(format!("no number: '{value}'"))),
            _ => Err(refused("one value, please".to_owned())),
        };
        if is("enable_hydration") {
            self.shared.hydration.store(true, SeqCst);
        } else if is("disable_hydration") {
            self.shared.hydration.store(false, SeqCst);
        } else if is(THRESHOLD) {
            self.shared.threshold.store(number()?, SeqCst);
        } else if is(BATCH) {
            self.shared.batch.store(number()?, SeqCst);
        } else {
            let word = argv.first().map_or("", String::as_str);
            return Err(refused(format!("Unsupported message `{word}'")));
        }
        self.shared.wake();
        Ok(None)
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        let role = DeviceRole::Data {
            start: Sector::ZERO,
            len: self.len,
        };
        visit(&self.metadata_dev, DeviceRole::Other);
        visit(&self.dest, role);
        visit(&self.source, role);
    }

    fn postsuspend(&self) {
        self.suspended.store(true, SeqCst);
        self.shared.stop_hydration();
        // What could not be committed stays noted: the line may be resumed.
        match self.shared.commit() {
            Ok(()) => {
                if let Some(kept) = self.shared.state.lock().kept.take() {
                    kept.forget();
                }
            }
            Err(error) => tracing::error!(%error, "clone: what was copied is not noted"),
        }
    }

    fn preresume(&self) -> Result<(), ResumeError> {
        if self.shared.regions.get().is_none() {
            return self.take_over();
        }
        self.keep()
    }

    fn resume(&self) {
        self.suspended.store(false, SeqCst);
        self.shared.running.store(true, SeqCst);
        self.shared.wake();
    }

    /// One region's worth at a time.
    fn extents(&self, start: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        let at = start - self.shared.begin;
        let region = u64::from(self.region);
        let left = Sector(region - at.raw() % region);
        let regions = self.shared.regions.get();
        let device = match regions.is_some_and(|regions| regions.has(at.raw() / region)) {
            true => &self.dest,
            false => &self.source,
        };
        device.dev.extents(at, len.min(left), out)
    }
}

const NAME: &str = "clone";
const METADATA_BLOCK_SECTORS: u32 = 8;
const REGIONS_MAX: u64 = 1 << 31;
const ENOMEM: i32 = 12;
const EINVAL: i32 = 22;
