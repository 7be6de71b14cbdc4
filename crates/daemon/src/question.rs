//! Do the backings of the last daemon's tables answer? A backing whose server hangs would keep whoever opens it, and so a daemon
//! that brings devices back, and with it all other devices.
//!
//! A process of its own asks, since nobody can take a thread back that waits in the kernel: such a process may stay behind, and
//! holds nothing of the daemon's. It gets a line for each backing, then an empty one, answers with the numbers of those that have answered
//! (well or with an error), and ends when all have, or when its input does.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
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

    /// Waits until all have answered, or so long.
    pub fn wait(&mut self, patience: Duration) {
        let until = Instant::now() + patience;
        while !self.is_over() {
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
            Ok(numbers) => {
                for backing in numbers.into_iter().filter_map(|n| self.backings.get(n)) {
                    self.silent.remove(backing);
                }
            }
            Err(error) => self.give_up(&error),
        }
        if self.is_over() {
            self.end();
        }
    }

    /// Whether there is nothing more to wait for.
    pub fn is_over(&self) -> bool {
        self.silent.is_empty()
    }

    /// The first of these that has not answered.
    pub fn first_silent<'a>(
        &self,
        mut backings: impl Iterator<Item = &'a String>,
    ) -> Option<&'a str> {
        backings
            .find(|backing| self.silent.contains(*backing))
            .map(String::as_str)
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
    /// Numbers that come within this time, as soon as there are some.
    fn next(&mut self, patience: Duration) -> io::Result<Vec<usize>> {
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
        Ok(lines.lines().filter_map(|line| line.parse().ok()).collect())
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
                touch(&backing);
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

fn tell(number: usize) {
    let mut output = io::stdout().lock();
    let _ = writeln!(output, "{number}").and_then(|()| output.flush());
}

/// Opens the backing and reads its beginning past the page cache, which would answer for it. What comes of it does not matter here.
fn touch(backing: &str) {
    let path = match backing.parse::<DevNo>() {
        Ok(number) => host_path(number, backing).ok(),
        Err(_) => Some(backing.into()),
    };
    let Some(path) = path else { return };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let open = |flags| rustix::fs::open(&path, flags, Mode::empty());
    let opened = open(flags | OFlags::DIRECT).or_else(|_| open(flags));
    if let Ok(fd) = opened {
        let _ = rustix::io::pread(fd, IoBuf::alloc(4096).as_mut_slice(), 0);
    }
}

const STACK_BYTES: usize = 128 << 10;
