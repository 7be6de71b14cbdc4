//! Path selectors: which of a group's working paths takes the next request.
//!
//! The kernel keeps a list of working paths and moves the one it took to the end. Here each path has the number of its last turn, and the
//! list is the order of these: no lock is taken to choose.
//!
//! INVARIANT: no two paths of a group have the same turn, and a turn is only ever taken by who saw the path's last one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use smallvec::SmallVec;
use thinmap_dm::StatusKind;
use thinmap_runtime::Clock;

use super::history::{History, Weights};
use super::path::Path;
use crate::args::scan_u32;

/// How a group chooses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Selector {
    RoundRobin,
    QueueLength,
    ServiceTime,
    HistoricalServiceTime { base_weight: u32, threshold: u32 },
}

/// What a table line says of one path, for its selector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PathArguments {
    /// Requests before the next path has its turn. Only told again: above one it was given up by the kernel.
    pub(super) repeat_count: u32,
    /// Relative throughput, 0 to 100; 0 is used only where all are.
    pub(super) throughput: u32,
}

impl Selector {
    pub(super) const NAMES: [&str; 4] = [
        "round-robin",
        "queue-length",
        "service-time",
        "historical-service-time",
    ];

    pub(super) fn name(self) -> &'static str {
        let [round_robin, queue_length, service_time, historical] = Self::NAMES;
        match self {
            Self::RoundRobin => round_robin,
            Self::QueueLength => queue_length,
            Self::ServiceTime => service_time,
            Self::HistoricalServiceTime { .. } => historical,
        }
    }

    /// Whether it wants to know how long requests take.
    pub(super) fn is_timed(self) -> bool {
        matches!(self, Self::HistoricalServiceTime { .. })
    }

    /// `None` when the selector is not known or its arguments are wrong. COMPAT: all but one look at none.
    pub(super) fn parse(name: &str, words: &[String]) -> Option<Self> {
        match name {
            "round-robin" => Some(Self::RoundRobin),
            "queue-length" => Some(Self::QueueLength),
            "service-time" => Some(Self::ServiceTime),
            "historical-service-time" => {
                let (base, threshold) = match words {
                    [] => (Weights::BASE_DEFAULT, 0),
                    [base] => (scan_u32(base)?, 0),
                    [base, threshold] => (scan_u32(base)?, scan_u32(threshold)?),
                    _ => return None,
                };
                (base < Weights::ONE).then_some(Self::HistoricalServiceTime {
                    base_weight: base,
                    threshold,
                })
            }
            _ => None,
        }
    }

    /// A path's arguments, or what is wrong with them.
    pub(super) fn path_arguments(self, words: &[String]) -> Result<PathArguments, String> {
        let wrong = |what: &str| Err(format!("{} ps: {what}", self.name()));
        let most = match self {
            Self::ServiceTime => 2,
            _ => 1,
        };
        if words.len() > most {
            return wrong("incorrect number of arguments");
        }
        let mut arguments = PathArguments {
            repeat_count: 1,
            throughput: 1,
        };
        if let Some(word) = words.first() {
            let Some(count) = scan_u32(word) else {
                return wrong("invalid repeat count");
            };
            arguments.repeat_count = count.min(1);
        }
        if let Some(word) = words.get(1) {
            let Some(throughput) = scan_u32(word).filter(|value| *value <= THROUGHPUT_MAX) else {
                return wrong("invalid relative_throughput value");
            };
            arguments.throughput = throughput;
        }
        Ok(arguments)
    }

    /// The selector's own arguments with their count, as status and table lines have them.
    pub(super) fn words(self) -> String {
        match self {
            Self::HistoricalServiceTime {
                base_weight,
                threshold,
            } => format!("2 {base_weight} {threshold} "),
            _ => "0 ".to_owned(),
        }
    }

    /// How many words [`Ring::path_words`] gives for a path.
    pub(super) fn path_word_count(self, kind: StatusKind) -> u32 {
        match (kind, self) {
            (StatusKind::Info, Self::RoundRobin) => 0,
            (StatusKind::Info, Self::HistoricalServiceTime { .. }) => 3,
            (_, Self::ServiceTime) => 2,
            _ => 1,
        }
    }
}

