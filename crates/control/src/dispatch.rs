//! From an ioctl buffer to a service call and back, by the kernel's rules.

use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::ioctl::{Command, Header, INTERFACE_VERSION};
use crate::request::Request;
use crate::response::Response;
use crate::service::{CancelToken, DmError, DmService, TargetVersion};
use crate::split_args;

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
    check_version(nr, buffer)?;
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
    let request = Request::decode(command, buffer)?;
    let response = apply(service, &request, cancel)?;
    response.encode(&request, buffer);
    Ok(())
}

/// Calls the service for one request.
pub fn apply(
    service: &dyn DmService,
    request: &Request,
    cancel: &CancelToken,
) -> Result<Response, DmError> {
    Ok(match request {
        Request::Version | Request::ArmPoll => Response::Done,
        Request::RemoveAll { deferred } => {
            service.remove_all(*deferred)?;
            Response::Done
        }
        Request::ListDevices { .. } => Response::Devices(service.list_devices()?),
        Request::Create { name, uuid, minor } => {
            Response::Device(service.create(name, uuid.as_ref(), *minor)?)
        }
        Request::Remove { device, deferred } => match service.remove(device, *deferred)? {
            Some(info) => Response::Device(info),
            None => Response::Removed,
        },
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
            read_only,
        } => Response::Device(service.table_load(device, lines.clone(), *read_only)?),
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
            let args = split_args(message);
            let Some(first) = args.first() else {
                return Err(log("Empty message received."));
            };
            if first.starts_with('@') {
                return core_message(service, device, &args);
            }
            let (info, text) = service.message(device, *sector, &args)?;
            Response::Message { info, text }
        }
        Request::SetGeometry { device, geometry } => {
            service.set_geometry(device, *geometry)?;
            Response::Done
        }
    })
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
        [word, ..] => Err(log(&format!("Unsupported message sent to DM core: {word}"))),
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
fn check_version(nr: u32, buffer: &[u8]) -> Result<(), DmError> {
    let [major, minor, patch] = Header::version_of(buffer)
        .ok_or_else(|| DmError::new(Errno::FAULT, "ioctl buffer is shorter than its version"))?;
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
    if buffer.len() < version.as_bytes().len() {
        buffer.clear();
        return;
    }
    buffer.clear();
    buffer.extend_from_slice(version.as_bytes());
}
