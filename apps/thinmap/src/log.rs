//! The daemon's log, on standard error.
//!
//! INVARIANT: nobody who reads it can stop the daemon. A terminal, a pipe or a socket whose reader stands still blocks whoever writes, so
//! there a thread of its own writes, and lines that it cannot take any more are dropped and counted. A regular file is written
//! at once: its last line before a crash is there.

use std::io::Write;
use std::sync::{Arc, OnceLock};

use rustix::fs::FileType;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// Begins to log; THINMAP_LOG says what. The guard must live as long as there is something to log; what waits is written when it is
/// dropped, within a second.
#[must_use]
pub fn start() -> Option<WorkerGuard> {
    let (writer, guard) = writer();
    if guard.is_some() {
        // The usual hook writes by itself.
        std::panic::set_hook(Box::new(|panic| {
            let trace = std::backtrace::Backtrace::capture();
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("without a name");
            tracing::error!("thread {name} {panic}\n{trace}");
        }));
    }
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("THINMAP_LOG").unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_writer(writer)
        .with_ansi(false)
        // Told on standard error, which would panic where that is what cannot be written (a pipe whose reader is gone).
        .log_internal_errors(false)
        .init();
    guard
}

fn writer() -> (BoxMakeWriter, Option<WorkerGuard>) {
    let is_file = rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    if is_file {
        return (BoxMakeWriter::new(std::io::stderr), None);
    }
    let (writer, guard) = beside(std::io::stderr(), LINES_MAX);
    (BoxMakeWriter::new(writer), Some(guard))
}

/// Has a thread write to `out`, for which so many lines may wait.
fn beside<W: Write + Send + 'static>(out: W, lines: usize) -> (NonBlocking, WorkerGuard) {
    let dropped = Arc::default();
    let out = CountsDropped {
        out,
        dropped: Arc::clone(&dropped),
        told: 0,
    };
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(lines)
        .thread_name("thinmap-log")
        .finish(out);
    let _ = dropped.set(writer.error_counter());
    (writer, guard)
}

/// Says how many lines are missing, where they are missing.
struct CountsDropped<W> {
    out: W,
    dropped: Arc<OnceLock<ErrorCounter>>,
    told: usize,
}

impl<W: Write> Write for CountsDropped<W> {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let dropped = self.dropped.get().map_or(0, ErrorCounter::dropped_lines);
        if dropped > self.told {
            let lines = dropped - self.told;
            self.told = dropped;
            writeln!(
                self.out,
                "thinmap: {lines} lines of this log were dropped: nobody read it"
            )?;
        }
        self.out.write(line)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Some 2 MB of usual lines.
const LINES_MAX: usize = 8192;

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A reader that takes a line whenever it is told to.
    struct Slow(Receiver<()>, Sender<String>);

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(String::from_utf8_lossy(line).into_owned());
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_nobody_reads_are_counted_and_told_of() {
        let (read, reads) = channel();
        let (said, log) = channel();
        let (mut writer, guard) = beside(Slow(reads, said), 4);
        for nr in 0..100 {
            writer
                .write_all(format!("line {nr}\n").as_bytes())
                .expect("never fails");
        }
        // From here on every line is read.
        drop(read);
        drop(guard);
        let lines: Vec<String> = log.iter().collect();
        let kept = lines
            .iter()
            .filter(|line| line.starts_with("line "))
            .count();
        let told = lines.concat();
        assert!((4..=6).contains(&kept), "{lines:?}");
        let words = format!("{} lines of this log were dropped", 100 - kept);
        assert!(told.contains(&words), "{lines:?}");
    }
}
