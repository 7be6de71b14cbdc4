//! A running pool read through a metadata snapshot, which is taken for the purpose and given back after it.
//!
//! A snapshot that somebody else holds is left alone: the pool is refused then, for there is only one.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use thinmap_control::native::{NativeRequest, NativeResponse};
use thinmap_control::{
    CallError, Client, DeviceSelector, Request, Response, StatusKind, StatusQuery, TableLine,
    split_args,
};
use thinmap_thin_tools::command::LivePool;
use thinmap_units::{DevNo, DmName, Sector};

/// A running pool's metadata snapshot.
pub struct HeldPool {
    client: Client,
    name: DmName,
    metadata: PathBuf,
    held_root: u64,
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
        if let Err(error) = message(&mut self.client, &self.name, "release_metadata_snap") {
            eprintln!(
                "thinmap: the metadata snapshot of {} is still held ({error}): release it with \
                 dmsetup message {} 0 release_metadata_snap",
                self.name, self.name
            );
        }
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
    message(&mut client, &name, "reserve_metadata_snap")
        .with_context(|| format!("pool {name}: a metadata snapshot cannot be taken"))?;
    let mut held = HeldPool {
        client,
        name,
        metadata,
        held_root: 0,
    };
    let name = held.name.clone();
    held.held_root = held_root(&mut held.client, &name)?
        .with_context(|| format!("pool {name} lost its metadata snapshot: somebody released it"))?;
    Ok(held)
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