/// A selector at work on one group's paths.
pub(super) struct Ring {
    pub(super) selector: Selector,
    weights: Weights,
    clock: Arc<dyn Clock>,
    /// Paths that work.
    active: AtomicUsize,
    /// The next turn.
    back: AtomicU64,
    /// One above the turn of a path that goes first.
    front: AtomicU64,
}

impl Ring {
    /// For `paths` paths, whose first turns are their indices from [`Ring::first_turn`].
    pub(super) fn new(selector: Selector, paths: usize, clock: Arc<dyn Clock>) -> Self {
        let base_weight = match selector {
            Selector::HistoricalServiceTime { base_weight, .. } => base_weight,
            _ => 0,
        };
        Self {
            selector,
            weights: Weights::new(base_weight),
            clock,
            active: AtomicUsize::new(paths),
            back: AtomicU64::new(MIDDLE + paths as u64),
            front: AtomicU64::new(MIDDLE),
        }
    }

    pub(super) fn first_turn(index: usize) -> u64 {
        MIDDLE + index as u64
    }

    /// Nanoseconds of the clock.
    fn now(&self) -> u64 {
        u64::try_from(self.clock.now().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A path stopped working.
    pub(super) fn left(&self) {
        self.active.fetch_sub(1, Ordering::SeqCst);
    }

    /// A path works again: its turn. COMPAT: round-robin puts it first, the others last.
    pub(super) fn joined(&self) -> u64 {
        self.active.fetch_add(1, Ordering::SeqCst);
        match self.selector {
            Selector::RoundRobin => self.front.fetch_sub(1, Ordering::SeqCst) - 1,
            _ => self.back.fetch_add(1, Ordering::SeqCst),
        }
    }

    /// Takes a working path for a request of so many bytes.
    pub(super) fn select<'a>(&self, paths: &'a [Arc<Path>], bytes: u64) -> Option<&'a Arc<Path>> {
        loop {
            let (turn, path) = match self.selector {
                Selector::RoundRobin => first(paths)?,
                _ => self.best(paths, bytes)?,
            };
            let next = self.back.fetch_add(1, Ordering::Relaxed);
            // Somebody else took it in between: it is his.
            if path.take_turn(turn, next) {
                return Some(path);
            }
        }
    }

