//! `era`: a line that is a device, with a record of when each of its blocks was last written.
//!
//! Arguments: `<metadata device> <origin> <block sectors>`. Status: `<metadata block sectors> <used>/<total metadata blocks> <era>
//! <held root|->`. Messages: `checkpoint`, `take_metadata_snap`, `drop_metadata_snap`.
//!
//! COMPAT: the line's sectors are the origin's, wherever the line begins.

mod disk;
mod metadata;
mod worker;
mod writeset;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use thinmap_block::{Extent, Io, Op, QueueLimits};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, MessageError, OpenDevice, ResumeError,
    StatusFlags, StatusKind, TableError, Target, TargetArgs, TargetFeatures, TargetInfo,
    TargetType,
};
use thinmap_persistent_data::MetadataError;
use thinmap_units::{BlkStatus, Sector};

use self::metadata::Metadata;
use self::worker::{Shared, SharedRef};
use crate::args::scan_u32;
use crate::thin_pool::BlockMetadataDevice;

/// The target type.
pub struct EraType;

impl TargetType for EraType {
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
        let wrong = |reason: String| TableError::invalid(NAME, reason);
        let [metadata, origin, block] = args.argv else {
            return Err(wrong("Invalid argument count".to_owned()));
        };
        // Writeable in a read-only table too.
        let open = |spec: &str, what: &str| {
            let request = OpenDevice {
                spec,
                read_only: false,
                by: cx.dev_no,
            };
            let opened = cx.env.opener.open(request);
            opened.map_err(|error| wrong(format!("Error opening {what} device: {}", error.reason)))
        };
        let metadata_dev = open(metadata, "metadata")?;
        let origin = open(origin, "data")?;
        if origin.id == metadata_dev.id {
            let reason = "Error opening data device: it is the metadata device";
            return Err(wrong(reason.to_owned()));
        }
        let block =
            scan_u32(block).ok_or_else(|| wrong(format!("Error parsing block size: '{block}'")))?;
        if block == 0 || !block.is_multiple_of(BLOCK_SECTORS_MIN) {
            return Err(wrong("Invalid block size".to_owned()));
        }
        let metadata = open_metadata(&metadata_dev, block).map_err(|error| {
            TableError::new(
                NAME,
                format!("Error reading metadata: {error}"),
                error.errno(),
            )
        })?;
        let shared = Shared::start(cx.env, origin.dev.clone(), (args.begin, block), metadata)
            .map_err(|error| {
                let reason = format!("could not create workqueue for metadata object: {error}");
                TableError::new(NAME, reason, error.raw_os_error().unwrap_or(ENOMEM))
            })?;
        Ok(Arc::new(Era {
            len: args.len,
            metadata_dev,
            origin,
            block,
            was_live: AtomicBool::new(false),
            shared,
        }))
    }
}

fn open_metadata(device: &DeviceUse, block: u32) -> Result<Metadata, MetadataError> {
    let device = Arc::new(BlockMetadataDevice::new(device.dev.clone()));
    Metadata::open(device, block)
}

struct Era {
    len: Sector,
    metadata_dev: DeviceUse,
    origin: DeviceUse,
    /// Sectors.
    block: u32,
    was_live: AtomicBool,
    shared: SharedRef,
}

impl Era {
    /// Before the first resume: takes the metadata as the line before has left them, and tells them the size.
    fn take_over(&self) -> Result<(), MetadataError> {
        let mut metadata = open_metadata(&self.metadata_dev, self.block)?;
        metadata.resize(self.len.raw().div_ceil(u64::from(self.block)))?;
        *self.shared.metadata() = metadata;
        Ok(())
    }

    fn info(&self) -> Result<String, MetadataError> {
        let mut metadata = self.shared.metadata();
        let stats = metadata.stats()?;
        // COMPAT: asking commits.
        if self.shared.is_running() {
            metadata.commit()?;
        }
        let snap = stats
            .metadata_snap
            .map_or("-".to_owned(), |block| block.to_string());
        Ok(format!(
            "{METADATA_BLOCK_SECTORS} {}/{} {} {snap}",
            stats.used, stats.total, stats.era
        ))
    }
}

