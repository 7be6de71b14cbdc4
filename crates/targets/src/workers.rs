//! Threads that share the work of encrypting and hashing large requests.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use thinmap_dm::Environment;
use thinmap_runtime::{Actor, ActorHandle, NextTurn};

/// A part of some request's work; any thread may run it.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// The process's workers, started with the first device that needs them. One for each processor but the one that brings
/// the request.
#[derive(Default)]
pub(crate) struct Workers {
    inbox: Arc<Inbox>,
    handles: Mutex<Vec<ActorHandle>>,
}

#[derive(Default)]
struct Inbox(Mutex<VecDeque<Job>>);

impl Workers {
    /// Those of the process, running.
    pub(crate) fn of(env: &Environment) -> Arc<Self> {
        let workers: Arc<Self> = env.shared.of();
        let mut handles = workers.handles.lock();
        if handles.is_empty() {
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            for nr in 1..processors.min(WORKERS_MAX + 1) {
                let worker = Arc::new(Worker(workers.inbox.clone()));
                match env.spawner.spawn(&format!("thinmap-work{nr}"), worker) {
                    Ok(handle) => handles.push(handle),
                    Err(error) => {
                        tracing::warn!(%error, "fewer threads for encryption and hashing");
                        break;
                    }
                }
            }
        }
        drop(handles);
        workers
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.handles.lock().len()
    }

    /// Has one job run for each of the first workers.
    pub(crate) fn share(&self, jobs: impl Iterator<Item = Job>) {
        let mut inbox = self.inbox.0.lock();
        inbox.extend(jobs);
        let waiting = inbox.len();
        drop(inbox);
        for handle in self.handles.lock().iter().take(waiting) {
            handle.wake();
        }
    }
}

struct Worker(Arc<Inbox>);

impl Actor for Worker {
    fn turn(&self, _now: Duration) -> NextTurn {
        loop {
            // Not in the condition of a `while let`, which would hold the lock over the job.
            let job = self.0.0.lock().pop_front();
            match job {
                Some(job) => job(),
                None => return NextTurn::WhenWoken,
            }
        }
    }

    /// The job's request fails as it is dropped. The other jobs only help: who brought their requests does the work alone.
    fn panicked(&self) {
        self.0.0.lock().clear();
        tracing::error!("a worker for encryption and hashing ended by a panic");
    }
}

const WORKERS_MAX: usize = 8;
