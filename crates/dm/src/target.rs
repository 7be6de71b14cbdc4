//! The plug-in seam: a [`TargetType`] per target, a [`Target`] per table line.

use std::sync::Arc;

use thinmap_block::{BlockDevice, Io, Op, QueueLimits};
use thinmap_units::{BlkStatus, DevNo, Sector};

use crate::device_use::{DeviceUse, OpenDevice};
use crate::environment::Environment;
use crate::error::{MessageError, ResumeError, TableError};
use crate::event::TableEvent;

/// A target's name, version and habits.
#[derive(Clone, Copy, Debug)]
pub struct TargetInfo {
    /// As tables name it.
    pub name: &'static str,
    /// The kernel target's version that it behaves like.
    pub version: [u32; 3],
    /// What the core must know of it.
    pub features: TargetFeatures,
}

/// What the core must know of a target when it builds a table.
#[derive(Clone, Copy, Debug, Default)]
pub struct TargetFeatures {
    /// Must be alone in its table (DM_TARGET_SINGLETON).
    pub singleton: bool,
    /// Refuses a read-only table (DM_TARGET_ALWAYS_WRITEABLE).
    pub always_writeable: bool,
    /// May not be replaced by another target type at reload (DM_TARGET_IMMUTABLE).
    pub immutable: bool,
    /// May replace any target, immutable ones too (DM_TARGET_WILDCARD).
    pub wildcard: bool,
}

/// How a target uses a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceRole {
    /// Data of the mapped device lies in this part of it: the part must exist, and the device's limits count.
    Data {
        /// First sector.
        start: Sector,
        /// Length.
        len: Sector,
    },
    /// Anything else, metadata say: neither its size nor its limits concern the core.
    Other,
}

/// One per kind of target, static.
pub trait TargetType: Send + Sync {
    /// Name, version, features.
    fn info(&self) -> TargetInfo;

    /// Builds the target of one table line. Runs on a control thread and may do I/O. Must check everything; must not
    /// take effect on shared things until [`Target::preresume`].
    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError>;
}

/// A table line, split into words as the kernel does (backslash quotes the next character).
#[derive(Clone, Copy, Debug)]
pub struct TargetArgs<'a> {
    /// The line's first sector in the mapped device.
    pub begin: Sector,
    /// The line's length.
    pub len: Sector,
    /// The target's own arguments.
    pub argv: &'a [String],
}

/// What a constructor may use.
pub struct ConstructCx<'a> {
    /// The process around.
    pub env: &'a Arc<Environment>,
    /// The mapped device whose table this is.
    pub dev_no: DevNo,
    /// The table is being loaded read-only.
    pub read_only: bool,
    /// The mapped device's event counter.
    pub event: &'a Arc<TableEvent>,
}

impl ConstructCx<'_> {
    /// Opens a device that the table names; `target` is for the error.
    ///
    /// A read-only table opens everything read-only.
    pub fn open(&self, target: &str, spec: &str, read_only: bool) -> Result<DeviceUse, TableError> {
        let request = OpenDevice {
            spec,
            read_only: read_only || self.read_only,
            by: self.dev_no,
        };
        self.env
            .opener
            .open(request)
            .map_err(|e| TableError::new(target, e.reason, e.errno))
    }
}

/// What became of a request that a target was given.
pub enum MapOutcome<'a> {
    /// `io` now names a place on this device: the core submits it there.
    Remapped(Io, &'a Arc<dyn BlockDevice>),
    /// The target has the request and will complete it.
    Submitted,
    /// Cannot be done in the present state (a suspend without flush is under way): the core holds it
    /// and maps it again after resume.
    Requeue(Io),
    /// Ends now, with this status.
    Kill(Io, BlkStatus),
}

/// Which line is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StatusKind {
    /// STATUSTYPE_INFO: how it is.
    Info,
    /// STATUSTYPE_TABLE: the arguments; must construct the same target again.
    Table,
    /// STATUSTYPE_IMA: what integrity measurement notes; nothing, for most targets.
    Measurement,
}

/// How to ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StatusFlags {
    /// Do not commit or otherwise wait for I/O first.
    pub noflush: bool,
    /// The device is suspended.
    pub suspended: bool,
    /// Of a table: as the next process takes it after a crash of this one. Secrets are told by the name they are kept under.
    pub for_successor: bool,
}

/// One line of a live or inactive table.
///
/// The core calls the control methods of one device one at a time; `map` runs on many threads, also
/// beside them.
pub trait Target: Send + Sync {
    /// Takes a request that lies inside the line and inside one [`Target::split_at`] chunk.
    ///
    /// `io.sector` is the mapped device's sector: subtract the line's begin. A flush has no range and comes once per target:
    /// a target over several devices passes it to all of them (`kit` helps). Never blocks. To see the end of a
    /// request that it remaps, a target pushes itself with [`Io::push_end_io`].
    fn map(&self, io: Io) -> MapOutcome<'_>;

    /// Takes a read or write inside the line that spans chunks ([`Target::split_at`]), when it can go on whole and at
    /// once; otherwise gives it back, as the default does, and gets it in pieces.
    #[expect(
        clippy::result_large_err,
        reason = "both outcomes carry the request, moved not boxed"
    )]
    fn map_across(&self, io: Io) -> Result<MapOutcome<'_>, Io> {
        Err(io)
    }

    /// Requests of this kind are cut at multiples of this many sectors, counted from the line's begin; `None` when they
    /// need not be cut.
    fn split_at(&self, op: Op) -> Option<Sector> {
        let _ = op;
        None
    }

    /// Adjusts the limits (which already hold those of [`Target::visit_devices`]' devices, stacked), the kernel's `io_hints`.
    ///
    /// `max_write_zeroes` zero makes the core write zeroes itself.
    fn io_hints(&self, limits: &mut QueueLimits) {
        let _ = limits;
    }

    /// Appends the line's own part (without start, length and target name) to `out`. May come while another control method runs.
    fn status(&self, kind: StatusKind, flags: StatusFlags, out: &mut String);

    /// Obeys a message, words split already; `Some` is the reply.
    fn message(&self, argv: &[String]) -> Result<Option<String>, MessageError> {
        let _ = argv;
        Err(MessageError::none_supported())
    }

    /// Names every device the target stands on, in the order in which they were opened: for deps, limits, loops.
    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole));

    /// A suspend begins; requests still arrive. With `noflush` those in flight may come back as [`MapOutcome::Requeue`].
    fn presuspend(&self, noflush: bool) {
        let _ = noflush;
    }

    /// The suspend was given up.
    fn presuspend_undo(&self) {}

    /// Suspended: no request is in flight. Everything must be durable (commit) unless it was a noflush suspend.
    fn postsuspend(&self) {}

    /// About to become live: take effect (bind, grow); a refusal leaves the device suspended.
    fn preresume(&self) -> Result<(), ResumeError> {
        Ok(())
    }

    /// Live again: requests arrive.
    fn resume(&self) {}

    /// What the device holds, for block-status queries, in sectors of the mapped device; see
    /// [`BlockDevice::extents`]. The default knows nothing.
    fn extents(
        &self,
        start: Sector,
        len: Sector,
        out: &mut Vec<thinmap_block::Extent>,
    ) -> Result<(), BlkStatus> {
        let _ = start;
        out.push(thinmap_block::Extent {
            sectors: len,
            allocated: true,
            zeroes: false,
        });
        Ok(())
    }
}