impl Target for Era {
    fn map(&self, io: Io) -> MapOutcome<'_> {
        let writes = matches!(io.op, Op::Write | Op::WriteZeroes | Op::Discard);
        if writes && !self.shared.may_pass(&io) {
            self.shared.defer(io);
            return MapOutcome::Submitted;
        }
        MapOutcome::Remapped(io, &self.origin.dev)
    }

    fn split_at(&self, _: Op) -> Option<Sector> {
        Some(Sector(u64::from(self.block)))
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        limits.max_write_zeroes = Sector::ZERO;
        let Some(bytes) = self.block.checked_mul(512) else {
            return;
        };
        if limits.io_opt < bytes || !limits.io_opt.is_multiple_of(bytes) {
            limits.io_min = limits.physical_block_size;
            limits.io_opt = bytes;
        }
    }

    fn status(&self, kind: StatusKind, _: StatusFlags, out: &mut String) {
        match kind {
            StatusKind::Info => match self.info() {
                Ok(info) => out.push_str(&info),
                Err(error) => {
                    tracing::error!(%error, "era: no status");
                    out.push_str("Error");
                }
            },
            StatusKind::Table => out.push_str(&format!(
                "{} {} {}",
                self.metadata_dev, self.origin, self.block
            )),
            StatusKind::Measurement => {}
        }
    }

    fn message(&self, argv: &[String]) -> Result<Option<String>, MessageError> {
        let [word] = argv else {
            return Err(refused("incorrect number of message arguments".to_owned()));
        };
        let done = match word.to_ascii_lowercase().as_str() {
            "checkpoint" => self.shared.begin_era(Metadata::roll_over),
            "take_metadata_snap" => self.take_snap(),
            "drop_metadata_snap" => {
                let mut metadata = self.shared.metadata();
                metadata.drop_snap().and_then(|()| metadata.commit())
            }
            _ => return Err(refused(format!("unsupported message '{word}'"))),
        };
        done.map(|()| None)
            .map_err(|error| MessageError::new(format!("{NAME}: {error}"), error.errno()))
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        visit(&self.metadata_dev, DeviceRole::Other);
        let role = DeviceRole::Data {
            start: Sector::ZERO,
            len: self.origin.dev.size(),
        };
        visit(&self.origin, role);
    }

    fn postsuspend(&self) {
        let mut metadata = self.shared.metadata();
        self.shared.set_running(false);
        let archived = metadata.archive().and_then(|()| metadata.commit());
        if let Err(error) = archived {
            tracing::error!(%error, "era: couldn't archive current era");
        }
    }

    fn preresume(&self) -> Result<(), ResumeError> {
        let failed = |what: &str, error: MetadataError| {
            ResumeError::new(NAME, format!("{what} failed: {error}"), error.errno())
        };
        if !self.was_live.load(SeqCst) {
            self.take_over().map_err(|e| failed("metadata_resize", e))?;
            self.was_live.store(true, SeqCst);
        }
        self.shared
            .begin_era(Metadata::roll_over)
            .map_err(|e| failed("metadata_era_rollover", e))?;
        self.shared.set_running(true);
        Ok(())
    }

    fn extents(&self, start: Sector, len: Sector, out: &mut Vec<Extent>) -> Result<(), BlkStatus> {
        self.origin.dev.extents(start, len, out)
    }
}

impl Era {
    fn take_snap(&self) -> Result<(), MetadataError> {
        if self.shared.metadata().has_snap() {
            let what = "metadata snapshot already exists";
            return Err(MetadataError::new(
                thinmap_persistent_data::ErrorKind::Inval,
                what,
            ));
        }
        self.shared.begin_era(Metadata::take_snap)
    }
}

fn refused(reason: String) -> MessageError {
    MessageError::new(format!("{NAME}: {reason}"), EINVAL)
}

const NAME: &str = "era";
const BLOCK_SECTORS_MIN: u32 = 8;
const METADATA_BLOCK_SECTORS: u32 = 8;
const ENOMEM: i32 = 12;
const EINVAL: i32 = 22;
