//! Queue threads: each serves one queue of an export and carries one io_uring for all file I/O that is
//! submitted on it. Threads without a ring hand their file I/O to one service queue.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use thinmap_runtime::{Completed, Pulse, PulseKind, Ring, Waker};

use crate::backing::file::FileIo;

/// What a handler wants after a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// Another turn at once: there is more to do (I/O that was submitted is started first).
    Again,
    /// A turn when a polled descriptor is ready, the waker was used, or I/O has completed.
    Idle,
    /// The same, but a turn soon may find work without being told: the thread looks again for a moment before it sleeps, as
    /// long as that pays. `found`: this turn had work.
    Watch {
        /// See there.
        found: bool,
    },
    /// The end: nothing is in flight any more.
    Stop,
}

/// The code of one queue.
pub trait QueueHandler {
    /// Takes in requests, submits them, sends out replies. Bounded work, never blocks.
    fn turn(&mut self) -> Turn;

    /// Descriptors and poll events (POLLIN, ...) that should start a turn; asked when going idle.
    fn poll(&self, out: &mut Vec<(RawFd, i16)>);
}

/// A running queue thread.
pub struct QueueHandle {
    thread: Option<std::thread::JoinHandle<()>>,
}

impl QueueHandle {
    /// Waits for the thread's end; `false` when its handler panicked.
    pub fn join(mut self) -> bool {
        self.thread
            .take()
            .is_none_or(|thread| thread.join().is_ok())
    }

    /// Whether the thread has ended.
    pub fn is_finished(&self) -> bool {
        self.thread
            .as_ref()
            .is_none_or(std::thread::JoinHandle::is_finished)
    }
}

