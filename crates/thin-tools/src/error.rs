//! Why a tool fails, for people.

use std::io;
use std::path::{Path, PathBuf};

use thinmap_persistent_data::MetadataError;

use crate::ImageError;

/// Why a tool fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// The device or file cannot be opened.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The metadata cannot be read or written, or makes no sense.
    #[error("{0}")]
    Metadata(#[from] MetadataError),
    /// The same, and on which device or file.
    #[error("{path}: {source}")]
    InFile {
        /// The device or file.
        path: PathBuf,
        /// What is wrong.
        source: MetadataError,
    },
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
    /// Another file cannot be used.
    #[error("{path}: {action}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// What was asked for cannot be done; a whole sentence.
    #[error("{0}")]
    Refused(String),
}

impl ToolError {
    /// The error with the device or file that the metadata is on, unless it names one.
    #[must_use]
    pub fn on(self, path: &Path) -> Self {
        match self {
            Self::Metadata(source) => Self::InFile {
                path: path.to_owned(),
                source,
            },
            other => other,
        }
    }

    /// Whether the reader of the output went away, which is no failure of the tool.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}
