//! An origin and its snapshots: what a write to it must wait for, and which line takes over which snapshot.
//!
//! INVARIANT: a queue thread looks at members only under the list's read lock and keeps none: whoever takes a member off has it
//! alone then, and may wait for the snapshot's worker.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use parking_lot::{Mutex, RwLock};
use thinmap_block::{BlockDevice, Io};
use thinmap_dm::{DeviceId, TableEvent};
use thinmap_units::{BlkStatus, Sector};

use super::snapshot::{Devices, Snapshot, SnapshotRef};
use super::state::Waiting;
use super::worker::Event;

/// Every origin that has a snapshot or is mapped by a `snapshot-origin`.
#[derive(Default)]
pub(super) struct Origins {
    by_device: Mutex<HashMap<DeviceId, Weak<Origin>>>,
}

impl Origins {
    /// The origin on this device.
    pub fn of(&self, device: DeviceId) -> Arc<Origin> {
        let mut origins = self.by_device.lock();
        origins.retain(|_, origin| origin.strong_count() > 0);
        if let Some(origin) = origins.get(&device).and_then(Weak::upgrade) {
            return origin;
        }
        let origin = Arc::new(Origin::default());
        origins.insert(device, Arc::downgrade(&origin));
        origin
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Origin {
    members: RwLock<Vec<Arc<Member>>>,
}

/// A line that has, had or will have a snapshot.
pub(super) struct Member {
    pub merge: bool,
    pub cow: DeviceId,
    /// The line's end: writes to the origin behind it do not concern it.
    pub end: Sector,
    pub devices: Devices,
    pub event: Arc<TableEvent>,
    /// Was resumed once. Exceptions are not made before.
    pub active: AtomicBool,
    pub suspended: AtomicBool,
    /// Its snapshot went without it.
    pub cancelled: AtomicBool,
    pub slot: ArcSwapOption<SnapshotRef>,
}

impl Member {
    pub fn is_active(&self) -> bool {
        self.active.load(SeqCst)
    }

    /// The snapshot, if the line has it now.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.slot.load().as_ref().map(|held| held.0.clone())
    }
}

/// Members with one COW device: who has the snapshot, and who waits for it.
#[derive(Default)]
struct Pair<'a> {
    source: Option<&'a Arc<Member>>,
    target: Option<&'a Arc<Member>>,
    count: usize,
}

fn pair_of(members: &[Arc<Member>], cow: DeviceId) -> Pair<'_> {
    let mut pair = Pair::default();
    for member in members.iter().filter(|member| member.cow == cow) {
        pair.count += 1;
        if member.is_active() {
            pair.source = Some(member);
        } else {
            pair.target = Some(member);
        }
    }
    pair
}