thread_local! {
    static RING: RefCell<Option<Ring<FileIo>>> = const { RefCell::new(None) };
    static LEAVES_COPIES: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread is a queue thread, where waiting for I/O would wait for itself.
pub fn on_queue_thread() -> bool {
    RING.with_borrow(Option::is_some)
}

/// Starts a queue thread. `make` builds the handler on the new thread; `waker` starts a turn from outside.
pub fn spawn_queue<H, F>(name: &str, waker: Arc<Waker>, make: F) -> std::io::Result<QueueHandle>
where
    H: QueueHandler,
    F: FnOnce() -> H + Send + 'static,
{
    // Tells of a missing io_uring here; the real one belongs to its own thread.
    drop(Ring::<FileIo>::new(RING_ENTRIES)?);
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(QUEUE_STACK_BYTES)
        .spawn(move || {
            let ring = match Ring::new(RING_ENTRIES) {
                Ok(ring) => ring,
                Err(error) => {
                    tracing::error!(%error, "queue thread: no io_uring");
                    return;
                }
            };
            RING.set(Some(ring));
            run(make(), &waker);
            // Taken out first: completions of what is left may look for the ring.
            let ring = RING.take();
            drop(ring);
        })?;
    Ok(QueueHandle {
        thread: Some(thread),
    })
}

fn run(mut handler: impl QueueHandler, waker: &Waker) {
    let mut state = Loop {
        done: Vec::new(),
        ready: Vec::new(),
        armed: Vec::new(),
        pulse: Pulse::begin(PulseKind::Serving),
    };
    let mut watch = Watch::default();
    loop {
        state.pulse.works();
        waker.stay_up();
        let sleeps = match handler.turn() {
            Turn::Stop => return,
            Turn::Again => false,
            Turn::Idle => true,
            Turn::Watch { found } => !watch.goes_on(found),
        };
        if !sleeps || !waker.may_sleep() {
            state.advance(false);
            continue;
        }
        state.arm(waker, &handler);
        watch.slept(|| state.advance(true));
    }
}

/// Whether to look for work a moment longer instead of sleeping: a wake-up costs both sides more than the wait for it, when
/// the next request comes within microseconds. Learns from how long the thread slept.
#[derive(Default)]
struct Watch {
    pays: bool,
    until: Option<Instant>,
}

/// A sleep shorter than this would have been better spent looking.
const WATCH: Duration = Duration::from_micros(50);

impl Watch {
    /// After a turn that found work or not: whether to have another without sleeping.
    fn goes_on(&mut self, found: bool) -> bool {
        if !self.pays {
            return false;
        }
        let now = Instant::now();
        if found {
            self.until = Some(now + WATCH);
        } else if self.until.is_none_or(|until| until <= now) {
            self.pays = false;
            return false;
        }
        // Whoever else wants this processor comes first: the next request may need it.
        rustix::thread::sched_yield();
        true
    }

    fn slept(&mut self, sleep: impl FnOnce()) {
        let begin = Instant::now();
        sleep();
        self.pays = begin.elapsed() < WATCH;
        self.until = None;
    }
}

struct Loop {
    done: Vec<Completed<FileIo>>,
    ready: Vec<u32>,
    /// Polls in the ring, by token; `None` slots are free.
    armed: Vec<Option<(RawFd, i16)>>,
    pulse: Pulse,
}

impl Loop {
    fn arm(&mut self, waker: &Waker, handler: &impl QueueHandler) {
        let mut wanted = vec![(waker.raw_fd(), POLLIN)];
        handler.poll(&mut wanted);
        for want in wanted {
            if self.armed.contains(&Some(want)) {
                continue;
            }
            let token = self
                .armed
                .iter()
                .position(Option::is_none)
                .unwrap_or(self.armed.len());
            if token == self.armed.len() {
                self.armed.push(None);
            }
            self.armed[token] = Some(want);
            let token = u32::try_from(token).expect("few descriptors per queue");
            with_ring(|ring| ring.poll_once(want.0, u32::from(want.1.cast_unsigned()), token));
        }
    }

    fn advance(&mut self, wait: bool) {
        let (done, ready, pulse) = (&mut self.done, &mut self.ready, &self.pulse);
        with_ring(|ring| {
            if wait {
                pulse.waits();
                ring.submit_and_wait();
                pulse.works();
            } else {
                ring.submit();
            }
            ring.reap(done, ready);
        });
        for token in self.ready.drain(..) {
            if let Some(slot) = self.armed.get_mut(token as usize) {
                *slot = None;
            }
        }
        // The ring is free again here: completions may submit more.
        for Completed {
            payload,
            buf,
            result,
        } in self.done.drain(..)
        {
            // What else is in flight on this thread is of other devices.
            if catch_unwind(AssertUnwindSafe(|| payload.ended(buf, result))).is_err() {
                tracing::error!("a device has panicked at the end of a request, which failed");
            }
        }
    }
}

fn with_ring<R>(f: impl FnOnce(&mut Ring<FileIo>) -> R) -> R {
    RING.with_borrow_mut(|ring| f(ring.as_mut().expect("called on a queue thread")))
}

/// Tells whether files in memory copy the data of large requests on this queue thread, or leave that to threads of the kernel.
///
/// For a handler whose turns move the data themselves, as through a socket: both then go on at once. Where several queues have
/// work for the processors it costs more than it gives.
pub fn leave_large_copies(yes: bool) {
    LEAVES_COPIES.set(yes);
}

/// Whether this thread has better to do than to copy `bytes` of a request.
pub(crate) fn leaves_copies(bytes: u64) -> bool {
    LEAVES_COPIES.get() && bytes >= BESIDE_BYTES_MIN
}

/// Starts a file operation on this thread's ring, or on the service queue when it has none.
pub(crate) fn start(mut file_io: FileIo) {
    let rest = RING.with_borrow_mut(|ring| match ring.as_mut() {
        Some(ring) => {
            let (fd, op, offset, buf) = file_io.operation();
            if file_io.is_inline() {
                ring.push_beside(&fd, op, offset, buf, file_io);
            } else {
                ring.push(&fd, op, offset, buf, file_io);
            }
            None
        }
        None => Some(file_io),
    });
    if let Some(file_io) = rest {
        match service() {
            Ok(service) => service.push(file_io),
            Err(error) => {
                tracing::error!(%error, "no service queue for file I/O");
                file_io.ended(thinmap_runtime::IoBuf::empty(), -5);
            }
        }
    }
}

/// The queue for threads that have none: pool workers, control threads.
struct Service {
    inbox: Mutex<VecDeque<FileIo>>,
    waker: Arc<Waker>,
    alive: AtomicBool,
}

impl Service {
    fn push(&self, file_io: FileIo) {
        debug_assert!(self.alive.load(Ordering::Relaxed));
        self.inbox.lock().push_back(file_io);
        self.waker.wake();
    }
}

fn service() -> Result<&'static Arc<Service>, &'static std::io::Error> {
    static SERVICE: OnceLock<Result<Arc<Service>, std::io::Error>> = OnceLock::new();
    SERVICE
        .get_or_init(|| {
            let waker = Arc::new(Waker::new()?);
            let service = Arc::new(Service {
                inbox: Mutex::default(),
                waker: waker.clone(),
                alive: AtomicBool::new(true),
            });
            let handler = ServiceHandler(service.clone());
            // Lives as long as the process: the handle is not kept.
            spawn_queue("thinmap-io", waker, move || handler)?;
            Ok(service)
        })
        .as_ref()
}

struct ServiceHandler(Arc<Service>);

impl QueueHandler for ServiceHandler {
    fn turn(&mut self) -> Turn {
        let batch = std::mem::take(&mut *self.0.inbox.lock());
        if batch.is_empty() {
            return Turn::Idle;
        }
        batch.into_iter().for_each(start);
        Turn::Again
    }

    fn poll(&self, _out: &mut Vec<(RawFd, i16)>) {}
}

const POLLIN: i16 = 1;
/// A copy shorter than this is done sooner than told to another thread.
const BESIDE_BYTES_MIN: u64 = 64 << 10;
const RING_ENTRIES: u32 = 256;
/// Deep stacks of mapped devices recurse, some hundred bytes a level.
const QUEUE_STACK_BYTES: usize = 16 << 20;
