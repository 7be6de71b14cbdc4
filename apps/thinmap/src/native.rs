//! thinmap's own verbs: stopping the daemon, and where devices can be reached.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use thinmap_control::native::{DaemonInfo, DeviceExports, NativeRequest, NativeResponse};
use thinmap_control::{CallError, Client};

use crate::run_paths::RunPaths;

/// `thinmap stop`
pub fn stop(paths: &RunPaths, force: bool) -> anyhow::Result<()> {
    let Some(mut client) = running(paths)? else {
        println!("No daemon is running.");
        return Ok(());
    };
    match client.native(&NativeRequest::Stop { force }) {
        Ok(_) => {}
        Err(CallError::Refused(error)) => bail!("the daemon does not stop: {}", error.text),
        Err(error) => return Err(error.into()),
    }
    // The lock is held until everything has been taken down.
    let lock_path = paths.control_socket().with_extension("lock");
    let lock = std::fs::File::open(&lock_path).with_context(|| {
        format!(
            "cannot wait for the daemon's end at {}",
            lock_path.display()
        )
    })?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockShared)?;
    Ok(())
}

/// `thinmap upgrade`
pub fn upgrade(paths: &RunPaths) -> anyhow::Result<()> {
    let mut client = running_daemon(paths)?;
    let before = ping_info(&mut client)?;
    let binary = std::env::current_exe()?;
    match client.native(&NativeRequest::Upgrade { binary }) {
        Ok(_) => {}
        Err(CallError::Refused(error)) => bail!("no upgrade: {}", error.text),
        Err(error) => return Err(error.into()),
    }
    drop(client);
    // Who connects meanwhile waits for the next daemon, so the first that answers with another process is it.
    let until = Instant::now() + UPGRADE_MAX;
    while Instant::now() < until {
        let info = running_daemon(paths).and_then(|mut client| ping_info(&mut client));
        if let Ok(info) = info
            && info.pid != before.pid
        {
            println!(
                "{} (process {}) took over from {}",
                info.version, info.pid, before.version
            );
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("the next daemon does not answer; its log says why");
}

fn running_daemon(paths: &RunPaths) -> anyhow::Result<Client> {
    match running(paths)? {
        Some(client) => Ok(client),
        None => bail!("no daemon answers at {}", paths.control_socket().display()),
    }
}

fn ping_info(client: &mut Client) -> anyhow::Result<DaemonInfo> {
    match client.native(&NativeRequest::Ping)? {
        NativeResponse::Pong(info) => Ok(info),
        _ => bail!("the daemon's answer makes no sense"),
    }
}

/// As long as the keeper gives two daemons: the new one, and the one before if that does not come up.
const UPGRADE_MAX: Duration = Duration::from_secs(120);

/// `thinmap ping`
pub fn ping(paths: &RunPaths) -> anyhow::Result<()> {
    let info = ping_info(&mut running_daemon(paths)?)?;
    println!("version:          {}", info.version);
    println!("process:          {}", info.pid);
    if let Some(keeper) = info.keeper {
        println!("keeper:           {keeper}");
    }
    println!("run directory:    {}", info.run_dir.display());
    println!("device directory: {}", info.dev_dir.display());
    Ok(())
}

/// `thinmap ls-exports`
pub fn list_exports(
    paths: &RunPaths,
    name: Option<String>,
    json: bool,
    autostart: bool,
) -> anyhow::Result<()> {
    let mut client = crate::daemon_start::connect(paths, autostart)
        .with_context(|| format!("control socket {}", paths.control_socket().display()))?;
    let devices = match name {
        Some(name) => vec![exports_of(&mut client, &name)?],
        None => match client.native(&NativeRequest::Devices)? {
            NativeResponse::Devices { devices } => devices,
            _ => bail!("the daemon's answer makes no sense"),
        },
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&devices)?);
    } else {
        devices.iter().for_each(print_device);
    }
    Ok(())
}

/// One device, named as it is or as dmsetup shows it.
fn exports_of(client: &mut Client, name: &str) -> anyhow::Result<DeviceExports> {
    for name in [Some(name.to_owned()), crate::dmsetup::mangled_name(name)]
        .into_iter()
        .flatten()
    {
        match client.native(&NativeRequest::OpenPath { name }) {
            Ok(NativeResponse::OpenPath { device }) => return Ok(device),
            Ok(_) => bail!("the daemon's answer makes no sense"),
            Err(CallError::Refused(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bail!("there is no device named '{name}'")
}

fn print_device(device: &DeviceExports) {
    println!(
        "{} ({}:{}), {} sectors",
        device.name, device.major, device.minor, device.sectors
    );
    let paths = [
        ("node", &device.node),
        ("block device", &device.block_device),
        ("file", &device.file),
    ];
    for (what, path) in paths {
        if let Some(path) = path {
            println!("  {what}: {}", path.display());
        }
    }
    if let Some(uri) = &device.nbd {
        println!("  nbd: {uri}");
    }
    for note in &device.notes {
        println!("  note: {note}");
    }
}

/// A connection to a daemon that is there already.
fn running(paths: &RunPaths) -> anyhow::Result<Option<Client>> {
    let socket = paths.control_socket();
    match Client::connect(&socket) {
        Ok(client) => Ok(Some(client)),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("control socket {}", socket.display())),
    }
}
