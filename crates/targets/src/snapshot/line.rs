//! Lines `snapshot` and `snapshot-merge` as device mapper sees them.
//!
//! Arguments: see [`super::args`]. Status: `<allocated>/<total> <metadata>` in sectors, or `Invalid`, `Overflow`, `Merge failed`.
//! No messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;

use arc_swap::ArcSwapOption;
use thinmap_block::{Io, Op, QueueLimits};
use thinmap_dm::{
    ConstructCx, DeviceRole, DeviceUse, MapOutcome, OpenDevice, ResumeError, StatusFlags,
    StatusKind, TableError, Target, TargetArgs, TargetFeatures, TargetInfo, TargetType,
};
use thinmap_units::Sector;

use super::args::{self, Args, Features, Kind};
use super::kept::Kept;
use super::origin::{Member, Origin, Origins};
use super::room::Room;
use super::snapshot::{Devices, NewSnapshot, Snapshot, SnapshotRef};
use super::state::{State, Validity};
use super::store::Store;
use super::worker::Event;
use crate::args::measured;
use crate::told::wait_until_told;

/// The target type `snapshot`.
pub struct SnapshotType;

/// The target type `snapshot-merge`.
pub struct SnapshotMergeType;

impl TargetType for SnapshotType {
    fn info(&self) -> TargetInfo {
        info("snapshot", [1, 16, 0])
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        construct(self.info(), args, cx)
    }
}

impl TargetType for SnapshotMergeType {
    fn info(&self) -> TargetInfo {
        info(MERGE, [1, 5, 0])
    }

    fn construct(
        &self,
        args: &TargetArgs<'_>,
        cx: &mut ConstructCx<'_>,
    ) -> Result<Arc<dyn Target>, TableError> {
        construct(self.info(), args, cx)
    }
}

const MERGE: &str = "snapshot-merge";

fn info(name: &'static str, version: [u32; 3]) -> TargetInfo {
    TargetInfo {
        name,
        version,
        features: TargetFeatures::default(),
    }
}

fn construct(
    info: TargetInfo,
    args: &TargetArgs<'_>,
    cx: &mut ConstructCx<'_>,
) -> Result<Arc<dyn Target>, TableError> {
    let name = info.name;
    let merge = name == MERGE;
    let parsed = args::parse(name, args.argv)?;
    let (origin, cow) = open_devices(name, &parsed, merge, cx)?;
    let (kind, chunk) = parsed.store(name, &*origin.dev, &*cow.dev)?;
    if merge && kind == Kind::Transient {
        let reason = "Snapshot exception store does not support snapshot-merge.";
        return Err(TableError::invalid(name, reason));
    }
    let shared = cx.env.shared.of::<Origins>().of(origin.id);
    let devices = Devices {
        origin: origin.dev.clone(),
        cow: cow.dev.clone(),
    };
    let member = Arc::new(Member {
        merge,
        cow: cow.id,
        end: args.begin + args.len,
        devices,
        event: cx.event.clone(),
        active: AtomicBool::new(false),
        suspended: AtomicBool::new(false),
        cancelled: AtomicBool::new(false),
        slot: ArcSwapOption::empty(),
    });
    let handover = shared
        .register(&member)
        .map_err(|reason| TableError::invalid(name, reason))?;
    let line = SnapshotLine {
        info,
        begin: args.begin,
        len: args.len,
        origin,
        cow,
        kind,
        features: parsed.features,
        shared,
        member,
        chunk: AtomicU64::new(0),
    };
    if !handover {
        // From here on the line's end takes it off its origin again.
        let held = line.open_store(chunk, cx)?;
        line.member.slot.store(Some(held));
    }
    Ok(Arc::new(line))
}

fn open_devices(
    name: &str,
    parsed: &Args<'_>,
    merge: bool,
    cx: &ConstructCx<'_>,
) -> Result<(DeviceUse, DeviceUse), TableError> {
    let wrapped = |what: &'static str| {
        move |error: TableError| TableError {
            reason: format!("{what}: {}", error.reason),
            ..error
        }
    };
    let origin = cx
        .open(name, parsed.origin, !merge)
        .map_err(wrapped("Cannot get origin device"))?;
    // COMPAT: exceptions are made behind a read-only table, too.
    let writable = cx.env.opener.open(OpenDevice {
        spec: parsed.cow,
        read_only: false,
        by: cx.dev_no,
    });
    let cow = match writable {
        Err(error) if cx.read_only && [EACCES, EROFS, EPERM].contains(&error.errno) => {
            cx.open(name, parsed.cow, true)
        }
        opened => opened.map_err(|e| TableError::new(name, e.reason, e.errno)),
    }
    .map_err(wrapped("Cannot get COW device"))?;
    if cow.id == origin.id {
        let reason = "COW device cannot be the same as origin device";
        return Err(TableError::invalid(name, reason));
    }
    Ok((origin, cow))
}

