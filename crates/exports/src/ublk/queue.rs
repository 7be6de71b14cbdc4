//! A queue thread's work: commands to the driver and back. One thread serves one queue of every device.
//!
//! INVARIANT: for each tag of a served queue there is at any time exactly one of: a command in the kernel, a request
//! that a device works on (or that waits for memory), a result in the inbox, or nothing more because the kernel has
//! given the tag's command back with an error. A queue ends when the last is true of all its tags.
//!
//! COMPAT: the driver takes a queue's commands from one thread only, the one that fetched first.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;

use rustix::io::Errno;
use thinmap_block::{QueueHandler, Turn};

use super::abi::{QueueCommand, queue};
use super::driver::{Commands, Descriptors};
use super::lane::{Attach, Attached, Inbox, Lane};
use super::request::QueueSink;
use crate::fuse::Buffers;

/// One queue thread's handler.
pub(super) struct Queue {
    lane: Arc<Lane>,
    /// `None` when it could not be made: the thread ends at once.
    commands: Option<Box<dyn Commands>>,
    buffers: Buffers,
    /// Served queues; a slot's number is part of `user_data`.
    slots: Vec<Option<Slot>>,
    inbox: Inbox,
    results: Vec<(u64, i32)>,
    /// Slot and tag of requests that wait for memory.
    waiting: VecDeque<(u32, u16)>,
}

struct Slot {
    sink: Arc<QueueSink>,
    descriptors: Box<dyn Descriptors>,
    /// Tags whose commands the kernel has not given back for good.
    live_tags: u16,
    ended_tags: Vec<bool>,
    error: Option<Errno>,
    /// The last field: it tells when all others have been let go.
    attached: TellsEnd,
}

struct TellsEnd(Arc<Attached>);

impl Drop for TellsEnd {
    fn drop(&mut self) {
        self.0.ended();
    }
}

impl Queue {
    pub(super) fn new(lane: Arc<Lane>, commands: Option<Box<dyn Commands>>) -> Self {
        Self {
            lane,
            commands,
            buffers: Buffers::new(),
            slots: Vec::new(),
            inbox: Inbox::default(),
            results: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Fetches all tags of a new queue; its slot.
    fn attach(&mut self, attach: Attach) -> Option<usize> {
        let descriptors = match attach.device.descriptors(attach.queue, attach.depth) {
            Ok(descriptors) => descriptors,
            Err(errno) => {
                attach.attached.serving(Err(errno));
                attach.attached.ended();
                return None;
            }
        };
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let sink = Arc::new(QueueSink {
            lane: self.lane.clone(),
            slot: u32::try_from(slot).expect("fewer queues than a process has descriptors"),
            device: attach.device,
            queue: attach.queue,
            behind: attach.behind,
        });
        self.slots[slot] = Some(Slot {
            sink,
            descriptors,
            live_tags: attach.depth,
            ended_tags: vec![false; usize::from(attach.depth)],
            error: None,
            attached: TellsEnd(attach.attached),
        });
        for tag in 0..attach.depth {
            self.send(slot, tag, queue::FETCH, 0);
        }
        Some(slot)
    }

    fn send(&mut self, slot: usize, tag: u16, op: u32, result: i32) {
        let (Some(commands), Some(Some(served))) = (&mut self.commands, self.slots.get(slot))
        else {
            return;
        };
        let command = QueueCommand {
            queue: served.sink.queue,
            tag,
            result,
            addr: 0,
        };
        commands.push(
            &*served.sink.device,
            op,
            command,
            (slot as u64) << 16 | u64::from(tag),
        );
    }

    /// A command has come back: with a request, or for good.
    fn came_back(&mut self, slot: usize, tag: u16, result: i32) {
        let Some(Some(served)) = self.slots.get_mut(slot) else {
            return tracing::error!(slot, tag, "ublk: a command of no queue came back");
        };
        if result == 0 {
            self.waiting.push_back((served.sink.slot, tag));
            return;
        }
        match served.ended_tags.get_mut(usize::from(tag)) {
            Some(ended) if !*ended => *ended = true,
            _ => return tracing::error!(slot, tag, "ublk: a command came back twice"),
        }
        let errno = Errno::from_raw_os_error(result.saturating_neg().max(1));
        // NODEV: the device is being stopped.
        if errno != Errno::NODEV {
            tracing::error!(tag, %errno, "ublk: the driver refused a command");
        }
        served.error.get_or_insert(errno);
        served.live_tags -= 1;
        if served.live_tags == 0 {
            self.slots[slot] = None;
        }
    }

    /// Starts requests while there is memory for them.
    fn start_waiting(&mut self) {
        while !self.lane.is_full()
            && let Some((slot, tag)) = self.waiting.pop_front()
        {
            if let Some(Some(served)) = self.slots.get(slot as usize) {
                let descriptor = served.descriptors.read(tag);
                served.sink.start(tag, &descriptor, &self.buffers);
            }
        }
    }

    fn exchange(&mut self) {
        let mut results = std::mem::take(&mut self.results);
        if let Some(commands) = &mut self.commands {
            commands.submit();
            commands.reap(&mut results);
        }
        for (user_data, result) in results.drain(..) {
            let slot = usize::try_from(user_data >> 16).unwrap_or(usize::MAX);
            self.came_back(slot, (user_data & u64::from(u16::MAX)) as u16, result);
        }
        self.results = results;
    }
}

impl QueueHandler for Queue {
    fn turn(&mut self) -> Turn {
        if self.commands.is_none() {
            return Turn::Stop;
        }
        self.lane.swap(&mut self.inbox);
        let mut inbox = std::mem::take(&mut self.inbox);
        for (slot, tag, result) in inbox.ended.drain(..) {
            self.send(slot as usize, tag, queue::COMMIT_AND_FETCH, result);
        }
        let attached: Vec<_> = inbox
            .attach
            .drain(..)
            .filter_map(|attach| self.attach(attach))
            .collect();
        self.inbox = inbox;
        self.exchange();
        for slot in attached {
            // A fetch that the driver refuses comes back from its submission; a queue that is gone has said so.
            if let Some(served) = &self.slots[slot] {
                served.attached.0.serving(served.error.map_or(Ok(()), Err));
            }
        }
        let started = !self.waiting.is_empty() && !self.lane.is_full();
        self.start_waiting();
        if self.lane.is_closing() {
            if self.slots.iter().any(Option::is_some) {
                tracing::error!("ublk: a queue thread ends while the driver keeps its commands");
            }
            return Turn::Stop;
        }
        if started { Turn::Again } else { Turn::Idle }
    }

    fn poll(&self, out: &mut Vec<(RawFd, i16)>) {
        if let Some(commands) = &self.commands {
            out.push((commands.raw_fd(), libc::POLLIN));
        }
    }
}