impl Origin {
    /// Makes a line a member; whether it is to take over another one's snapshot, or what is wrong.
    pub fn register(&self, member: &Arc<Member>) -> Result<bool, &'static str> {
        let mut members = self.members.write();
        let pair = pair_of(&members, member.cow);
        if pair.count >= 2 || pair.target.is_some() {
            return Err("Snapshot cow pairing for exception table handover failed");
        }
        if member.merge && members.iter().any(|other| other.merge) {
            return Err("A snapshot is already merging.");
        }
        let handover = pair.source.is_some();
        let snapshot = pair.source.and_then(|source| source.snapshot());
        if member.merge && snapshot.is_some_and(|snapshot| !snapshot.persistent) {
            return Err("Snapshot exception store does not support snapshot-merge.");
        }
        members.push(member.clone());
        Ok(handover)
    }

    /// Takes a line off. One that waits for its snapshot gets none.
    pub fn unregister(&self, member: &Arc<Member>) {
        let mut members = self.members.write();
        let pair = pair_of(&members, member.cow);
        if let (Some(source), Some(target)) = (pair.source, pair.target)
            && Arc::ptr_eq(source, member)
        {
            tracing::error!(
                "snapshot: the line that was to take a snapshot over gets none: its source has gone"
            );
            target.cancelled.store(true, SeqCst);
        }
        members.retain(|other| !Arc::ptr_eq(other, member));
    }

    /// Whether a line may be resumed; why not.
    pub fn check_resume(&self, member: &Arc<Member>) -> Result<(), &'static str> {
        let members = self.members.read();
        let pair = pair_of(&members, member.cow);
        match (pair.source, pair.target) {
            (Some(source), Some(_)) if Arc::ptr_eq(source, member) => {
                Err("Unable to resume snapshot source until handover completes.")
            }
            (Some(source), Some(_)) if !source.suspended.load(SeqCst) => {
                Err("Unable to perform snapshot handover until source is suspended.")
            }
            _ => Ok(()),
        }
    }

    /// The snapshot that a line has, or will take over.
    pub fn snapshot_for(&self, member: &Arc<Member>) -> Option<Arc<Snapshot>> {
        let members = self.members.read();
        let source = pair_of(&members, member.cow).source;
        member.snapshot().or_else(|| source?.snapshot())
    }

    /// A line is live now: it takes over the snapshot that it waits for, and exceptions are made.
    pub fn resume(&self, member: &Arc<Member>) {
        // With the lock for writing no write to the origin is being looked at.
        let members = self.members.write();
        let pair = pair_of(&members, member.cow);
        if let (Some(source), Some(target)) = (pair.source, pair.target) {
            match source.slot.swap(None) {
                Some(held) => {
                    held.0.adopt(target.devices.clone(), target.event.clone());
                    target.slot.store(Some(held));
                }
                None => target.cancelled.store(true, SeqCst),
            }
        }
        member.active.store(true, SeqCst);
        member.suspended.store(false, SeqCst);
        if member.merge
            && let Some(snapshot) = member.snapshot()
        {
            snapshot.push(Event::StartMerge);
        }
        drop(members);
    }

    /// A write to the origin, `to`: given back when it may go now; otherwise it goes by itself when all snapshots have what it
    /// overwrites.
    pub fn write(&self, io: Io, to: &Arc<dyn BlockDevice>) -> Option<Io> {
        let (begin, end) = (io.sector, io.end());
        {
            let members = self.members.read();
            if !members.iter().any(|member| concerns(member, begin)) {
                return Some(io);
            }
        }
        let mut waiting = Some(Waiting::Write(io, to.clone()));
        self.protect(begin, end, &mut waiting);
        match waiting {
            Some(Waiting::Write(io, _)) => Some(io),
            _ => None,
        }
    }

    /// Makes exceptions for a stretch of the origin in every snapshot that is not merging. Whether there is something to wait for;
    /// `waiting` is left with it.
    pub fn protect(&self, begin: Sector, end: Sector, waiting: &mut Option<Waiting>) -> bool {
        let mut starts = Vec::new();
        let mut must_wait = false;
        {
            let members = self.members.read();
            for member in members.iter().filter(|member| concerns(member, begin)) {
                let held = member.slot.load();
                let Some(snapshot) = held.as_ref().map(|held| &held.0) else {
                    continue;
                };
                let last = Sector(end.min(member.end).raw() - 1);
                let chunks = (snapshot.chunk_of(begin), snapshot.chunk_of(last));
                must_wait |= snapshot.protect(chunks, waiting, &mut starts);
            }
        }
        for start in starts {
            start.go();
        }
        must_wait
    }
}

/// Whether a write to the origin at `begin` may need an exception for this line.
fn concerns(member: &Member, begin: Sector) -> bool {
    !member.merge && member.is_active() && begin < member.end
}

/// What waited may go, if nothing else holds it.
pub(super) fn go_on(origin: &Origin, waiting: Waiting) {
    match waiting {
        Waiting::Write(io, to) => {
            if let Some(io) = origin.write(io, &to) {
                to.submit(io);
            }
        }
        Waiting::Fail(io) => io.complete(BlkStatus::IoErr),
        Waiting::Merge(snapshot) => snapshot.wake(),
    }
}