    fn best<'a>(&self, paths: &'a [Arc<Path>], bytes: u64) -> Option<(u64, &'a Arc<Path>)> {
        let mut list: SmallVec<[(u64, &Arc<Path>); 8]> = paths
            .iter()
            .filter(|path| path.is_active())
            .map(|path| (path.turn(), path))
            .collect();
        list.sort_unstable_by_key(|(turn, _)| *turn);
        let now = match self.selector {
            Selector::HistoricalServiceTime { .. } => self.now(),
            _ => 0,
        };
        // The first of equals.
        list.into_iter().reduce(|best, next| {
            let is_better = self.is_better(&next.1.load, &best.1.load, bytes, now);
            if is_better { next } else { best }
        })
    }

    fn is_better(&self, one: &Load, other: &Load, bytes: u64, now: u64) -> bool {
        match self.selector {
            Selector::RoundRobin => false,
            Selector::QueueLength => one.in_flight() < other.in_flight(),
            Selector::ServiceTime => is_faster(one, other, bytes),
            Selector::HistoricalServiceTime { threshold, .. } => {
                let (one, other) = (one.history.lock().seen(), other.history.lock().seen());
                one.is_better(&other, threshold, now)
            }
        }
    }

    /// A request of so many bytes goes to a path; when, if that must be known at its end.
    pub(super) fn begin(&self, load: &Load, bytes: u64) -> Option<u64> {
        match self.selector {
            Selector::RoundRobin => None,
            Selector::QueueLength => {
                load.in_flight.fetch_add(1, Ordering::Relaxed);
                None
            }
            Selector::ServiceTime => {
                load.in_flight.fetch_add(bytes, Ordering::Relaxed);
                None
            }
            Selector::HistoricalServiceTime { .. } => {
                load.history.lock().begin();
                Some(self.now())
            }
        }
    }

    /// It has come back.
    pub(super) fn end(&self, load: &Load, bytes: u64) {
        match self.selector {
            Selector::QueueLength => load.in_flight.fetch_sub(1, Ordering::Relaxed),
            Selector::ServiceTime => load.in_flight.fetch_sub(bytes, Ordering::Relaxed),
            Selector::RoundRobin | Selector::HistoricalServiceTime { .. } => 0,
        };
    }

    /// It has come back, begun at `begun`.
    pub(super) fn end_timed(&self, load: &Load, begun: u64) {
        let active = self.active.load(Ordering::Relaxed) as u64;
        let now = self.now();
        load.history.lock().end(begun, now, &self.weights, active);
    }

    /// A path's words in a status or table line, each with a blank behind.
    pub(super) fn path_words(&self, load: &Load, kind: StatusKind) -> String {
        let PathArguments {
            repeat_count,
            throughput,
        } = load.arguments;
        match (kind, self.selector) {
            (StatusKind::Measurement, _) | (StatusKind::Info, Selector::RoundRobin) => {
                String::new()
            }
            (StatusKind::Info, Selector::QueueLength) => format!("{} ", load.in_flight()),
            (StatusKind::Info, Selector::ServiceTime) => {
                format!("{} {throughput} ", load.in_flight())
            }
            (StatusKind::Info, Selector::HistoricalServiceTime { .. }) => {
                let seen = load.history.lock().seen();
                format!("{} {} {} ", seen.time, seen.outstanding, seen.stale_after)
            }
            (StatusKind::Table, Selector::ServiceTime) => format!("{repeat_count} {throughput} "),
            // COMPAT: whatever it was.
            (StatusKind::Table, Selector::HistoricalServiceTime { .. }) => "0 ".to_owned(),
            (StatusKind::Table, _) => format!("{repeat_count} "),
        }
    }
}

/// What a selector knows of one path.
pub(super) struct Load {
    arguments: PathArguments,
    /// Requests of queue-length, bytes of service-time.
    in_flight: AtomicU64,
    history: parking_lot::Mutex<History>,
}

impl Load {
    pub(super) fn new(arguments: PathArguments) -> Self {
        Self {
            arguments,
            in_flight: AtomicU64::new(0),
            history: parking_lot::Mutex::new(History::new()),
        }
    }

    fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// The working path whose turn is the longest ago.
fn first(paths: &[Arc<Path>]) -> Option<(u64, &Arc<Path>)> {
    paths
        .iter()
        .filter(|path| path.is_active())
        .map(|path| (path.turn(), path))
        .min_by_key(|(turn, _)| *turn)
}

/// Whether a request of so many bytes would end sooner on `one`: all that is on its way there, and itself, by its throughput.
fn is_faster(one: &Load, other: &Load, bytes: u64) -> bool {
    let throughputs = [one, other].map(|load| u128::from(load.arguments.throughput));
    let loads = [one, other].map(|load| u128::from(load.in_flight()));
    let [one_rate, other_rate] = throughputs;
    let [one_load, other_load] = loads;
    if one_rate == other_rate {
        return one_load < other_load;
    }
    if one_load == other_load || throughputs.contains(&0) {
        return one_rate > other_rate;
    }
    let one_time = (one_load + u128::from(bytes)) * other_rate;
    let other_time = (other_load + u128::from(bytes)) * one_rate;
    one_time < other_time || (one_time == other_time && one_rate > other_rate)
}

const THROUGHPUT_MAX: u32 = 100;
/// Room for turns on both sides.
const MIDDLE: u64 = 1 << 63;
