//! The daemon's program, as it was when it was named.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program, by its path as long as that leads to the file that it led to first.
pub(super) struct Binary {
    pub path: PathBuf,
    pub file: File,
}

impl Binary {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: File::open(path)?,
        })
    }

    pub fn command(&self) -> Command {
        let same =
            |a: std::fs::Metadata, b: std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        let is_there = match (std::fs::metadata(&self.path), self.file.metadata()) {
            (Ok(there), Ok(ours)) => same(there, ours),
            _ => false,
        };
        if is_there {
            return Command::new(&self.path);
        }
        // Replaced: a crash is no upgrade.
        Command::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}
