//! Work on all cores whose results are wanted in order.
//!
//! INVARIANT: at most [`WINDOW`] pieces of work for each thread are begun and not yet consumed, which bounds
//! the memory that waits for a slow piece or a slow consumer.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Pieces of work under way for each thread.
const WINDOW: u64 = 4;

/// How many threads work.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

struct Queue<I, R, E> {
    jobs: I,
    /// The number of the next job.
    next: u64,
    /// How many results were taken.
    taken: u64,
    /// Results that wait for their turn.
    done: BTreeMap<u64, Result<R, E>>,
    /// No more jobs come, or are wanted.
    ended: bool,
    /// A worker panicked: its result never comes.
    broken: bool,
}

struct Shared<I, R, E> {
    queue: Mutex<Queue<I, R, E>>,
    changed: Condvar,
}

impl<I, R, E> Shared<I, R, E> {
    fn lock(&self) -> MutexGuard<'_, Queue<I, R, E>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, Queue<I, R, E>>) -> MutexGuard<'a, Queue<I, R, E>> {
        self.changed
            .wait(guard)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

/// Tells the others when its worker panics.
struct Sentinel<'a, I, R, E>(&'a Shared<I, R, E>);

impl<I, R, E> Drop for Sentinel<'_, I, R, E> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().broken = true;
            self.0.end();
        }
    }
}

/// Does `work` on each of `jobs` on all cores, and gives the results to `consume` on this thread in the order
/// of the jobs. The first error, of a job or of `consume`, ends it.
///
/// # Errors
/// That error.
///
/// # Panics
/// When `work` does.
pub fn ordered<J, R, E, I>(
    jobs: I,
    work: impl Fn(J) -> Result<R, E> + Sync,
    mut consume: impl FnMut(R) -> Result<(), E>,
) -> Result<(), E>
where
    I: Iterator<Item = Result<J, E>> + Send,
    R: Send,
    E: Send,
{
    let threads = threads();
    let shared = Shared {
        queue: Mutex::new(Queue {
            jobs,
            next: 0,
            taken: 0,
            done: BTreeMap::new(),
            ended: false,
            broken: false,
        }),
        changed: Condvar::new(),
    };
    let window = WINDOW * threads as u64;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| worker(&shared, window, &work));
        }
        let outcome = consume_all(&shared, &mut consume);
        shared.end();
        outcome
    })
}

fn worker<J, R, E, I>(
    shared: &Shared<I, R, E>,
    window: u64,
    work: &(impl Fn(J) -> Result<R, E> + Sync),
) where
    I: Iterator<Item = Result<J, E>> + Send,
{
    let _sentinel = Sentinel(shared);
    loop {
        let mut queue = shared.lock();
        while !queue.ended && queue.next - queue.taken >= window {
            queue = shared.wait(queue);
        }
        if queue.ended {
            return;
        }
        let Some(job) = queue.jobs.next() else {
            drop(queue);
            shared.end();
            return;
        };
        let number = queue.next;
        queue.next += 1;
        // A job that could not be made is the last.
        queue.ended |= job.is_err();
        drop(queue);
        let result = job.and_then(work);
        shared.lock().done.insert(number, result);
        shared.changed.notify_all();
    }
}

fn consume_all<R, E, I>(
    shared: &Shared<I, R, E>,
    consume: &mut impl FnMut(R) -> Result<(), E>,
) -> Result<(), E> {
    loop {
        let mut queue = shared.lock();
        let result = loop {
            let turn = queue.taken;
            if let Some(result) = queue.done.remove(&turn) {
                break result;
            }
            if queue.broken || queue.ended && queue.taken == queue.next {
                return Ok(());
            }
            queue = shared.wait(queue);
        };
        queue.taken += 1;
        drop(queue);
        shared.changed.notify_all();
        consume(result?)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        let jobs = (0..1000_u64).map(Ok::<_, String>);
        let mut seen = Vec::new();
        let work = |n: u64| {
            if n.is_multiple_of(7) {
                std::thread::yield_now();
            }
            Ok(n * 2)
        };
        ordered(jobs, work, |n| {
            seen.push(n);
            Ok(())
        })
        .expect("no error");
        assert_eq!(seen, (0..1000).map(|n| n * 2).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_error_ends_it_whoever_makes_it() {
        let run = |jobs: Vec<Result<u64, String>>, bad_work, bad_consume| {
            let mut seen = 0;
            let work = |n| match n == bad_work {
                true => Err(format!("work {n}")),
                false => Ok(n),
            };
            let ended = ordered(jobs.into_iter(), work, |n| {
                seen += 1;
                match n == bad_consume {
                    true => Err(format!("consume {n}")),
                    false => Ok(()),
                }
            });
            (ended, seen)
        };
        let good = || (0..50).map(Ok).collect::<Vec<_>>();
        assert_eq!(run(good(), 99, 99), (Ok(()), 50));
        assert_eq!(run(good(), 20, 30), (Err("work 20".to_owned()), 20));
        assert_eq!(run(good(), 40, 30), (Err("consume 30".to_owned()), 31));
        let mut bad = good();
        bad[10] = Err("job".to_owned());
        assert_eq!(run(bad, 99, 99), (Err("job".to_owned()), 10));
        assert_eq!(run(Vec::new(), 99, 99), (Ok(()), 0));
    }
}
