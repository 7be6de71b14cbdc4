//! Many threads over disks that answer in any order.

use super::*;

/// Each thread owns every fourth cell, over disks that answer in any order, while members fail and are rebuilt.
#[test]
fn threads_that_write_at_once_see_their_own_writes() {
    for (seed, kind) in [
        Kind {
            level: 5,
            layout: 2,
            members: 4,
            chunk: 16,
            cache: 256,
        },
        Kind {
            level: 6,
            layout: 2,
            members: 6,
            chunk: 64,
            cache: 1,
        },
        Kind {
            level: 6,
            layout: 9,
            members: 5,
            chunk: 8,
            cache: 16,
        },
    ]
    .into_iter()
    .enumerate()
    {
        let lab = Lab::over(kind, ROWS, |disk| Delayed::start(disk, seed as u64));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|thread| {
                    let lab = &lab;
                    scope.spawn(move || owner(lab, thread))
                })
                .collect();
            let (lab, done) = (&lab, &done);
            scope.spawn(move || {
                let mut rng = SmallRng::seed_from_u64(99);
                while !done.load(SeqCst) {
                    let member = rng.random_range(0..kind.members);
                    lab.members.fail(member);
                    // It keeps what it had: reads that began before may still be under way.
                    lab.members
                        .member(member)
                        .set_rebuilding(Sector::ZERO, false);
                    lab.recover(&mut rng);
                }
            });
            let ends: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            done.store(true, SeqCst);
            assert!(ends.iter().all(Result::is_ok));
        });
        assert_eq!(lab.whole(SyncKind::Check), 0);
    }
}

fn owner(lab: &Lab, thread: u64) {
    const CELL: u64 = 3;
    let cells = lab.size / CELL;
    let mut rng = SmallRng::seed_from_u64(thread);
    let mut versions = vec![0_u8; cells as usize];
    for step in 0..400_u32 {
        let cell = rng.random_range(0..cells / 4) * 4 + thread;
        let at = cell * CELL;
        if rng.random() {
            let version = (step % 255 + 1) as u8;
            assert!(lab.write(at, &[version; CELL as usize * 512]).is_ok());
            versions[cell as usize] = version;
        }
        let found = lab.read(at..at + CELL).expect("enough is left");
        assert!(
            found.iter().all(|byte| *byte == versions[cell as usize]),
            "cell {cell}"
        );
    }
}

/// Answers on a thread of its own, in a shuffled order.
struct Delayed {
    below: Arc<dyn BlockDevice>,
    state: Arc<(Mutex<(Vec<Io>, bool)>, parking_lot::Condvar)>,
}

impl Delayed {
    fn start(below: Arc<dyn BlockDevice>, seed: u64) -> Arc<dyn BlockDevice> {
        let delayed = Self {
            below,
            state: Arc::default(),
        };
        let (below, state) = (delayed.below.clone(), delayed.state.clone());
        let mut rng = SmallRng::seed_from_u64(seed);
        std::thread::spawn(move || {
            loop {
                let io = {
                    let mut held = state.0.lock();
                    while held.0.is_empty() {
                        if held.1 {
                            return;
                        }
                        state.1.wait(&mut held);
                    }
                    let pick = rng.random_range(0..held.0.len());
                    held.0.swap_remove(pick)
                };
                below.submit(io);
            }
        });
        Arc::new(delayed)
    }
}

impl BlockDevice for Delayed {
    fn limits(&self) -> QueueLimits {
        self.below.limits()
    }

    fn size(&self) -> Sector {
        self.below.size()
    }

    fn submit(&self, io: Io) {
        self.state.0.lock().0.push(io);
        self.state.1.notify_one();
    }
}

impl Drop for Delayed {
    fn drop(&mut self) {
        self.state.0.lock().1 = true;
        self.state.1.notify_one();
    }
}
