//! Where dmsetup's words go. Write errors are ignored, as C's printf lets them be: a reader that went away
//! (`dmsetup table | head -1`) must not fail the command.

use std::io::Write;

/// Standard output and standard error, or two buffers in tests.
pub struct Console<'a> {
    pub out: &'a mut dyn Write,
    pub err: &'a mut dyn Write,
}

impl Console<'_> {
    /// Text to standard output, as it is.
    pub fn print(&mut self, text: &str) {
        let _ = self.out.write_all(text.as_bytes());
    }

    /// A line to standard output.
    pub fn line(&mut self, text: &str) {
        self.print(text);
        self.print("\n");
    }

    /// A line to standard error, after all that standard output has been told so far.
    pub fn error(&mut self, text: &str) {
        self.flush();
        let _ = writeln!(self.err, "{text}");
    }

    /// What the daemon adds to an errno, marked as not dmsetup's own words.
    pub fn daemon_text(&mut self, text: &str) {
        for line in text.lines() {
            self.error(&format!("thinmap: {line}"));
        }
    }

    /// Gives buffered output out, before another program writes to the same terminal.
    pub fn flush(&mut self) {
        let _ = self.out.flush();
    }
}
