//! The keeper itself: starts a daemon, holds what it is given, starts the next one when the daemon dies.
//!
//! It does nothing else, so that there is nothing in it to fail: it opens no device, reads no request, knows no table.
//!
//! INVARIANT: the next daemon is started only when the last one is gone with all its threads, so no two ever serve the same devices;
//! and only when all that the last one said has been heard.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thinmap_exports::{block_node, freeze};

use super::binary::Binary;
use super::dead::wait;
use super::freezes::{AskedBy, Freezes, Step};
use super::message::{self, Beginning, Number, ToDaemon, ToKeeper, UPGRADE_EXIT};
use crate::config::ContinuitySection;

/// What the keeper must know.
pub struct KeeperConfig {
    /// The daemon's run directory.
    pub run_dir: PathBuf,
    /// The daemon's binary.
    pub binary: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// When to give up.
    pub limits: ContinuitySection,
}

/// Runs daemons until one ends in good order or the keeper gives up; the process's exit code.
pub fn run(config: KeeperConfig) -> io::Result<i32> {
    let (sender, events) = channel();
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let for_signals = sender.clone();
    std::thread::Builder::new()
        .name("keeper-signals".to_owned())
        .spawn(move || {
            for _ in signals.forever() {
                let _ = for_signals.send(Event::Signal);
            }
        })?;
    Keeper::new(config, (sender, events))?.run()
}

enum Event {
    Signal,
    /// With the generation of who said it.
    Said(u32, ToKeeper, Option<OwnedFd>),
    Ended(ExitStatus),
    /// A freeze was tried for this generation.
    Frozen(u32, Number, Result<Option<OwnedFd>, i32>),
    /// With the generation that asked for it, if one did.
    Thawed(AskedBy, Number),
}

struct Keeper {
    name: String,
    config: KeeperConfig,
    binary: Binary,
    /// What ran before the last upgrade, until the new one has served.
    previous: Option<Binary>,
    /// Told of, and started when the daemon has made way.
    upgrade: Option<Binary>,
    held: BTreeMap<String, OwnedFd>,
    /// One of them, for who waits for a daemon's end.
    fuse: Arc<OnceLock<OwnedFd>>,
    freezes: Freezes<OwnedFd>,
    generation: u32,
    deaths: Vec<Instant>,
    /// Daemons in a row that died before they served.
    never_ready: u32,
    ending: bool,
    /// The mount was given up while a daemon died.
    aborted: Arc<AtomicBool>,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

/// A daemon while it runs.
struct Life {
    pid: u32,
    socket: OwnedFd,
    reader: Option<JoinHandle<()>>,
    /// Until then it must serve or have got on.
    deadline: Instant,
    ready: bool,
    stopping: bool,
}

/// How a daemon ended.
struct End {
    status: ExitStatus,
    ready: bool,
    stopping: bool,
}

impl Keeper {
    fn new(config: KeeperConfig, events: (Sender<Event>, Receiver<Event>)) -> io::Result<Self> {
        let (sender, events) = events;
        Ok(Self {
            binary: Binary::open(&config.binary)?,
            name: random_name()?,
            config,
            previous: None,
            upgrade: None,
            held: BTreeMap::new(),
            fuse: Arc::default(),
            freezes: Freezes::default(),
            generation: 0,
            deaths: Vec::new(),
            never_ready: 0,
            ending: false,
            aborted: Arc::default(),
            sender,
            events,
        })
    }

    fn run(mut self) -> io::Result<i32> {
        loop {
            let end = match self.one_life() {
                Ok(end) => end,
                Err(error) if self.generation == 0 => return Err(error),
                Err(error) => {
                    tracing::error!(%error, binary = %self.binary.path.display(), "the next daemon cannot be started");
                    match self.did_not_come_up() {
                        Some(reason) => return Ok(self.give_up(&reason)),
                        None => continue,
                    }
                }
            };
            if end.status.success() {
                self.thaw_all();
                return Ok(0);
            }
            if self.aborted.load(Ordering::Relaxed) {
                return Ok(self.give_up("what was left of the dead daemon kept its devices"));
            }
            if self.generation == 0 && !end.ready {
                // It has said why, and made nothing that must be kept.
                return Ok(end.status.code().unwrap_or(1));
            }
            if end.stopping {
                return Ok(self.give_up("the daemon died while it was ending"));
            }
            if let Some(reason) = self.note_end(&end) {
                return Ok(self.give_up(&reason));
            }
            self.generation += 1;
        }
    }

