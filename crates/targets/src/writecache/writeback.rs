//! Writing back: which blocks go to the origin, when, and what becomes of them.

use std::sync::Arc;
use std::time::Duration;

use thinmap_dm::kit::{CopyRequest, CopySource};
use thinmap_units::{BlkStatus, Sector};

use super::shared::{Pace, Shared};
use super::state::State;
use super::worker::Progress;

/// Blocks in one copy.
const RUN_MAX: u64 = 256;
/// Copies under way at once.
const COPIES_MAX: usize = 64;
/// Blocks looked at for the next ones to copy.
const WALK_MAX: usize = 1024;
/// A pause is looked at again after this time at the latest.
const PAUSE_STEP: Duration = Duration::from_secs(1);

/// Blocks of the cache that lie one after another, there and on the origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    sector: u64,
    index: u32,
    blocks: u32,
}

/// A run that has been copied, or not.
pub(super) struct Copied {
    index: u32,
    blocks: u32,
    well: bool,
}

/// What a look at the cache has led to.
enum Pick {
    Runs(Vec<Run>),
    /// The next one is not committed.
    Commit,
}

impl Shared {
    /// Starts copies of what is to be written back; whether any, or there is more to do at once.
    pub fn write_back(self: &Arc<Self>, progress: &mut Progress, now: Duration) -> bool {
        progress.again_at = None;
        let below = progress.asked.iter().filter_map(|(below, _)| *below).max();
        let picked = {
            let mut state = self.state.lock();
            if state.failed {
                state.is_draining = false;
                return false;
            }
            if below.is_none() {
                match state.background(&self.pace, now) {
                    Background::Now => {}
                    Background::At(at) => {
                        progress.again_at = at;
                        return false;
                    }
                }
            }
            self.pick(&mut state, below, now)
        };
        match picked {
            Pick::Commit => {
                self.commit();
                true
            }
            Pick::Runs(runs) => {
                let any = !runs.is_empty();
                runs.into_iter().for_each(|run| self.copy(run));
                any
            }
        }
    }

    fn pick(&self, state: &mut State, below: Option<u64>, now: Duration) -> Pick {
        let mut runs: Vec<Run> = Vec::new();
        let block = self.geometry.block_sectors();
        let mut next = state.entries.oldest();
        state.skipped = false;
        for _ in 0..WALK_MAX {
            let Some(index) = next else {
                state.is_draining = false;
                break;
            };
            let entry = state.entries[index];
            let wanted = below.is_some_and(|below| entry.seq < below)
                || state.room() <= state.marks[1]
                || expiry(&self.pace, entry.since, now).is_some_and(|left| left == Duration::ZERO);
            if !wanted {
                state.is_draining = false;
                break;
            }
            let jobs = self.pace.jobs.unwrap_or(u64::MAX);
            if state.copies + runs.len() >= COPIES_MAX || state.writeback >= jobs {
                break;
            }
            if !state.is_committed(index) {
                if runs.is_empty() {
                    return Pick::Commit;
                }
                break;
            }
            if !entry.is_settled() {
                state.skipped |= entry.writers > 0;
                next = state.entries.later(index);
                continue;
            }
            let seq = state.seq;
            let max = RUN_MAX.min(jobs - state.writeback);
            let settled = |entry: &super::entries::Entry| entry.is_settled() && entry.seq < seq;
            let at = (entry.sector, index);
            let blocks = state.entries.run(at, block, max, settled);
            // Those behind may be of the run: look for the next one anew.
            for index in index..index + blocks {
                state.entries.begin_leaving(index);
            }
            state.writeback += u64::from(blocks);
            runs.push(Run {
                sector: entry.sector,
                index,
                blocks,
            });
            next = state.entries.oldest();
        }
        state.copies += runs.len();
        runs.sort_unstable_by_key(|run| run.sector);
        Pick::Runs(runs)
    }

    fn copy(self: &Arc<Self>, run: Run) {
        let from = Sector(run.sector);
        // COMPAT: what lies beyond the origin's end is forgotten.
        let room = self.origin.size().raw().saturating_sub(run.sector);
        let len = (u64::from(run.blocks) * self.geometry.block_sectors()).min(room);
        let shared = self.clone();
        let copied = move |status: BlkStatus| {
            shared.state.lock().inbox.copied.push(Copied {
                index: run.index,
                blocks: run.blocks,
                well: status.is_ok(),
            });
            shared.wake();
        };
        if len == 0 {
            return copied(BlkStatus::Ok);
        }
        let source = CopySource::Device(self.cache.clone(), self.geometry.block_at(run.index));
        let request = CopyRequest {
            to: self.origin.clone(),
            to_sector: from,
            segments: vec![(Sector(len), source)],
            overlay: None,
        };
        self.copier
            .start(request, Box::new(move |status, _| copied(status)));
    }

    /// Copies have ended: their blocks are free when the origin has what they held.
    pub fn end_copies(&self, copied: &[Copied]) {
        // CRASH: what was copied is durable on the origin before its entry is cleared.
        let flushed = self.flush_origin();
        if copied.iter().any(|run| !run.well) {
            self.fail("copy error");
        }
        let blocks: Vec<u32> = copied
            .iter()
            .flat_map(|run| run.index..run.index + run.blocks)
            .collect();
        if flushed && !self.state.lock().failed {
            self.clear(&blocks);
        } else {
            let mut state = self.state.lock();
            for index in &blocks {
                state.entries[*index].leaving = false;
            }
        }
        let mut state = self.state.lock();
        state.writeback -= blocks.len() as u64;
        state.copies -= copied.len();
        state.verify_watermark();
    }
}

/// Whether blocks are written back that nobody has asked for.
enum Background {
    Now,
    /// Not before this time, unless something happens.
    At(Option<Duration>),
}

impl State {
    fn background(&self, pace: &Pace, now: Duration) -> Background {
        if !self.is_running {
            return Background::At(None);
        }
        let oldest = self.entries.oldest();
        let left = oldest.and_then(|index| expiry(pace, self.entries[index].since, now));
        if !self.is_draining && left != Some(Duration::ZERO) {
            return Background::At(left.map(|left| now + left));
        }
        let idle = match self.around_ended {
            _ if self.around > 0 => Duration::ZERO,
            Some(ended) => now.saturating_sub(ended),
            None => pace.pause,
        };
        if idle < pace.pause && !self.cleaner {
            return Background::At(Some(now + PAUSE_STEP.min(pace.pause - idle)));
        }
        Background::Now
    }
}

/// How long an entry may stay; `None` for ever.
///
/// COMPAT: a sixteenth sooner than said.
fn expiry(pace: &Pace, since: u32, now: Duration) -> Option<Duration> {
    let max = pace.max_age?.as_millis() as u32;
    let age = (now.as_millis() as u32).wrapping_sub(since);
    let left = (max - max / 16).saturating_sub(age);
    Some(Duration::from_millis(u64::from(left)))
}
