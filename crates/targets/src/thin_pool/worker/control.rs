//! What control threads ask of the worker: messages, suspend, resume, growth.

use std::sync::atomic::Ordering::SeqCst;

use thinmap_dm::MessageError;
use thinmap_thin_metadata::{ErrorKind, PoolMetadata, Result};
use thinmap_units::{BlkStatus, DataBlock, MetaBlock, ThinId};

use super::changes::{Change, Unchanged};
use super::commit::AfterCommit;
use super::{Work, Worker};
use crate::thin::Port;
use crate::thin_pool::args::Features;
use crate::thin_pool::message::Message;
use crate::thin_pool::mode::Mode;
use crate::thin_pool::pool::Answer;
use crate::thin_pool::status::metadata_low_water;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EINVAL: i32 = 22;
const EBUSY: i32 = 16;
const EOPNOTSUPP: i32 = 95;

/// Why a table cannot take effect: the text and the errno.
pub(in crate::thin_pool) type Refusal = (String, i32);

/// What a table of the pool device asks of the pool when it becomes live.
#[derive(Clone, Copy)]
pub(in crate::thin_pool) struct Binding {
    pub features: Features,
    pub low_water: u64,
    pub data_blocks: u64,
    /// It has not been live before.
    pub is_new: bool,
}

/// Why a device could not be grown.
enum Unresized {
    Full(Refusal),
    Refused(Refusal),
}

impl From<Unresized> for Refusal {
    fn from(unresized: Unresized) -> Self {
        match unresized {
            Unresized::Full(refusal) | Unresized::Refused(refusal) => refusal,
        }
    }
}

/// COMPAT: the kernel's answer, also for modes that it does not name.
pub(in crate::thin_pool) fn not_in_this_mode() -> MessageError {
    let reason = "unable to service pool target messages in READ_ONLY or FAIL mode";
    MessageError::new(reason, EOPNOTSUPP)
}

