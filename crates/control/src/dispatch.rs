//! From an ioctl buffer to a service call and back, by the kernel's rules.

use rustix::io::Errno;
use thinmap_units::{Sector, TableLine, split_args};
use zerocopy::IntoBytes;
use zeroize::{Zeroize, Zeroizing};

use crate::ioctl::{Command, Header, INTERFACE_VERSION};
use crate::request::Request;
use crate::response::Response;
use crate::service::{CancelToken, DmError, DmService, TargetVersion};

/// Runs command `nr` on `buffer`. Afterwards `buffer` holds the bytes to copy over the start of the caller's
/// buffer; on an error that is the version alone, or nothing when not even that could be written.
pub fn dispatch(
    service: &dyn DmService,
    nr: u32,
    buffer: &mut Vec<u8>,
    cancel: &CancelToken,
) -> Result<(), DmError> {
    let result = run(service, nr, buffer, cancel);
    if let Err(error) = &result {
        put_version_only(buffer);
        // A program written for the kernel sees the errno alone; the reason is looked for in the log.
        if !error.text.is_empty() {
            tracing::warn!(errno = error.errno, "{}", error.text);
        }
    }
    result
}

fn run(
    service: &dyn DmService,
    nr: u32,
    buffer: &mut Vec<u8>,
    cancel: &CancelToken,
) -> Result<(), DmError> {
    let version = Header::version_of(buffer)
        .ok_or_else(|| DmError::new(Errno::FAULT, "ioctl buffer is shorter than its version"))?;
    check_version(nr, version)?;
    let command = Command::from_nr(nr).ok_or_else(|| {
        DmError::new(
            Errno::NOTTY,
            format!("device-mapper: ioctl: dm_ctl_ioctl: unknown command 0x{nr:x}"),
        )
    })?;
    if command == Command::Version {
        // The kernel looks at no more than the version, and writes no more.
        put_version_only(buffer);
        return Ok(());
    }
    let mut request = Request::decode(command, buffer)
        .map_err(|wrong| first_error(service, command, buffer, wrong))?;
    let done = apply(service, &request, cancel).map(|mut response| {
        response.encode(&request, buffer);
        response.wipe();
    });
    request.wipe();
    done
}

/// Which error the kernel finds first, of one in the request and those that only the service can find.
fn first_error(
    service: &dyn DmService,
    command: Command,
    buffer: &[u8],
    wrong: DmError,
) -> DmError {
    if let Some(device) = Request::sought(command, buffer)
        && let Err(missing) = service.status(&device)
    {
        return missing;
    }
    // A rename of a device that cannot be there.
    if wrong.errno == Errno::NXIO.raw_os_error()
        && let Some(wanted) = Request::wanted(command, buffer)
        && service.status(&wanted).is_ok()
    {
        return DmError::new(
            Errno::BUSY,
            format!("device-mapper: ioctl: {wanted} is taken"),
        );
    }
    wrong
}

