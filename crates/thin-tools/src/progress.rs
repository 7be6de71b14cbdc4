//! What a terminal shows of long work: a bar on standard error, nothing where that is no terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work shorter than this shows nothing.
const QUIET_FOR: Duration = Duration::from_millis(500);

/// A bar, or the absence of one. Shared by the threads of one piece of work.
pub struct Progress {
    bar: ProgressBar,
    begun: Instant,
}

impl Progress {
    /// A bar over `total` steps, seen only on a terminal and only when the work takes a while.
    pub fn new(what: &'static str, total: u64, quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        if !quiet && std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            let style = "{msg} {wide_bar} {percent}% {elapsed}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.set_message(what);
        }
        let begun = Instant::now();
        Self { bar, begun }
    }

    /// `steps` more are done.
    pub fn add(&self, steps: u64) {
        self.bar.inc(steps);
        if self.bar.is_hidden() && self.bar.message() != "" && self.begun.elapsed() >= QUIET_FOR {
            self.bar
                .set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
        }
    }

    /// How many steps there are became known, or changed.
    pub fn set_total(&self, total: u64) {
        self.bar.set_length(total);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
