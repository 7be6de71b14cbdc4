//! Do the backings of the last daemon's tables answer? A backing whose server hangs would keep whoever opens it, and so a daemon
//! that brings devices back, and with it all other devices.
//!
//! A process of its own asks, since nobody can take a thread back that waits in the kernel: such a process may stay behind, and
//! holds nothing of the daemon's. It gets a line for each backing, then an empty one. It answers with `NUMBER on MAJOR:MINOR` as soon as it knows
//! which device a file lies on, and with `NUMBER` when the backing has answered, well or with an error; it ends when all have, or when its
//! input does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use thinmap_runtime::IoBuf;
use thinmap_units::DevNo;

use crate::opener::host_path;

/// The verb of the daemon's own program under which [`answer`] runs.
pub const VERB: &str = "ask-backings";

/// A question under way.
pub(crate) struct Question {
    /// By the numbers of the answers.
    backings: Vec<String>,
    silent: BTreeSet<String>,
    /// Devices that files lie on, as far as known.
    homes: BTreeMap<String, DevNo>,
    asked: Option<Asked>,
}

struct Asked {
    child: Child,
    /// It ends when this is closed.
    _input: ChildStdin,
    output: ChildStdout,
    /// Read and not yet a whole line.
    text: Vec<u8>,
}

impl Question {
    /// Asks these backings, named by path or number. If that fails nothing is known to hang.
    pub fn ask(backings: BTreeSet<String>) -> Self {
        let mut question = Self {
            backings: backings.iter().cloned().collect(),
            silent: backings,
            homes: BTreeMap::new(),
            asked: None,
        };
        if !question.is_over() {
            match ask(&question.backings) {
                Ok(asked) => question.asked = Some(asked),
                Err(error) => question.give_up(&error),
            }
        }
        question
    }

    /// Waits until all have answered, or so long; not for files on devices that are `unserved`.
    pub fn wait(&mut self, patience: Duration, unserved: &BTreeSet<DevNo>) {
        let until = Instant::now() + patience;
        while !self.is_settled(unserved) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.listen(left);
        }
    }

    /// Waits for an answer, or so long.
    pub fn listen(&mut self, patience: Duration) {
        let Some(asked) = &mut self.asked else { return };
        match asked.next(patience) {
            Ok(answers) => answers.into_iter().for_each(|answer| self.note(answer)),
            Err(error) => self.give_up(&error),
        }
        if self.is_over() {
            self.end();
        }
    }

    /// Nothing can be heard any more before the devices `unserved` are served.
    fn is_settled(&self, unserved: &BTreeSet<DevNo>) -> bool {
        let mut silent = self.silent.iter();
        silent.all(|backing| self.lies_on(backing, unserved))
    }

    fn note(&mut self, (number, home): (usize, Option<DevNo>)) {
        let Some(backing) = self.backings.get(number) else {
            return;
        };
        match home {
            Some(home) => drop(self.homes.insert(backing.clone(), home)),
            None => drop(self.silent.remove(backing)),
        }
    }

    /// It is a file on one of these devices, as far as known.
    pub fn lies_on(&self, backing: &str, devices: &BTreeSet<DevNo>) -> bool {
        let home = self.homes.get(backing);
        home.is_some_and(|home| devices.contains(home))
    }

    /// Whether there is nothing more to wait for.
    pub fn is_over(&self) -> bool {
        self.silent.is_empty()
    }

    /// It has not answered.
    pub fn is_silent(&self, backing: &str) -> bool {
        self.silent.contains(backing)
    }

    fn give_up(&mut self, error: &io::Error) {
        tracing::warn!(%error, "backings cannot be asked whether they answer");
        self.silent.clear();
    }

    fn end(&mut self) {
        let Some(Asked { mut child, .. }) = self.asked.take() else {
            return;
        };
        // One that still asks may be unable to end.
        if self.is_over() {
            let _ = child.wait();
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.end();
    }
}

fn ask(backings: &[String]) -> io::Result<Asked> {
    let mut child = Command::new("/proc/self/exe")
        .arg0("thinmap")
        .arg(VERB)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let (mut input, output) = child.stdin.take().zip(child.stdout.take()).expect("piped");
    let mut text = String::new();
    for backing in backings {
        text.push_str(backing);
        text.push('\n');
    }
    text.push('\n');
    input.write_all(text.as_bytes())?;
    Ok(Asked {
        child,
        _input: input,
        output,
        text: Vec::new(),
    })
}

impl Asked {
    /// What comes within this time, as soon as there is something: backings that have answered, or devices that they lie on.
    fn next(&mut self, patience: Duration) -> io::Result<Vec<(usize, Option<DevNo>)>> {
        let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.output, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(Vec::new()),
            polled => polled?,
        };
        let mut bytes = [0; 4096];
        match self.output.read(&mut bytes)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => self.text.extend_from_slice(&bytes[..count]),
        }
        let whole = self.text.iter().rposition(|byte| *byte == b'\n');
        let lines: Vec<u8> = self.text.drain(..whole.map_or(0, |at| at + 1)).collect();
        let lines = String::from_utf8_lossy(&lines);
        let answer = |line: &str| match line.split_once(" on ") {
            Some((number, home)) => Some((number.parse().ok()?, Some(home.parse().ok()?))),
            None => Some((line.parse().ok()?, None)),
        };
        Ok(lines.lines().filter_map(answer).collect())
    }
}

/// The process that asks: from standard input, to standard output.
///
/// # Errors
/// When its input cannot be read.
pub fn answer() -> io::Result<()> {
    let mut input = io::stdin().lock();
    let mut backings = Vec::new();
    for line in input.by_ref().lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        backings.push(line);
    }
    let (sender, over) = std::sync::mpsc::channel::<()>();
    for (number, backing) in backings.into_iter().enumerate() {
        let sender = sender.clone();
        let asks = std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || {
                touch(number, &backing);
                tell(number);
                drop(sender);
            });
        if asks.is_err() {
            tell(number);
        }
    }
    drop(sender);
    std::thread::spawn(move || {
        let _ = over.recv();
        std::process::exit(0);
    });
    // Whoever asked is gone.
    io::copy(&mut input, &mut io::sink())?;
    std::process::exit(0);
}

fn tell(what: impl std::fmt::Display) {
    let mut output = io::stdout().lock();
    let _ = writeln!(output, "{what}").and_then(|()| output.flush());
}

/// Opens the backing and reads where its data begin, past the page cache, which would answer for it. What comes of it does not matter here.
fn touch(number: usize, backing: &str) {
    let path = match backing.parse::<DevNo>() {
        Ok(number) => host_path(number, backing).ok(),
        Err(_) => Some(backing.into()),
    };
    let Some(path) = path else { return };
    if let Ok(metadata) = std::fs::metadata(&path)
        && metadata.is_file()
    {
        tell(format_args!(
            "{number} on {}",
            DevNo::from_dev_t(metadata.dev())
        ));
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let open = |flags| rustix::fs::open(&path, flags, Mode::empty());
    let opened = open(flags | OFlags::DIRECT).or_else(|_| open(flags));
    if let Ok(fd) = opened {
        // A hole answers at once, whatever is behind the rest. Block devices have none.
        let data = rustix::fs::seek(&fd, SeekFrom::Data(0)).unwrap_or(0);
        let _ = rustix::io::pread(fd, IoBuf::alloc(4096).as_mut_slice(), data & !4095);
    }
}

const STACK_BYTES: usize = 128 << 10;