/// Calls the service for one request.
pub fn apply(
    service: &dyn DmService,
    request: &Request,
    cancel: &CancelToken,
) -> Result<Response, DmError> {
    Ok(match request {
        Request::Version => Response::Done,
        Request::ArmPoll => Response::Header,
        Request::RemoveAll { deferred } => {
            service.remove_all(*deferred)?;
            Response::Done
        }
        Request::ListDevices { .. } => Response::Devices(service.list_devices()?),
        Request::Create { name, uuid, minor } => {
            Response::Device(service.create(name, uuid.as_ref(), *minor)?)
        }
        Request::Remove { device, deferred } => {
            Response::Removed(service.remove(device, *deferred)?)
        }
        Request::Rename { device, new_name } => Response::Device(service.rename(device, new_name)?),
        Request::SetUuid { device, uuid } => Response::Device(service.set_uuid(device, uuid)?),
        Request::Suspend { device, options } => {
            Response::Device(service.suspend(device, *options)?)
        }
        Request::Resume { device, options } => Response::Device(service.resume(device, *options)?),
        Request::Status { device, .. } => Response::Device(service.status(device)?),
        Request::Wait {
            device,
            event_nr,
            query,
        } => Response::Status(service.wait_event(device, *event_nr, *query, cancel)?),
        Request::TableLoad {
            device,
            lines,
            is_whole: true,
            read_only,
        } => Response::Device(service.table_load(device, lines.clone(), *read_only)?),
        Request::TableLoad {
            device,
            lines,
            is_whole: false,
            read_only,
        } => return Err(broken_table(service, device, lines, *read_only)),
        Request::TableClear { device } => Response::Device(service.table_clear(device)?),
        Request::TableDeps { device, inactive } => {
            Response::Deps(service.table_deps(device, *inactive)?)
        }
        Request::TableStatus { device, query } => {
            Response::Status(service.table_status(device, *query)?)
        }
        Request::ListVersions => Response::Versions(service.target_versions()?),
        Request::TargetVersion { target } => {
            Response::Versions(vec![target_version(service, target)?])
        }
        Request::Message {
            device,
            sector,
            message,
        } => {
            let args = Zeroizing::new(split_args(message));
            let Some(first) = args.first() else {
                service.status(device)?;
                return Err(log("Empty message received."));
            };
            if first.starts_with('@') {
                return core_message(service, device, &args);
            }
            let (info, text) = service.message(device, *sector, &args)?;
            match info.live {
                Some(_) => Response::Message { info, text },
                // COMPAT: with no table to take it, the kernel writes nothing.
                None => Response::Done,
            }
        }
        Request::SetGeometry { device, geometry } => {
            service.set_geometry(device, *geometry)?;
            Response::Done
        }
    })
}

/// Why a table is refused of which a record cannot be read: the kernel has constructed the targets before it by then, so what is
/// wrong with those comes first.
fn broken_table(
    service: &dyn DmService,
    device: &crate::DeviceSelector,
    lines: &[TableLine],
    read_only: bool,
) -> DmError {
    // In place of the missing record one that no table may have.
    let impossible = TableLine {
        start: Sector::ZERO,
        len: Sector::ZERO,
        target: String::new(),
        params: String::new(),
    };
    let lines = lines.iter().cloned().chain([impossible]).collect();
    match service.table_load(device, lines, read_only) {
        Err(error) if error.errno != Errno::INVAL.raw_os_error() => error,
        _ => log("unable to find target"),
    }
}

/// Messages to device mapper itself begin with `@`.
fn core_message(
    service: &dyn DmService,
    device: &crate::DeviceSelector,
    args: &[String],
) -> Result<Response, DmError> {
    match args {
        [word] if word.eq_ignore_ascii_case("@cancel_deferred_remove") => Ok(Response::Message {
            info: service.cancel_deferred_remove(device)?,
            text: None,
        }),
        [word, ..] => service.status(device).and(Err(log(&format!(
            "Unsupported message sent to DM core: {word}"
        )))),
        [] => Err(log("Empty message received.")),
    }
}

fn target_version(service: &dyn DmService, target: &str) -> Result<TargetVersion, DmError> {
    service
        .target_versions()?
        .into_iter()
        .find(|known| known.name == target)
        .ok_or_else(|| DmError::new(Errno::INVAL, ""))
}

fn log(text: &str) -> DmError {
    DmError::new(Errno::INVAL, format!("device-mapper: ioctl: {text}"))
}

/// The caller's major version must be ours and its minor not newer.
pub fn check_version(nr: u32, [major, minor, patch]: [u32; 3]) -> Result<(), DmError> {
    let [our_major, our_minor, our_patch] = INTERFACE_VERSION;
    if major != our_major || minor > our_minor {
        return Err(log(&format!(
            "ioctl interface mismatch: kernel({our_major}.{our_minor}.{our_patch}), \
             user({major}.{minor}.{patch}), cmd({nr})"
        )));
    }
    Ok(())
}

fn put_version_only(buffer: &mut Vec<u8>) {
    let version = Header::new(0).version;
    let len = buffer.len();
    // It may have held a key.
    buffer.zeroize();
    if len < version.as_bytes().len() {
        return;
    }
    buffer.extend_from_slice(version.as_bytes());
}
