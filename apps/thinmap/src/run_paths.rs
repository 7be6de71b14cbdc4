//! The two directories that daemon and commands agree on.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The kernel's `sun_path` holds 108 bytes with the NUL.
const SOCKET_PATH_MAX: usize = 107;

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
        let run_dir = run_dir.unwrap_or_else(thinmap_control::default_run_dir);
        let dev_dir = dev_dir.unwrap_or_else(|| thinmap_control::default_dev_dir(&run_dir));
        // The daemon has another working directory, so the paths must not depend on it.
        let run_dir = std::path::absolute(&run_dir)
            .with_context(|| format!("run directory {}", run_dir.display()))?;
        if thinmap_control::control_socket(&run_dir).as_os_str().len() > SOCKET_PATH_MAX {
            bail!(
                "run directory {} is too long: the path of a socket in it may have {SOCKET_PATH_MAX} bytes",
                run_dir.display()
            );
        }
        Ok(Self {
            run_dir,
            dev_dir: std::path::absolute(&dev_dir)
                .with_context(|| format!("device directory {}", dev_dir.display()))?,
        })
    }

    /// The daemon's control socket.
    pub fn control_socket(&self) -> PathBuf {
        thinmap_control::control_socket(&self.run_dir)
    }

    /// What a daemon that was started by a command says.
    pub fn log_file(&self) -> PathBuf {
        self.run_dir.join("daemon.log")
    }

    /// Makes the run directory, mode 0700, and refuses one that somebody else owns (under /tmp anyone could have made it)
    /// or may change.
    pub fn make_run_dir(&self) -> anyhow::Result<()> {
        let dir = &self.run_dir;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot make run directory {}", dir.display()))?;
        let (owner, mode) = owner_and_mode(dir)?;
        let me = rustix::process::geteuid().as_raw();
        if owner != me {
            bail!(
                "run directory {} belongs to user {owner}, not to {me}",
                dir.display()
            );
        }
        // The sticky bit (as on /tmp) does not help: files that we shall make could be there already.
        if mode & 0o002 != 0 {
            bail!(
                "run directory {dir} may be changed by every user (mode {mode:04o}): chmod 700 {dir}",
                dir = dir.display()
            );
        }
        Ok(())
    }
}

fn owner_and_mode(dir: &Path) -> anyhow::Result<(u32, u32)> {
    let metadata = std::fs::symlink_metadata(dir)
        .with_context(|| format!("run directory {}", dir.display()))?;
    let target =
        std::fs::metadata(dir).with_context(|| format!("run directory {}", dir.display()))?;
    if !target.is_dir() {
        bail!("run directory {} is no directory", dir.display());
    }
    Ok((metadata.uid(), target.mode() & 0o7777))
}
