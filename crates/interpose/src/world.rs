//! Where the daemon is, and what must be asked of it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SocketAddrUnix;
use thinmap_control::{Client, SYSTEMS_DEV_DIR, SYSTEMS_RUN_DIR};

use crate::capability::{CAP_SYS_ADMIN, effective_capabilities};
use crate::renamed::Renamed;

/// The major number of misc devices, of which the control node is one.
pub const CONTROL_MAJOR: u32 = 10;
/// The control node's minor number where the kernel has given it none (`MAPPER_CTRL_MINOR`).
pub const CONTROL_MINOR: u32 = 236;
/// COMPAT: mapped devices are loop devices wherever the daemon does not say otherwise.
const LOOP_MAJOR: u32 = 7;
const CONTROL_NODE: &str = "/dev/mapper/control";
const CONTROL_ENDING: &[u8] = b"/control";
const READ_TIMEOUT: Duration = Duration::from_micros(1);

/// One daemon as the programs see it that run on it.
#[derive(Debug)]
pub struct World {
    socket: PathBuf,
    control_nodes: [PathBuf; 2],
    /// The system's own daemon, where this world is that of a user who was told of no other.
    systems: Option<PathBuf>,
    pub(crate) renamed: Renamed,
}

impl World {
    /// The daemon of a run directory, whose devices appear in `dev_dir`.
    pub fn new(run_dir: &Path, dev_dir: &Path) -> Self {
        Self {
            socket: thinmap_control::control_socket(run_dir),
            control_nodes: [PathBuf::from(CONTROL_NODE), dev_dir.join("control")],
            systems: None,
            renamed: Renamed::new(dev_dir),
        }
    }

    /// The system's own daemon, whatever the environment says.
    pub fn systems() -> Self {
        Self::new(Path::new(SYSTEMS_RUN_DIR), Path::new(SYSTEMS_DEV_DIR))
    }

    /// As the environment says (THINMAP_RUN_DIR, THINMAP_DEV_DIR), otherwise the user's default.
    pub fn from_environment() -> Self {
        let directory = |name| {
            std::env::var_os(name)
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from)
        };
        let told = directory("THINMAP_RUN_DIR");
        let systems = told.is_none() && !rustix::process::geteuid().is_root();
        let run_dir = told.unwrap_or_else(thinmap_control::default_run_dir);
        let dev_dir = directory("THINMAP_DEV_DIR")
            .unwrap_or_else(|| thinmap_control::default_dev_dir(&run_dir));
        Self {
            systems: systems.then(|| PathBuf::from(SYSTEMS_RUN_DIR)),
            ..Self::new(&run_dir, &dev_dir)
        }
    }

    /// Whether this path is the control node.
    pub fn is_control(&self, path: &Path) -> bool {
        // Comparing paths takes long, and nearly all are others.
        path.as_os_str().as_bytes().ends_with(CONTROL_ENDING)
            && self.control_nodes.iter().any(|node| node == path)
    }

    /// Whether the removal of the node at this absolute path must be left out, and reported as done. To be asked once
    /// for each removal.
    pub fn keeps_node(&self, path: &Path) -> bool {
        self.renamed.keeps(path)
    }

    /// Opens the control node: a connection on which the daemon tells of events, so that it can be polled.
    ///
    /// Ioctls do not go over it but over connections of their own: several threads and, after a fork, several
    /// processes may use one descriptor at a time.
    pub fn open_control(&self) -> Result<OwnedFd, Errno> {
        let watching = self.connect()?.watch_events();
        let watching = watching.map_err(|_| Errno::NODEV)?;
        // A read of the kernel's node fails; here it must at least not wait for an event. (O_NONBLOCK would be seen.)
        let timeout = watching.set_read_timeout(Some(READ_TIMEOUT));
        timeout.map_err(|_| Errno::NODEV)?;
        Ok(watching.into())
    }

    /// Whether `fd` came from [`World::open_control`], in this process or in one that handed it on.
    pub fn is_control_fd(&self, fd: impl AsFd) -> bool {
        let Ok(Some(peer)) = rustix::net::getpeername(fd) else {
            return false;
        };
        SocketAddrUnix::try_from(peer)
            .is_ok_and(|peer| peer.path_bytes() == Some(self.socket.as_os_str().as_encoded_bytes()))
    }

    /// Forgets the events told so far (DM_DEV_ARM_POLL): the next one makes the descriptor readable again.
    pub(crate) fn arm_poll(&self, fd: impl AsFd) {
        let mut events = [0; 256];
        let flags = rustix::net::RecvFlags::DONTWAIT;
        while matches!(rustix::net::recv(&fd, &mut events[..], flags), Ok((read, _)) if read > 0) {}
    }

    /// A connection to the daemon. Without one the errno of a driver that is not there.
    pub(crate) fn connect(&self) -> Result<Client, Errno> {
        let client =
            Client::connect(&self.socket).map_err(|error| match Errno::from_io_error(&error) {
                Some(errno @ (Errno::ACCESS | Errno::PERM | Errno::MFILE | Errno::NFILE)) => errno,
                // There is one, but not for this user.
                _ if self.systems.as_deref().is_some_and(Path::exists) => Errno::ACCESS,
                _ => Errno::NODEV,
            })?;
        match is_daemon(&client) {
            true => Ok(client),
            false => Err(Errno::NODEV),
        }
    }

    /// Whether the daemon has the capability to administer the system. One that has not (an ordinary user's, one in a
    /// container) asks nobody for it.
    pub(crate) fn daemon_is_admin(&self) -> bool {
        let Ok(client) = self.connect() else {
            return true;
        };
        rustix::net::sockopt::socket_peercred(client)
            .ok()
            .and_then(|daemon| effective_capabilities(daemon.pid.as_raw_nonzero().get()))
            .is_none_or(|capabilities| capabilities & CAP_SYS_ADMIN != 0)
    }

    /// The majors of mapped devices.
    pub(crate) fn majors(&self) -> Vec<u32> {
        vec![LOOP_MAJOR]
    }
}

/// Whether the one who listens is a daemon to be asked: not this very process, for a system-wide shim is in the daemon too, and to a
/// user nobody but himself and root, for others can make what is missing under /tmp.
fn is_daemon(listener: impl AsFd) -> bool {
    let me = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(listener).is_ok_and(|peer| {
        peer.pid != rustix::process::getpid()
            && (me.is_root() || peer.uid.is_root() || peer.uid == me)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_not_its_own_daemon() {
        let run_dir = tempfile::tempdir().expect("directory");
        let socket = thinmap_control::control_socket(run_dir.path());
        let _listener = std::os::unix::net::UnixListener::bind(socket).expect("listens");
        let world = World::new(run_dir.path(), run_dir.path());
        assert_eq!(world.open_control().err(), Some(Errno::NODEV));
    }
}
