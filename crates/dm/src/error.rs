//! What can go wrong on the control path, with the errno that the kernel gives for it.

/// A table that cannot be loaded.
///
/// The reason is worded as the kernel's log line where that is clear, so that people find it on the web.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[error("{target}: {reason}")]
pub struct TableError {
    /// The target's name, or `table` for what concerns the whole table.
    pub target: String,
    /// What is wrong, naming the argument at fault.
    pub reason: String,
    /// The errno the caller gets.
    pub errno: i32,
}

impl TableError {
    /// An error of `target`.
    pub fn new(target: &str, reason: impl Into<String>, errno: i32) -> Self {
        Self {
            target: target.to_owned(),
            reason: reason.into(),
            errno,
        }
    }

    /// EINVAL, by far the most frequent.
    pub fn invalid(target: &str, reason: impl Into<String>) -> Self {
        Self::new(target, reason, EINVAL)
    }
}

/// A message that a target refused or failed at.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[error("{reason}")]
pub struct MessageError {
    /// What is wrong.
    pub reason: String,
    /// The errno the caller gets.
    pub errno: i32,
}

impl MessageError {
    /// An error with its errno.
    pub fn new(reason: impl Into<String>, errno: i32) -> Self {
        Self {
            reason: reason.into(),
            errno,
        }
    }

    /// The target takes no messages at all (EINVAL as in the kernel).
    pub fn none_supported() -> Self {
        Self::new("Target type does not support messages", EINVAL)
    }

    /// The target does not take this message (EINVAL as in the kernel).
    pub fn unsupported(message: &str) -> Self {
        Self::new(format!("unrecognised message: {message}"), EINVAL)
    }
}

/// Why a device could not be resumed.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[error("{target}: {reason}")]
pub struct ResumeError {
    /// The target that refused.
    pub target: String,
    /// What is wrong.
    pub reason: String,
    /// The errno the caller gets.
    pub errno: i32,
}

impl ResumeError {
    /// An error of `target`.
    pub fn new(target: &str, reason: impl Into<String>, errno: i32) -> Self {
        Self {
            target: target.to_owned(),
            reason: reason.into(),
            errno,
        }
    }
}

const EINVAL: i32 = 22;