    /// Takes note of a daemon's end; a reason to give up, if it is one.
    fn note_end(&mut self, end: &End) -> Option<String> {
        let upgrade = self.upgrade.take();
        if end.status.code() == Some(UPGRADE_EXIT)
            && let Some(binary) = upgrade
        {
            tracing::info!(binary = %binary.path.display(), "upgrade: starting the next daemon");
            self.previous = Some(std::mem::replace(&mut self.binary, binary));
            return None;
        }
        tracing::error!(status = %end.status, "the daemon died: starting the next one, its devices wait");
        if end.ready {
            self.never_ready = 0;
        } else if let Some(reason) = self.did_not_come_up() {
            return Some(reason);
        }
        let ContinuitySection { deaths_max, .. } = self.config.limits;
        let now = Instant::now();
        self.deaths.push(now);
        self.deaths.retain(|death| now - *death < DEATHS_WINDOW);
        if deaths_max > 0 && self.deaths.len() > deaths_max as usize {
            let window = DEATHS_WINDOW.as_secs();
            return Some(format!("{} deaths in {window} s", self.deaths.len()));
        }
        None
    }

    /// Makes ready for another try, after a while; a reason to give up, if there were enough.
    fn did_not_come_up(&mut self) -> Option<String> {
        self.never_ready += 1;
        if let Some(previous) = self.previous.take() {
            tracing::error!(binary = %previous.path.display(), "the upgrade does not come up: back to the binary before");
            self.binary = previous;
        }
        std::thread::sleep(RETRY_PAUSE * self.never_ready);
        (self.never_ready >= STARTS_MAX)
            .then(|| format!("{STARTS_MAX} daemons in a row did not come up"))
    }

    /// Ends waiting: everything that is held is let go, so that who waits for a device gets an error.
    fn give_up(&mut self, reason: &str) -> i32 {
        tracing::error!(
            "giving up: {reason}. I/O on all its devices fails from now on; unmount what is on them, then start the daemon anew"
        );
        block_node::abort(&self.config.run_dir);
        self.held.clear();
        self.fuse = Arc::default();
        self.thaw_all();
        1
    }

    fn thaw_all(&mut self) {
        for fd in self.freezes.take_all() {
            let _ = freeze::thaw_mounted(&fd);
        }
    }

    fn one_life(&mut self) -> io::Result<End> {
        let mut life = self.start()?;
        let mut late = false;
        let status = loop {
            let event = if life.ready || late {
                self.events.recv().ok()
            } else {
                let left = life.deadline.saturating_duration_since(Instant::now());
                match self.events.recv_timeout(left) {
                    Err(RecvTimeoutError::Timeout) => {
                        tracing::error!("the daemon does not come up: it is killed");
                        signal(life.pid, Signal::KILL);
                        late = true;
                        continue;
                    }
                    event => event.ok(),
                }
            };
            match event {
                Some(Event::Ended(status)) => break status,
                Some(event) => self.handle(&mut life, event),
                None => return Err(io::Error::other("the keeper's threads are gone")),
            }
        };
        // It reads to the end of what the dead one had said.
        if let Some(reader) = life.reader.take() {
            let _ = reader.join();
        }
        while let Ok(event) = self.events.try_recv() {
            self.handle(&mut life, event);
        }
        Ok(End {
            status,
            ready: life.ready,
            stopping: life.stopping,
        })
    }

    fn start(&mut self) -> io::Result<Life> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let mut child = self.binary.command();
        let child = child
            .args(&self.config.arguments)
            .stdin(Stdio::from(theirs))
            .spawn()?;
        let pid = child.id();
        let (generation, sender) = (self.generation, self.sender.clone());
        let socket = ours.try_clone()?;
        let reader = std::thread::Builder::new()
            .name("keeper-reads".to_owned())
            .spawn(move || read(&socket, generation, &sender))?;
        let sender = self.sender.clone();
        let fuse = self.fuse.clone();
        let run_dir = self.config.run_dir.clone();
        let aborted = self.aborted.clone();
        std::thread::Builder::new()
            .name("keeper-waits".to_owned())
            .spawn(move || {
                let _ = sender.send(Event::Ended(wait(child, &fuse, &run_dir, &aborted)));
            })?;
        let life = Life {
            pid,
            socket: ours,
            reader: Some(reader),
            deadline: Instant::now() + START_MAX,
            ready: false,
            stopping: false,
        };
        for (name, fd) in &self.held {
            life.tell(&ToDaemon::Held(name.clone()), Some(fd));
        }
        let beginning = Beginning {
            keeper: self.name.clone(),
            generation: self.generation,
            pid: std::process::id(),
            hears_progress: true,
        };
        life.tell(&ToDaemon::Begin(beginning), None);
        Ok(life)
    }

    fn handle(&mut self, life: &mut Life, event: Event) {
        match event {
            Event::Signal => {
                self.ending = true;
                // Before it serves it may not know the signal, and would be taken for dead.
                if life.ready || self.generation == 0 {
                    signal(life.pid, Signal::TERM);
                }
            }
            Event::Said(generation, said, fd) if generation == self.generation => {
                self.heard(life, said, fd);
            }
            Event::Frozen(asked_by, number, result) => {
                let generations = (asked_by, self.generation);
                let steps = self.freezes.froze(generations, number, result);
                self.take(life, steps);
            }
            Event::Thawed(asked_by, number) => {
                let steps = self.freezes.thawed((asked_by, self.generation), number);
                self.take(life, steps);
            }
            Event::Said(..) | Event::Ended(_) => {}
        }
    }