/// A line.
pub(super) struct SnapshotLine {
    info: TargetInfo,
    begin: Sector,
    len: Sector,
    pub origin: DeviceUse,
    pub cow: DeviceUse,
    kind: Kind,
    pub features: Features,
    shared: Arc<Origin>,
    pub member: Arc<Member>,
    /// Of the snapshot that the line has or had, in sectors; 0 before.
    chunk: AtomicU64,
}

impl Drop for SnapshotLine {
    fn drop(&mut self) {
        self.shared.unregister(&self.member);
        if !self.member.is_active()
            && let Some(snapshot) = self.member.snapshot()
        {
            snapshot.put_back();
        }
        // Nobody else sees the member any more: the worker ends here, on the thread that drops the table.
        drop(self.member.slot.swap(None));
    }
}

impl SnapshotLine {
    /// Reads or makes the store, and starts the snapshot.
    fn open_store(&self, chunk: u32, cx: &ConstructCx<'_>) -> Result<Arc<SnapshotRef>, TableError> {
        let name = self.info.name;
        let (origin, cow) = (&*self.origin.dev, &*self.cow.dev);
        let mut kept = None;
        let (chunk, state, store) = if self.kind == Kind::Transient {
            if chunk == 0 {
                return Err(TableError::invalid(name, "Chunk size not set"));
            }
            let chunk = Sector(u64::from(chunk));
            let mut state = State::new(Room::new(chunk, None), None);
            kept = Kept::take_over(cx.env, &self.cow, chunk, &mut state).map_err(|error| {
                let reason = format!("memory for the next daemon: {error}");
                TableError::new(name, reason, error.raw_os_error().unwrap_or(ENOMEM))
            })?;
            (chunk, state, None)
        } else {
            let check = |chunk| args::check_chunk(chunk, origin, cow);
            let opened = Store::open(cow, chunk, check).map_err(|error| {
                let reason = format!("Failed to read snapshot metadata: {error}");
                TableError::new(name, reason, error.errno())
            })?;
            let mut state = State::new(opened.room, Some(opened.store.area()));
            if !opened.valid {
                tracing::warn!(cow = %self.cow, "snapshot: the store says that the snapshot is invalid");
                state.validity = Validity::Invalid;
            }
            for slot in &opened.exceptions {
                state.complete.insert(slot.old, slot.new);
            }
            (opened.store.chunk(), state, Some(opened.store))
        };
        let new = NewSnapshot {
            chunk,
            devices: self.member.devices.clone(),
            event: self.member.event.clone(),
            origin: self.shared.clone(),
            state,
            store,
            kept,
        };
        self.chunk.store(chunk.raw(), SeqCst);
        let thread = format!("snap-{}", cx.dev_no.minor);
        Snapshot::start(new, &*cx.env.spawner, &thread).map_err(|error| {
            let reason = format!("Could not start the snapshot's worker: {error}");
            TableError::new(name, reason, error.raw_os_error().unwrap_or(ENOMEM))
        })
    }

    /// Whether a write that finds no room leaves the snapshot as it is.
    pub(super) fn keeps_what_it_has(&self) -> bool {
        self.kind == Kind::Persistent { overflow: true }
    }

    pub(super) fn member_origin(&self) -> &Origin {
        &self.shared
    }

    fn status_text(&self) -> String {
        if let Some(snapshot) = self.member.snapshot() {
            return snapshot.status();
        }
        let was_handed_over = self.member.is_active();
        if was_handed_over || self.member.cancelled.load(SeqCst) {
            return "Invalid".to_owned();
        }
        // COMPAT: nothing is known yet of what will be taken over.
        format!("0/{} 0", self.cow.dev.size())
    }

    fn chunk_now(&self) -> u64 {
        let snapshot = self.member.snapshot();
        snapshot.map_or(0, |snapshot| snapshot.chunk.raw())
    }

