//! A running pool read through a metadata snapshot, which is taken for the purpose and given back after it.
//!
//! A snapshot that somebody else holds is left alone: the pool is refused then, for there is only one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thinmap_control::native::{NativeRequest, NativeResponse};
use thinmap_control::{
    CallError, Client, DeviceSelector, Request, Response, StatusKind, StatusQuery, TableLine,
    split_args,
};
use thinmap_thin_tools::command::LivePool;
use thinmap_units::{DevNo, DmName, Sector};

/// How long a signal may wait for the daemon.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running pool's metadata snapshot.
pub struct HeldPool {
    snapshot: Arc<Snapshot>,
    metadata: PathBuf,
    held_root: u64,
}

/// What must be given back, once: at the end, or on the signal that ends the command.
struct Snapshot {
    name: DmName,
    /// `None` when there is nothing to give back.
    client: Mutex<Option<Client>>,
}

impl Snapshot {
    fn release(&self) {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut client) = client.take() else {
            return;
        };
        if let Err(error) = message(&mut client, &self.name, "release_metadata_snap") {
            let why = match error.text() {
                text if text.is_empty() => io::Error::from_raw_os_error(error.errno()).to_string(),
                text => text,
            };
            eprintln!(
                "thinmap: the metadata snapshot of {name} may still be held ({why}): release it with \
                 dmsetup message {name} 0 release_metadata_snap",
                name = self.name
            );
        }
    }

    /// Releases on a signal too, which then ends the command as it would have.
    fn release_on_signals(self: &Arc<Self>) -> io::Result<()> {
        let ends = [SIGHUP, SIGINT, SIGTERM].into_iter();
        let mut signals = Signals::new(ends.filter(|signal| !is_ignored(*signal)))?;
        let snapshot = self.clone();
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                let (done, is_done) = mpsc::channel();
                std::thread::spawn(move || {
                    snapshot.release();
                    done.send(())
                });
                // A daemon that hangs must not keep the command.
                let _ = is_done.recv_timeout(PATIENCE);
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        });
        Ok(())
    }
}

/// Whether who started this program wants it to outlive the signal (nohup).
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

impl LivePool for HeldPool {
    fn metadata(&self) -> &Path {
        &self.metadata
    }

    fn held_root(&self) -> u64 {
        self.held_root
    }
}

impl Drop for HeldPool {
    fn drop(&mut self) {
        self.snapshot.release();
    }
}

/// Takes a metadata snapshot of the pool named `name`; `None` when no daemon runs, or has no such device.
///
/// # Errors
/// The device is no pool, a metadata snapshot is held already, the metadata cannot be found.
pub fn hold(socket: &Path, name: &str) -> anyhow::Result<Option<HeldPool>> {
    let Ok(mut client) = Client::connect(socket) else {
        return Ok(None);
    };
    let plain = Some(name.to_owned());
    for name in [plain, crate::dmsetup::mangled_name(name)]
        .into_iter()
        .flatten()
    {
        let Ok(name) = DmName::new(&name) else {
            continue;
        };
        if let Ok(lines) = lines(&mut client, &name, StatusKind::Table) {
            return hold_pool(client, name, &lines).map(Some);
        }
    }
    Ok(None)
}

fn hold_pool(mut client: Client, name: DmName, table: &[TableLine]) -> anyhow::Result<HeldPool> {
    let Some(pool) = table.first().filter(|line| line.target == "thin-pool") else {
        bail!("{name} is no thin pool: name the pool, or its metadata device");
    };
    let device = split_args(&pool.params)
        .into_iter()
        .next()
        .unwrap_or_default();
    let metadata = metadata_path(&mut client, &device)
        .with_context(|| format!("the metadata device {device} of {name}"))?;
    if let Some(block) = held_root(&mut client, &name)? {
        bail!(
            "pool {name} holds a metadata snapshot already, in block {block}: read that one \
             ({} with --metadata-snap), or release it (dmsetup message {name} 0 release_metadata_snap)",
            metadata.display()
        );
    }
    let snapshot = Arc::new(Snapshot {
        name: name.clone(),
        client: Mutex::new(None),
    });
    // A signal from here on waits until it is known whether there is something to give back.
    let mut held = snapshot
        .client
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    snapshot
        .release_on_signals()
        .context("signals cannot be caught")?;
    message(&mut client, &name, "reserve_metadata_snap")
        .with_context(|| format!("pool {name}: a metadata snapshot cannot be taken"))?;
    let found = held_root(&mut client, &name);
    *held = Some(client);
    drop(held);
    let mut pool = HeldPool {
        snapshot,
        metadata,
        held_root: 0,
    };
    pool.held_root = found?
        .with_context(|| format!("pool {name} lost its metadata snapshot: somebody released it"))?;
    Ok(pool)
}

/// The live table of a device, or its status.
fn lines(
    client: &mut Client,
    name: &DmName,
    kind: StatusKind,
) -> Result<Vec<TableLine>, CallError> {
    let request = Request::TableStatus {
        device: DeviceSelector::Name(name.clone()),
        query: StatusQuery {
            kind,
            inactive: false,
            no_flush: false,
        },
    };
    match client.run(&request)? {
        Response::Status(status) => Ok(status.lines.unwrap_or_default()),
        _ => Ok(Vec::new()),
    }
}

/// The block of the pool's metadata snapshot, by its status.
fn held_root(client: &mut Client, name: &DmName) -> anyhow::Result<Option<u64>> {
    let status =
        lines(client, name, StatusKind::Info).with_context(|| format!("the status of {name}"))?;
    let params = status.first().map_or("", |line| line.params.as_str());
    match params.split(' ').nth(3) {
        Some("-") => Ok(None),
        Some(block) => Ok(Some(block.parse().with_context(|| {
            format!("the status of {name} makes no sense: {params}")
        })?)),
        None => bail!("pool {name} is not in working order: {params}"),
    }
}

fn message(client: &mut Client, name: &DmName, text: &str) -> Result<(), CallError> {
    let request = Request::Message {
        device: DeviceSelector::Name(name.clone()),
        sector: Sector(0),
        message: text.to_owned(),
    };
    client.run(&request).map(|_| ())
}

/// Where a device that a table names can be read: a file, a block device of the host, or one of the daemon's.
fn metadata_path(client: &mut Client, device: &str) -> anyhow::Result<PathBuf> {
    let Ok(dev_no) = device.parse::<DevNo>() else {
        return Ok(PathBuf::from(device));
    };
    if let NativeResponse::Devices { devices } = client.native(&NativeRequest::Devices)? {
        let ours = devices
            .into_iter()
            .find(|known| (known.major, known.minor) == (dev_no.major, dev_no.minor));
        if let Some(ours) = ours {
            return ours
                .block_device
                .or(ours.file)
                .context("it is one of thinmap's that no path leads to");
        }
    }
    let uevent = std::fs::read_to_string(format!("/sys/dev/block/{dev_no}/uevent"))?;
    uevent
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))
        .map(|name| Path::new("/dev").join(name))
        .context("the kernel does not know its name")
}
