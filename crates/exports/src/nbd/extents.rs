//! Block-status requests: looking up what is allocated may read metadata, and a queue thread must not wait for that. Threads of
//! their own do ([`super::askers`]).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thinmap_block::{BlockDevice, Extent};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::protocol::{STATE_HOLE, STATE_ZERO};
use super::queue::ConnectionSink;

/// One question.
pub struct ExtentsQuery {
    /// The device asked about.
    pub device: Arc<dyn BlockDevice>,
    /// First sector.
    pub start: Sector,
    /// How far; at least one sector, below 4 GiB.
    pub len: Sector,
    /// Only the first run is wanted.
    pub one: bool,
    /// Who is told.
    pub sink: Arc<ConnectionSink>,
    /// The request's slot on the connection.
    pub slot: u64,
    /// Shared with the connection.
    pub answer: Arc<Answer>,
}

/// Whether a question is over: it was answered, or who asked has given it up. What comes first counts.
#[derive(Default)]
pub struct Answer(AtomicBool);

impl Answer {
    /// `true` for the first that gives it: then nobody else will.
    pub fn give(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// Whether somebody has.
    pub fn is_given(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl ExtentsQuery {
    /// Asks the device and tells who wants to know. `extents` is only kept for its memory.
    pub fn answer(self, extents: &mut Vec<Extent>) {
        if self.answer.is_given() {
            return;
        }
        extents.clear();
        // A panic of one device must not take the answers of all others with it.
        let asked = catch_unwind(AssertUnwindSafe(|| {
            self.device.extents(self.start, self.len, extents)
        }));
        let result = asked
            .unwrap_or(Err(BlkStatus::IoErr))
            .and_then(|()| descriptors(extents, self.len, self.one));
        self.tell(result);
    }

    /// Nobody can ask the device.
    pub fn fail(self) {
        self.tell(Err(BlkStatus::IoErr));
    }

    fn tell(self, result: Result<IoBuf, BlkStatus>) {
        let (buf, status) = match result {
            Ok(buf) => (buf, BlkStatus::Ok),
            Err(status) => (IoBuf::empty(), status),
        };
        // The device goes before the answer does: an answered request must not keep it.
        drop(self.device);
        if self.answer.give() {
            self.sink.finished(self.slot, status, buf);
        }
    }
}

/// Wire form of the runs: neighbours of one kind joined, cut at `len`.
fn descriptors(extents: &[Extent], len: Sector, one: bool) -> Result<IoBuf, BlkStatus> {
    let mut joined: Vec<(u64, u32)> = Vec::new();
    let mut left = len.bytes();
    for extent in extents {
        let bytes = extent.sectors.bytes().min(left);
        if bytes == 0 {
            continue;
        }
        left -= bytes;
        let state = if extent.allocated { 0 } else { STATE_HOLE }
            | if extent.zeroes { STATE_ZERO } else { 0 };
        let full = joined.len() == if one { 1 } else { DESCRIPTORS_MAX };
        match joined.last_mut() {
            Some(last) if last.1 == state => last.0 += bytes,
            _ if full => break,
            _ => joined.push((bytes, state)),
        }
    }
    if joined.is_empty() {
        // The trait promises the first sector; a device that breaks it has failed the request.
        return Err(BlkStatus::IoErr);
    }
    let mut buf = IoBuf::alloc(joined.len() * 8);
    for (slot, (bytes, state)) in buf.as_mut_slice().chunks_exact_mut(8).zip(joined) {
        let bytes = u32::try_from(bytes).map_err(|_| BlkStatus::IoErr)?;
        slot[..4].copy_from_slice(&bytes.to_be_bytes());
        slot[4..].copy_from_slice(&state.to_be_bytes());
    }
    Ok(buf)
}

/// Descriptors in one reply; a client asks on from where the reply ends.
const DESCRIPTORS_MAX: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    fn run_of(sectors: u64, allocated: bool) -> Extent {
        Extent {
            sectors: Sector(sectors),
            allocated,
            zeroes: !allocated,
        }
    }

    #[test]
    fn neighbours_join_and_the_last_run_is_cut() {
        let runs = [run_of(8, true), run_of(8, true), run_of(100, false)];
        let buf = descriptors(&runs, Sector(24), false).expect("runs");
        assert_eq!(
            buf.as_slice(),
            [0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 3]
        );
        let buf = descriptors(&runs, Sector(24), true).expect("runs");
        assert_eq!(buf.as_slice(), [0, 0, 32, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_device_that_says_nothing_has_failed() {
        assert!(descriptors(&[], Sector(8), false).is_err());
    }
}