    /// The next process may have to make the snapshot by what a line says that was to take it over: it says what that is already.
    fn table(&self, for_successor: bool) -> String {
        let snapshot = match for_successor {
            true => self.shared.snapshot_for(&self.member),
            false => self.member.snapshot(),
        };
        // COMPAT: of what the line has, which may be of the other kind than it was loaded with.
        let kind = match (&snapshot, self.kind) {
            (Some(snapshot), Kind::Transient) if snapshot.persistent => {
                Kind::Persistent { overflow: false }
            }
            (Some(snapshot), Kind::Persistent { .. }) if !snapshot.persistent => Kind::Transient,
            (_, kind) => kind,
        };
        format!(
            "{} {} {} {}{}",
            self.origin,
            self.cow,
            kind.word(),
            snapshot.map_or(0, |snapshot| snapshot.chunk.raw()),
            self.features.table_words()
        )
    }

    fn measurement(&self) -> String {
        let letter = |is: bool| if is { 'y' } else { 'n' };
        let snapshot = self.member.snapshot();
        let state = snapshot.as_ref().map(|snapshot| snapshot.state.read());
        let (valid, failed, overflowed) = match &state {
            Some(state) => (
                state.validity == Validity::Valid,
                state.merge_failed,
                state.overflowed,
            ),
            None => (!self.member.is_active(), false, false),
        };
        format!(
            "{},snap_origin_name={},snap_cow_name={},snap_valid={},snap_merge_failed={},snapshot_overflowed={};",
            measured(self.info.name, self.info.version),
            self.origin,
            self.cow,
            letter(valid),
            letter(failed),
            letter(overflowed)
        )
    }

    /// Waits until nothing of a merge is under way.
    fn stop_merge(&self) {
        let Some(snapshot) = self.member.snapshot() else {
            return;
        };
        let (sender, stopped) = mpsc::channel();
        snapshot.push(Event::StopMerge(sender));
        // An error means that there is no worker, and so no merge.
        wait_until_told(&stopped);
    }
}

impl Target for SnapshotLine {
    /// COMPAT: sectors are the origin's own, wherever in its table the line begins.
    fn map(&self, io: Io) -> MapOutcome<'_> {
        if self.member.merge {
            self.map_merge(io)
        } else {
            self.map_snapshot(io)
        }
    }

    fn split_at(&self, op: Op) -> Option<Sector> {
        if op == Op::Flush {
            return None;
        }
        let chunk = self.chunk.load(SeqCst);
        // Pieces are counted from the line's begin, chunks from the origin's: both must end where a piece does.
        let begin = self.begin.raw();
        let aligned = 1_u64.checked_shl(begin.trailing_zeros()).unwrap_or(chunk);
        (chunk > 0).then(|| Sector(chunk.min(aligned)))
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        limits.max_write_zeroes = Sector::ZERO;
        if !self.features.discard_zeroes_cow {
            limits.max_discard = Sector::ZERO;
            limits.discard_granularity = 0;
            return;
        }
        let snapshot = self.shared.snapshot_for(&self.member);
        let chunk = snapshot.map_or(Sector::ZERO, |snapshot| snapshot.chunk);
        limits.max_discard = chunk;
        limits.discard_granularity = u32::try_from(chunk.bytes()).unwrap_or(u32::MAX);
    }

    fn status(&self, kind: StatusKind, flags: StatusFlags, out: &mut String) {
        match kind {
            StatusKind::Info => out.push_str(&self.status_text()),
            StatusKind::Table => out.push_str(&self.table(flags.for_successor)),
            StatusKind::Measurement => out.push_str(&self.measurement()),
        }
    }

    fn visit_devices(&self, visit: &mut dyn FnMut(&DeviceUse, DeviceRole)) {
        let data = |len| DeviceRole::Data {
            start: Sector::ZERO,
            len,
        };
        visit(&self.origin, data(self.len));
        visit(&self.cow, data(self.cow.dev.size()));
    }

    fn presuspend(&self, _: bool) {
        if self.member.merge {
            self.stop_merge();
        }
    }

    fn presuspend_undo(&self) {
        if self.member.merge
            && let Some(snapshot) = self.member.snapshot()
        {
            snapshot.push(Event::StartMerge);
        }
    }

    fn postsuspend(&self) {
        self.member.suspended.store(true, SeqCst);
    }

    fn preresume(&self) -> Result<(), ResumeError> {
        self.shared
            .check_resume(&self.member)
            .map_err(|reason| ResumeError::new(self.info.name, reason, EINVAL))
    }

    fn resume(&self) {
        self.shared.resume(&self.member);
        self.chunk.store(self.chunk_now(), SeqCst);
    }
}

const EPERM: i32 = 1;
const ENOMEM: i32 = 12;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
const EROFS: i32 = 30;
