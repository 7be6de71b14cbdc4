//! What has been found wrong, and what follows from it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

/// What happens at a block that does not match its digest. The kernel's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Mode {
    /// Its read fails.
    #[default]
    Eio,
    /// It is logged and read all the same.
    Logging,
    /// A kernel restarts the machine; here the line fails every request from then on.
    Restart,
    /// A kernel panics; here the same.
    Panic,
}

impl Mode {
    /// As tables name it; nothing for the default.
    pub(super) fn word(self) -> Option<&'static str> {
        match self {
            Self::Eio => None,
            Self::Logging => Some("ignore_corruption"),
            Self::Restart => Some("restart_on_corruption"),
            Self::Panic => Some("panic_on_corruption"),
        }
    }

    pub(super) fn of_word(word: &str) -> Option<Self> {
        let named = |mode: &Self| {
            mode.word()
                .is_some_and(|name| word.eq_ignore_ascii_case(name))
        };
        [Self::Logging, Self::Restart, Self::Panic]
            .into_iter()
            .find(named)
    }
}

/// See the module.
pub(super) struct Corruption {
    mode: Mode,
    /// The data device, for the log.
    device: String,
    found: AtomicBool,
    logged: AtomicU32,
    stopped: AtomicBool,
}

/// What was found wrong.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Data,
    Metadata,
}

impl Corruption {
    pub(super) fn new(mode: Mode, device: String) -> Self {
        Self {
            mode,
            device,
            found: AtomicBool::new(false),
            logged: AtomicU32::new(0),
            stopped: AtomicBool::new(false),
        }
    }

    /// Whether anything was ever found.
    pub(super) fn is_found(&self) -> bool {
        self.found.load(Relaxed)
    }

    /// Whether nothing may be read any more.
    pub(super) fn has_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }

    /// Takes note of a block that does not match; whether it may be used all the same.
    pub(super) fn note(&self, kind: Kind, block: u64) -> bool {
        self.found.store(true, Relaxed);
        let what = match kind {
            Kind::Data => "data",
            Kind::Metadata => "metadata",
        };
        let device = &self.device;
        match self.logged.fetch_add(1, Relaxed) {
            LOGGED_MAX.. => self.logged.store(LOGGED_MAX, Relaxed),
            before => {
                tracing::error!("verity: {device}: {what} block {block} is corrupted");
                if before + 1 == LOGGED_MAX {
                    tracing::error!("verity: {device}: reached maximum errors");
                }
            }
        }
        if matches!(self.mode, Mode::Restart | Mode::Panic) && !self.stopped.swap(true, Relaxed) {
            let asked = self.mode.word().unwrap_or_default();
            tracing::error!(
                "verity: {device}: {asked}: every request fails until the table is loaded again"
            );
        }
        self.mode == Mode::Logging
    }
}

/// Of corrupted blocks that are logged.
const LOGGED_MAX: u32 = 100;
