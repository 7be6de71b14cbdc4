//! Who uses a mapped device, for tools that want it for themselves: its daemon says.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use thinmap_control::native::{DeviceExports, NativeRequest, NativeResponse};
use thinmap_control::{CallError, Client, DeviceSelector, Request, Response};
use thinmap_thin_tools::ServedDevice;
use thinmap_units::DevNo;

/// How long a daemon may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Looks at a device in use before it counts: programs that look at every block device open each for a moment.
const LOOKS: u32 = 8;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Who uses `device`. The daemon is that of the device's file; where that cannot be told, the one of `own_run_dir`, if
/// it runs and the device is its.
pub fn user_of(device: &ServedDevice, own_run_dir: &Path) -> Option<String> {
    let (run_dir, is_certain) = match device.file.as_deref().and_then(run_dir_of) {
        Some(run_dir) => (run_dir.to_owned(), true),
        None => (own_run_dir.to_owned(), false),
    };
    let (sender, receiver) = mpsc::channel();
    let (device, socket) = (device.clone(), thinmap_control::control_socket(&run_dir));
    // A daemon that is stopped takes the connection and never answers: nobody waits for this thread then.
    std::thread::spawn(move || sender.send(ask(&device, &socket)));
    let name = format!("thinmap's daemon in {}", run_dir.display());
    match receiver.recv_timeout(PATIENCE) {
        Ok(Ok(Answer::Users(0))) => None,
        Ok(Ok(Answer::Users(users))) => Some(format!(
            "a table, a mount or a program (open count {users}, says {name})"
        )),
        Ok(Ok(Answer::Unknown)) => {
            is_certain.then(|| format!("{name}, maybe, which knows no such device any more"))
        }
        Ok(Err(CallError::Transport { .. })) if !is_certain => None,
        Ok(Err(error)) => Some(format!("{name}, maybe, which cannot be asked ({error})")),
        Err(_) => Some(format!("{name}, maybe, which does not answer")),
    }
}

enum Answer {
    Users(u32),
    /// The daemon has no such device.
    Unknown,
}

/// `<run directory>/fuse/<file>`
fn run_dir_of(file: &Path) -> Option<&Path> {
    let dir = file.parent()?;
    dir.parent()
        .filter(|_| dir.file_name() == Some("fuse".as_ref()))
}

fn ask(device: &ServedDevice, socket: &Path) -> Result<Answer, CallError> {
    let mut client = Client::connect(socket).map_err(|source| CallError::Transport {
        path: PathBuf::from(socket),
        source,
    })?;
    let NativeResponse::Devices { devices } = client.native(&NativeRequest::Devices)? else {
        return Ok(Answer::Unknown);
    };
    let number_of = |known: &DeviceExports| DevNo::new(known.major, known.minor);
    let is_it = |known: &&DeviceExports| match device.number {
        Some(number) => number == number_of(known),
        None => device.file.is_some() && device.file == known.file,
    };
    let Some(known) = devices.iter().find(is_it) else {
        return Ok(Answer::Unknown);
    };
    let request = Request::Status {
        inactive: false,
        device: DeviceSelector::Dev(number_of(known)),
    };
    let mut looks = 1;
    loop {
        let users = match client.run(&request)? {
            Response::Device(info) => info.open_count,
            _ => return Ok(Answer::Unknown),
        };
        if users == 0 || looks == LOOKS {
            return Ok(Answer::Users(users));
        }
        looks += 1;
        std::thread::sleep(BETWEEN_LOOKS);
    }
}
