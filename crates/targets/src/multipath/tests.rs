//! Whom a selector takes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use thinmap_block::backing::MemoryDevice;
use thinmap_dm::{DeviceId, DeviceName, DeviceUse, StatusKind};
use thinmap_runtime::Clock;
use thinmap_units::{DevNo, Sector};

use super::path::Path;
use super::selector::{Ring, Selector};

/// Nanoseconds that stand still.
#[derive(Default)]
struct StandingClock(AtomicU64);

impl Clock for StandingClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

struct Group {
    ring: Arc<Ring>,
    paths: Vec<Arc<Path>>,
    clock: Arc<StandingClock>,
}

impl Group {
    /// `words` are each path's arguments.
    fn new(name: &str, words: &[&str]) -> Self {
        let selector = Selector::parse(name, &[]).expect("a selector");
        let clock = Arc::new(StandingClock::default());
        let ring = Arc::new(Ring::new(selector, words.len(), clock.clone()));
        let path = |(index, words): (usize, &&str)| {
            let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            let dev_no = DevNo::new(7, index as u32);
            let device = DeviceUse {
                dev: Arc::new(MemoryDevice::new(Sector(8))),
                id: DeviceId::Block(dev_no),
                name: DeviceName::Number(dev_no),
                read_only: false,
                claim: Arc::new(()),
            };
            let arguments = selector.path_arguments(&words).expect("arguments");
            Path::new(device, arguments, index, &ring, Weak::new())
        };
        Self {
            paths: words.iter().enumerate().map(path).collect(),
            ring,
            clock,
        }
    }

    /// Index of the path that a request of so many bytes takes, which then has it.
    fn take(&self, bytes: u64) -> usize {
        let path = self.ring.select(&self.paths, bytes).expect("a path");
        self.ring.begin(&path.load, bytes);
        let at = |other: &Arc<Path>| Arc::ptr_eq(other, path);
        self.paths.iter().position(at).expect("one of the paths")
    }

    fn takes(&self, count: usize, bytes: u64) -> Vec<usize> {
        (0..count).map(|_| self.take(bytes)).collect()
    }
}

#[test]
fn round_robin_goes_round_and_begins_with_who_came_back() {
    let group = Group::new("round-robin", &["", "", ""]);
    assert_eq!(group.takes(4, 512), [0, 1, 2, 0]);
    assert!(group.paths[1].fail());
    assert!(!group.paths[1].fail());
    assert_eq!(group.takes(4, 512), [2, 0, 2, 0]);
    assert!(group.paths[1].reinstate());
    assert!(!group.paths[1].reinstate());
    assert_eq!(group.takes(4, 512), [1, 2, 0, 1]);
    for path in &group.paths {
        path.fail();
    }
    assert!(group.ring.select(&group.paths, 512).is_none());
    group.paths[0].reinstate();
    group.paths[2].reinstate();
    assert_eq!(group.takes(3, 512), [2, 0, 2]);
}

#[test]
fn queue_length_takes_the_shortest_and_of_equals_the_longest_unused() {
    let group = Group::new("queue-length", &["", "", ""]);
    assert_eq!(group.takes(6, 512), [0, 1, 2, 0, 1, 2]);
    group.ring.end(&group.paths[1].load, 512);
    group.ring.end(&group.paths[1].load, 512);
    assert_eq!(group.takes(3, 512), [1, 1, 0]);
    group.paths[0].fail();
    group.paths[0].reinstate();
    assert_eq!(group.takes(2, 512), [2, 1]);
}

#[test]
fn service_time_weighs_bytes_by_throughput() {
    let group = Group::new("service-time", &["1 1", "1 3", "1 0"]);
    // Three times as much for the second; nothing for the third while others work.
    let mut counts = [0; 3];
    for index in group.takes(400, 4096) {
        counts[index] += 1;
    }
    assert_eq!(counts, [100, 300, 0]);
    let words = |index: usize| {
        group
            .ring
            .path_words(&group.paths[index].load, StatusKind::Info)
    };
    assert_eq!(words(1), format!("{} 3 ", 300 * 4096));
    group.paths[0].fail();
    group.paths[1].fail();
    assert_eq!(group.takes(2, 4096), [2, 2]);
    // Of the same throughput: who has less to do, whatever comes.
    let equal = Group::new("service-time", &["", ""]);
    assert_eq!(equal.take(1 << 20), 0);
    assert_eq!(equal.takes(3, 4096), [1, 1, 1]);
}

#[test]
fn historical_service_time_learns_which_path_is_slow() {
    let group = Group::new("historical-service-time", &["", ""]);
    for (index, took) in [(0, 100_000), (1, 1_000_000)] {
        let load = &group.paths[index].load;
        let begun = group.ring.begin(load, 4096).expect("it is timed");
        group.clock.0.fetch_add(took, Ordering::SeqCst);
        group.ring.end_timed(load, begun);
    }
    // None is stale yet; the slow one gets a request for ten of the quick one.
    group.clock.0.fetch_sub(995_000, Ordering::SeqCst);
    let taken = group.takes(44, 4096);
    let slow = taken.iter().filter(|index| **index == 1).count();
    assert!((2..=6).contains(&slow), "{taken:?}");
    let words = group
        .ring
        .path_words(&group.paths[1].load, StatusKind::Info);
    assert_eq!(
        words.split_whitespace().nth(1),
        Some(slow.to_string().as_str())
    );
}

#[test]
fn threads_that_choose_at_once_share_the_paths_evenly() {
    let group = Group::new("round-robin", &["", "", "", ""]);
    let counts = [const { AtomicU64::new(0) }; 4];
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25_000 {
                    counts[group.take(512)].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let counts = counts.map(|count| count.load(Ordering::Relaxed));
    assert_eq!(counts.iter().sum::<u64>(), 100_000);
    // Who takes a path that had its turn later than another one's has seen an older state: rare, and it evens out.
    assert!(
        counts.iter().all(|count| (24_900..25_100).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn selectors_and_their_arguments() {
    let words =
        |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
    let historical = |text: &str| Selector::parse("historical-service-time", &words(text));
    assert_eq!(historical("").expect("defaults").words(), "2 972 0 ");
    assert_eq!(historical("1023 7").expect("both").words(), "2 1023 7 ");
    for wrong in ["1024", "x", "1 x", "1 2 3", "-1"] {
        assert!(historical(wrong).is_none(), "{wrong}");
    }
    assert!(Selector::parse("io-affinity", &[]).is_none());
    for name in Selector::NAMES {
        let selector = Selector::parse(name, &[]).expect("a selector");
        assert_eq!(selector.name(), name);
        let many = words("1 1 1");
        let wrong = selector.path_arguments(&many).expect_err("too many");
        assert_eq!(wrong, format!("{name} ps: incorrect number of arguments"));
    }
}