impl Worker<'_> {
    pub(in crate::thin_pool) fn message(
        &mut self,
        message: Message,
        answer: Answer<std::result::Result<(), MessageError>>,
    ) {
        if !self.pool.mode().obeys(message) {
            return answer.give(Err(not_in_this_mode()));
        }
        if let Message::Delete(id) = message
            && self.pool.is_open(id)
        {
            let reason = format!("Deletion of thin device {id} failed: it is in use");
            return answer.give(Err(MessageError::new(reason, EBUSY)));
        }
        if message == Message::ReserveMetadataSnap {
            // The snapshot is of what is on disk, so that must be all there is.
            self.mark_dirty();
            self.commit();
        }
        let done = self.change_metadata(message);
        if let Err(unchanged) = done {
            return answer.give(Err(self.refused(message, unchanged)));
        }
        match message {
            Message::CreateThin(id) => {
                self.pool.forget_lost_changes(id);
                self.pool.add_unpromised(id);
            }
            Message::CreateSnap { new, .. } => self.pool.forget_lost_changes(new),
            Message::Delete(id) => self.pool.remove_unpromised(id),
            _ => {}
        }
        if let Message::CreateSnap { origin, new } = message
            && let Some(volume) = self.pool.volume_if_open(origin)
        {
            // The snapshot must not change under those who read it: writes that looked their block up before it was
            // taken are part of it, and are outwaited before it is announced.
            volume.unsettle();
            return self.when_drained(
                true,
                false,
                Box::new(move |worker| {
                    volume.settle();
                    worker.commit();
                    // Meanwhile the transaction may have been taken back.
                    let is_there = worker.pool.metadata.read().device_exists(new);
                    answer.give(match is_there {
                        Ok(false) => Err(worker.refused(message, Unchanged::Full)),
                        _ => Ok(()),
                    });
                }),
            );
        }
        // COMPAT: as in the kernel, the answer does not depend on the commit's outcome; the mode tells.
        self.commit();
        if self.pool.mode() == Mode::OutOfMetadataSpace && self.deletion_goes_on() {
            // Whoever deletes for room is answered when there is some.
            self.find_metadata_space();
        }
        answer.give(Ok(()));
    }

    fn change_metadata(&mut self, message: Message) -> std::result::Result<(), Unchanged> {
        let grows = |worker: &mut Self, change: &dyn Fn(&mut PoolMetadata) -> Result<()>| {
            let made = worker.change(Change::Grows, None, |m| Ok((change(m)?, Vec::new())));
            made.map(|_| ())
        };
        match message {
            Message::CreateThin(id) => grows(self, &|m| m.create_thin(id)),
            Message::CreateSnap { new, origin } => grows(self, &|m| m.create_snap(new, origin)),
            Message::ReserveMetadataSnap => grows(self, &PoolMetadata::reserve_metadata_snap),
            Message::Delete(id) => self.delete_volume(id),
            Message::ReleaseMetadataSnap => self.release_held_root(),
            Message::SetTransactionId { old, new } => {
                let set = |m: &mut PoolMetadata| Ok((m.set_transaction_id(old, new)?, Vec::new()));
                self.change(Change::Frees, None, set).map(|_| ())
            }
        }
    }

    /// A refusal changed nothing; a failure half-way ends the transaction.
    fn refused(&mut self, message: Message, unchanged: Unchanged) -> MessageError {
        let what = what(message);
        match unchanged {
            Unchanged::Full => MessageError::new(
                format!("{what}: the metadata device is full: delete volumes or let it grow"),
                ENOSPC,
            ),
            Unchanged::Failed => MessageError::new(format!("{what}: the metadata failed"), EIO),
            Unchanged::Metadata(error) => {
                use ErrorKind::{Corrupt, Io, NoSpace, Poisoned};
                if matches!(error.kind(), Io | Corrupt | NoSpace(_) | Poisoned) {
                    self.metadata_failed("message", &error);
                }
                MessageError::new(format!("{what}: {error}"), error.errno())
            }
        }
    }

    /// A table of the pool device becomes live: the kernel's `bind_control_target` and the two `maybe_resize`.
    pub(in crate::thin_pool) fn bind(
        &mut self,
        binding: Binding,
    ) -> std::result::Result<(), Refusal> {
        *self.pool.features.lock() = binding.features;
        self.pool.low_water.store(binding.low_water, SeqCst);
        // COMPAT: a new table leads out of the modes without space too, and the next allocation back if need be; the
        // same table once more leaves the mode as it is.
        let wanted = match binding.features.read_only {
            _ if !binding.is_new => self.pool.mode(),
            true => Mode::ReadOnly,
            false => Mode::Write,
        };
        self.set_mode(wanted);
        match self.grow(binding.data_blocks) {
            Ok(()) => Ok(()),
            // A failed pool still takes tables, or nothing that waits in it could ever end.
            Err(_) if self.pool.mode() == Mode::Fail => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }

    /// The kernel's two `maybe_resize`. In its order, unless the data device's new blocks need metadata that has grown too.
    fn grow(&mut self, data_blocks: u64) -> std::result::Result<(), Refusal> {
        let refused = match self.grow_data(data_blocks) {
            Err(Unresized::Full(refusal)) => Some(refusal),
            Err(Unresized::Refused(refusal)) => return Err(refusal),
            Ok(()) => None,
        };
        let grown = self.grow_metadata();
        match (refused, grown) {
            (None, Ok(_)) => Ok(()),
            (Some(_), Ok(true)) => self.grow_data(data_blocks).map_err(Refusal::from),
            (Some(refusal), _) => Err(refusal),
            (None, Err(unresized)) => Err(unresized.into()),
        }
    }

    fn grow_data(&mut self, blocks: u64) -> std::result::Result<(), Unresized> {
        let (now, needs_check) = self.sizes(|m| m.data_blocks().raw());
        let dev = self.pool.dev_no;
        if blocks < now {
            let reason = format!("pool target ({blocks} blocks) too small: expected {now}");
            return Err(Unresized::Refused((reason, EINVAL)));
        }
        if blocks == now {
            return Ok(());
        }
        if needs_check {
            tracing::error!(pool = %dev, "thin: unable to grow the data device until repaired");
            return Ok(());
        }
        if now > 0 {
            tracing::info!(pool = %dev, "thin: growing the data device from {now} to {blocks} blocks");
        }
        self.resize("resize the data device", |m| {
            m.resize_data(DataBlock(blocks))
        })
    }

    /// Whether there was something to grow, and it has.
    fn grow_metadata(&mut self) -> std::result::Result<bool, Unresized> {
        let (now, needs_check) = self.sizes(|m| m.metadata_blocks().raw());
        let size = self.pool.metadata.read().metadata_device_blocks().raw();
        let dev = self.pool.dev_no;
        if size < now {
            let reason = format!("metadata device ({size} blocks) too small: expected {now}");
            return Err(Unresized::Refused((reason, EINVAL)));
        }
        if size == now {
            return Ok(false);
        }
        if needs_check {
            tracing::error!(pool = %dev, "thin: unable to grow the metadata device until repaired");
            return Ok(false);
        }
        tracing::info!(pool = %dev, "thin: growing the metadata device from {now} to {size} blocks");
        if self.pool.mode() == Mode::OutOfMetadataSpace {
            self.set_mode(Mode::Write);
        }
        self.resize("resize the metadata device", |m| {
            m.resize_metadata(MetaBlock(size))
        })?;
        self.state.metadata_low_water = metadata_low_water(size);
        Ok(true)
    }

    /// A step of its own: metadata that is too full for it stays as it is.
    fn resize(
        &mut self,
        what: &str,
        resize: impl FnOnce(&mut PoolMetadata) -> Result<()>,
    ) -> std::result::Result<(), Unresized> {
        let resized = self.change_and_commit(Change::Frees, None, |m| Ok((resize(m)?, Vec::new())));
        match resized {
            Ok(_) => Ok(()),
            Err(Unchanged::Full) => {
                let reason = format!("cannot {what}: the metadata device is full: let it grow too");
                Err(Unresized::Full((reason, ENOSPC)))
            }
            Err(Unchanged::Failed) => {
                let reason = format!("cannot {what}: the metadata failed");
                Err(Unresized::Refused((reason, EIO)))
            }
            Err(Unchanged::Metadata(error)) => {
                let refusal = (format!("cannot {what}: {error}"), error.errno());
                self.metadata_failed(what, &error);
                Err(Unresized::Refused(refusal))
            }
        }
    }

    fn sizes(&self, of: impl Fn(&thinmap_thin_metadata::PoolMetadata) -> u64) -> (u64, bool) {
        let metadata = self.pool.metadata.read();
        (of(&metadata), metadata.needs_check())
    }

    /// The pool device is live: volumes' requests go on.
    pub(in crate::thin_pool) fn resume(&mut self) {
        self.rearm_low_water();
        self.pool.suspended.store(false, SeqCst);
        let paused = std::mem::take(&mut self.state.paused);
        for work in paused {
            self.take_in(work);
        }
        self.retry_all();
        self.look_for_deletions();
        // Where a new table brought no room the mode is soon what it was; a kernel finds that with its next commit.
        self.has_metadata_room();
    }

    /// The pool device is suspended: answers when nothing is on its way to the data device and all is committed.
    pub(in crate::thin_pool) fn quiesce(&mut self, answer: Answer<()>) {
        let state = &mut *self.state;
        let todo = state.todo.drain(..);
        state.paused.extend(todo);
        // The time-out runs while requests can be served only.
        state.no_space_since = None;
        self.when_drained(
            true,
            true,
            Box::new(move |worker| {
                let passes_down = |wait: &AfterCommit| matches!(wait, AfterCommit::PassDown(..));
                if worker.state.jobs > 0
                    || !worker.state.draining.is_empty()
                    || worker.state.after_commit.iter().any(passes_down)
                {
                    // A job that ended may have started another; look again.
                    return worker.quiesce_again(answer);
                }
                worker.mark_dirty_if_changed();
                worker.commit_or_flush();
                answer.give(());
            }),
        );
    }

    fn quiesce_again(&mut self, answer: Answer<()>) {
        let again: super::Continuation = Box::new(move |worker| worker.quiesce(answer));
        // Through the line of those who wait, so that other ends of jobs come first.
        self.state.draining.push(super::Draining {
            all: super::Wait::ToClose,
            shared: super::Wait::Nothing,
            then: again,
        });
    }

    /// Nobody who was told of success may lose it, but metadata can change without that, too.
    fn mark_dirty_if_changed(&self) {
        if self.pool.metadata.read().changed() {
            self.mark_dirty();
        }
    }

    /// A volume is suspended without flush: what it has waiting here goes back.
    pub(crate) fn requeue(&mut self, port: &Port) {
        let state = &mut *self.state;
        let mine = |work: &Work| std::ptr::eq(&**work.port(), port);
        let mut back = Vec::new();
        for list in [&mut state.retry, &mut state.paused] {
            back.extend(list.extract_if(.., |work| mine(work)));
        }
        let (todo, keep): (Vec<_>, Vec<_>) = state.todo.drain(..).partition(mine);
        state.todo.extend(keep);
        back.extend(todo);
        for work in back {
            work.end(BlkStatus::Requeue);
        }
    }

    /// For status lines: what they count is committed first, as in the kernel.
    pub(in crate::thin_pool) fn commit_for_status(&mut self) {
        if self.pool.mode().may_commit() {
            self.mark_dirty_if_changed();
            self.commit();
        }
    }

    /// Whether a volume is there to be opened, and whether it holds anything.
    pub(crate) fn find_volume(&self, id: ThinId) -> Result<u64> {
        self.pool.metadata.read().mapped_blocks(id)
    }
}

fn what(message: Message) -> String {
    match message {
        Message::CreateThin(id) => {
            format!("Creation of new thinly-provisioned device with id {id} failed.")
        }
        Message::CreateSnap { new, origin } => {
            format!("Creation of new snapshot {new} of device {origin} failed.")
        }
        Message::Delete(id) => format!("Deletion of thin device {id} failed."),
        Message::SetTransactionId { old, new } => {
            format!("Failed to change transaction id from {old} to {new}.")
        }
        Message::ReserveMetadataSnap => "reserve_metadata_snap message failed.".to_owned(),
        Message::ReleaseMetadataSnap => "release_metadata_snap message failed.".to_owned(),
    }
}