    fn heard(&mut self, life: &mut Life, said: ToKeeper, fd: Option<OwnedFd>) {
        match (said, fd) {
            (ToKeeper::Keep(name), Some(fd)) => {
                if name == FIRST_FUSE
                    && let Ok(fd) = fd.try_clone()
                {
                    let _ = self.fuse.set(fd);
                }
                self.held.insert(name, fd);
            }
            (ToKeeper::Forget(name), _) => drop(self.held.remove(&name)),
            (ToKeeper::Ready(frozen), _) => {
                life.ready = true;
                self.previous = None;
                let left = self.freezes.keep_only(&frozen);
                self.take(life, left);
                if self.ending {
                    signal(life.pid, Signal::TERM);
                }
            }
            (ToKeeper::Progress, _) => life.deadline = Instant::now() + START_MAX,
            (ToKeeper::Stopping, _) => life.stopping = true,
            (ToKeeper::Upgrade(path), Some(fd)) => {
                let file = File::from(fd);
                self.upgrade = Some(Binary { path, file });
            }
            (ToKeeper::Freeze(number), Some(fd)) => {
                let step = self.freezes.freeze(self.generation, number, fd);
                self.take(life, step);
            }
            (ToKeeper::Thaw(number), _) => {
                let step = self.freezes.thaw(self.generation, number);
                self.take(life, [step]);
            }
            (said, None) => tracing::error!(?said, "a message without its descriptor"),
        }
    }

    fn take(&self, life: &Life, steps: impl IntoIterator<Item = Step<OwnedFd>>) {
        for step in steps {
            match step {
                Step::Freeze(generation, number, fd) => self.freeze(generation, number, fd),
                Step::Thaw(number, fd, asked_by) => self.thaw(number, fd, asked_by),
                Step::Tell(message) => life.tell(&message, None),
            }
        }
    }

    /// In a thread: it ends when the file system has written back, for which the daemon, or the next one, must serve.
    fn freeze(&self, generation: u32, number: Number, fd: OwnedFd) {
        let sender = self.sender.clone();
        let started = std::thread::Builder::new().spawn(move || {
            let result = match freeze::freeze_mounted(&fd) {
                Ok(()) => Ok(Some(fd)),
                // Frozen by somebody else, and left to them.
                Err(EBUSY) => Ok(None),
                Err(EOPNOTSUPP | EINVAL) => rustix::fs::syncfs(&fd)
                    .map(|()| None)
                    .map_err(|errno| errno.raw_os_error()),
                Err(errno) => Err(errno),
            };
            let _ = sender.send(Event::Frozen(generation, number, result));
        });
        if let Err(error) = started {
            let errno = error.raw_os_error().unwrap_or(EBUSY);
            let refused = Event::Frozen(generation, number, Err(errno));
            let _ = self.sender.send(refused);
        }
    }

    fn thaw(&self, number: Number, fd: OwnedFd, asked_by: AskedBy) {
        let (sender, fd) = (self.sender.clone(), Arc::new(fd));
        let thaw = move || {
            // EINVAL: an administrator thawed it.
            if let Err(errno) = freeze::thaw_mounted(&fd)
                && errno != EINVAL
            {
                tracing::error!(device = ?number, errno, "a frozen file system cannot be thawed");
            }
            let _ = sender.send(Event::Thawed(asked_by, number));
        };
        // Without a thread here and now: nobody else will.
        if std::thread::Builder::new().spawn(thaw.clone()).is_err() {
            thaw();
        }
    }
}

impl Life {
    fn tell(&self, message: &ToDaemon, fd: Option<&OwnedFd>) {
        // A daemon that does not hear it is dead, and its end is told by another way.
        let _ = message::send(&self.socket, message, fd.map(AsFd::as_fd));
    }
}

fn read(socket: &OwnedFd, generation: u32, sender: &Sender<Event>) {
    loop {
        match message::receive(socket) {
            Ok(Some((said, fd))) => {
                let _ = sender.send(Event::Said(generation, said, fd));
            }
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "the daemon says what the keeper does not understand");
                return;
            }
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// 128 random bits in hexadecimal digits.
fn random_name() -> io::Result<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(id.trim().to_owned())
}

/// How long a daemon may take until it serves, or until the next of its tables is back: it opens pools and brings their metadata up to
/// date.
const START_MAX: Duration = Duration::from_secs(60);
/// Daemons in a row that may die before they serve.
const STARTS_MAX: u32 = 5;
/// After such a one, times their number.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
const DEATHS_WINDOW: Duration = Duration::from_secs(60);
/// One descriptor of the FUSE connection.
const FIRST_FUSE: &str = "fuse-0";
const EBUSY: i32 = 16;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
