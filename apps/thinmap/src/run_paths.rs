//! The two directories that daemon and commands agree on.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Where the daemon lives and where devices appear.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunPaths {
    /// Sockets, locks, logs.
    pub run_dir: PathBuf,
    /// Device nodes.
    pub dev_dir: PathBuf,
}

impl RunPaths {
    /// From what was said (option or environment), otherwise /run/thinmap and /dev/mapper for root, and the user's own
    /// runtime directory with `mapper/` in it for others.
    pub fn new(run_dir: Option<PathBuf>, dev_dir: Option<PathBuf>) -> anyhow::Result<Self> {
        let is_root = rustix::process::geteuid().is_root();
        let run_dir = match run_dir {
            Some(dir) => dir,
            None if is_root => PathBuf::from("/run/thinmap"),
            None => user_run_dir(),
        };
        let dev_dir = match dev_dir {
            Some(dir) => dir,
            None if is_root => PathBuf::from("/dev/mapper"),
            None => run_dir.join("mapper"),
        };
        // The daemon has another working directory, so the paths must not depend on it.
        Ok(Self {
            run_dir: std::path::absolute(&run_dir)
                .with_context(|| format!("run directory {}", run_dir.display()))?,
            dev_dir: std::path::absolute(&dev_dir)
                .with_context(|| format!("device directory {}", dev_dir.display()))?,
        })
    }

    /// The daemon's control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }

    /// What a daemon that was started by a command says.
    pub fn log_file(&self) -> PathBuf {
        self.run_dir.join("daemon.log")
    }

    /// Makes the run directory, mode 0700, and refuses one that somebody else owns: under /tmp anyone could have made it.
    pub fn make_run_dir(&self) -> anyhow::Result<()> {
        let dir = &self.run_dir;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot make run directory {}", dir.display()))?;
        let owner = owner_of(dir)?;
        let me = rustix::process::geteuid().as_raw();
        if owner != me {
            bail!(
                "run directory {} belongs to user {owner}, not to {me}",
                dir.display()
            );
        }
        Ok(())
    }
}

fn owner_of(dir: &Path) -> anyhow::Result<u32> {
    let metadata = std::fs::symlink_metadata(dir)
        .with_context(|| format!("run directory {}", dir.display()))?;
    if !metadata.is_dir() && !std::fs::metadata(dir)?.is_dir() {
        bail!("run directory {} is no directory", dir.display());
    }
    Ok(metadata.uid())
}

fn user_run_dir() -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir).join("thinmap"),
        _ => PathBuf::from(format!("/tmp/thinmap-{uid}")),
    }
}
