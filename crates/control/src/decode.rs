//! The kernel's reading of an ioctl buffer, with its errnos, in its order. Must never panic, whatever the bytes.

use rustix::io::Errno;
use thinmap_units::{DevNo, DmName, DmUuid, Sector, TableLine};
use zerocopy::{FromBytes, NativeEndian, U64};

use crate::ioctl::{
    Command, HEADER_BYTES_MIN, Header, NAME_FIELD_BYTES, TARGET_SPEC_BYTES, TARGETS_MAX,
    TargetSpec, UUID_FIELD_BYTES, flag, until_nul,
};
use crate::request::Request;
use crate::service::{DeviceSelector, DmError, Geometry, StatusKind, StatusQuery, SuspendOptions};

impl Request {
    /// Reads a request for `command` from a buffer whose version is already checked.
    ///
    /// `buffer` is the memory that the caller owns; a `data_size` beyond it is EFAULT, one below the header is
    /// EINVAL.
    pub fn decode(command: Command, buffer: &[u8]) -> Result<Self, DmError> {
        if command == Command::Version {
            return Ok(Self::Version);
        }
        let (header, buffer) = header_and_payload(command, buffer)?;
        let input = Input { header, buffer };
        match command {
            Command::Version => Ok(Self::Version),
            Command::RemoveAll => Ok(Self::RemoveAll {
                deferred: header.has(flag::DEFERRED_REMOVE),
            }),
            Command::ListDevices => Ok(Self::ListDevices {
                name_prefix: text(until_nul(&header.name)),
                uuid_prefix: text(until_nul(&header.uuid)),
                with_uuids: header.has(flag::UUID),
            }),
            Command::DevCreate => input.create(),
            Command::DevRename => input.rename(),
            Command::ListVersions => Ok(Self::ListVersions),
            Command::DevArmPoll => Ok(Self::ArmPoll),
            Command::TargetVersion => Ok(Self::TargetVersion {
                target: text(until_nul(&header.name)),
            }),
            _ => input.about_device(command),
        }
    }

    /// The device of a request whose payload is wrong, where the kernel looks for the device first.
    pub(crate) fn sought(command: Command, buffer: &[u8]) -> Option<DeviceSelector> {
        let seeks_first = matches!(
            command,
            Command::TableLoad | Command::TargetMsg | Command::DevSetGeometry
        );
        let (header, buffer) = header_and_payload(command, buffer).ok()?;
        seeks_first.then(|| Input { header, buffer }.selector().ok())?
    }

    /// The device that has the name or uuid which a rename asks for.
    pub(crate) fn wanted(command: Command, buffer: &[u8]) -> Option<DeviceSelector> {
        let (header, buffer) = header_and_payload(command, buffer).ok()?;
        let input = Input { header, buffer };
        let new = input.new_text().ok()?;
        match (command == Command::DevRename, header.has(flag::UUID)) {
            (true, true) => new_uuid(new).ok().map(DeviceSelector::Uuid),
            (true, false) => new_name(new).ok().map(DeviceSelector::Name),
            _ => None,
        }
    }
}

/// The header as the kernel takes it and the bytes it may look at: `data_size` of them, or the bare header for
/// commands that ignore the rest.
fn header_and_payload(command: Command, buffer: &[u8]) -> Result<(Header, &[u8]), DmError> {
    let (mut header, _) = Header::read_from_prefix(buffer)
        .map_err(|_| DmError::new(Errno::FAULT, "ioctl buffer is shorter than its header"))?;
    let data_size = header.data_size.get() as usize;
    if !header.has_good_size() {
        return Err(log(&format!(
            "Invalid data size in the ioctl structure: {data_size}"
        )));
    }
    let used = if command.ignores_payload() {
        HEADER_BYTES_MIN
    } else {
        data_size
    };
    let payload = buffer
        .get(..used)
        .ok_or_else(|| DmError::new(Errno::FAULT, "ioctl buffer is shorter than its data_size"))?;

    let nr = command.nr();
    match command {
        _ if command.ignores_names() => {}
        Command::DevCreate if header.name[0] == 0 => {
            return Err(log("name not supplied when creating device"));
        }
        Command::DevCreate => {}
        _ if header.uuid[0] != 0 && header.name[0] != 0 => {
            return Err(log(&format!("only supply one of name or uuid, cmd({nr})")));
        }
        _ => {}
    }
    header.terminate(command);
    Ok((header, payload))
}

/// EINVAL with a line as the kernel logs it.
fn log(text: &str) -> DmError {
    DmError::new(Errno::INVAL, format!("device-mapper: ioctl: {text}"))
}

/// One checked ioctl buffer.
struct Input<'a> {
    header: Header,
    buffer: &'a [u8],
}

impl Input<'_> {
    /// The NUL-terminated text at `offset`, which must end inside the buffer.
    fn text_at(&self, offset: usize) -> Option<&[u8]> {
        let rest = self.buffer.get(offset..)?;
        rest.iter()
            .position(|byte| *byte == 0)
            .and_then(|end| rest.get(..end))
    }

    /// The payload's offset, if it lies behind the header as the kernel asks.
    fn payload_start(&self) -> Option<usize> {
        let start = self.header.data_start.get() as usize;
        (start >= HEADER_BYTES_MIN).then_some(start)
    }

    /// One of uuid, name and number; ENXIO when it is none or more than one.
    fn selector(&self) -> Result<DeviceSelector, DmError> {
        let name = until_nul(&self.header.name);
        let uuid = until_nul(&self.header.uuid);
        let dev = self.header.dev.get();
        match (name.is_empty(), uuid.is_empty(), dev) {
            // A name that no device can have is not there, rather than wrong.
            (true, false, 0) => DmUuid::new(&text(uuid))
                .map(DeviceSelector::Uuid)
                .map_err(|_| DmError::no_device()),
            (false, true, 0) => DmName::new(&text(name))
                .map(DeviceSelector::Name)
                .map_err(|_| DmError::no_device()),
            (true, true, dev) if dev != 0 => Ok(DeviceSelector::Dev(DevNo::from_kernel(dev))),
            _ => Err(DmError::no_device()),
        }
    }

    fn create(&self) -> Result<Request, DmError> {
        let uuid = until_nul(&self.header.uuid);
        let minor = DevNo::from_kernel(self.header.dev.get()).minor;
        Ok(Request::Create {
            name: new_name(until_nul(&self.header.name))?,
            uuid: (!uuid.is_empty()).then(|| new_uuid(uuid)).transpose()?,
            minor: self.header.has(flag::PERSISTENT_DEV).then_some(minor),
        })
    }

    /// What a rename gives: a name, or a uuid.
    fn new_text(&self) -> Result<&[u8], DmError> {
        let new_max = if self.header.has(flag::UUID) {
            UUID_FIELD_BYTES
        } else {
            NAME_FIELD_BYTES
        } - 1;
        self.payload_start()
            .and_then(|start| self.text_at(start))
            .filter(|new| (1..=new_max).contains(&new.len()))
            .ok_or_else(|| log("Invalid new mapped device name or uuid string supplied."))
    }

    fn rename(&self) -> Result<Request, DmError> {
        let set_uuid = self.header.has(flag::UUID);
        let new = self.new_text()?;
        // The kernel looks renames up by name only.
        let old = text(until_nul(&self.header.name));
        let device = |old: &str| DmName::new(old).map_err(|_| DmError::no_device());
        if set_uuid {
            let uuid = new_uuid(new)?;
            Ok(Request::SetUuid {
                device: device(&old)?,
                uuid,
            })
        } else {
            let new_name = new_name(new)?;
            Ok(Request::Rename {
                device: device(&old)?,
                new_name,
            })
        }
    }

    fn about_device(&self, command: Command) -> Result<Request, DmError> {
        let header = &self.header;
        let device = self.selector()?;
        let inactive = header.has(flag::QUERY_INACTIVE_TABLE);
        let options = SuspendOptions {
            lock_fs: !header.has(flag::SKIP_LOCKFS),
            no_flush: header.has(flag::NOFLUSH),
        };
        Ok(match command {
            Command::DevRemove => Request::Remove {
                device,
                deferred: header.has(flag::DEFERRED_REMOVE),
            },
            Command::DevSuspend if header.has(flag::SUSPEND) => {
                Request::Suspend { device, options }
            }
            Command::DevSuspend => Request::Resume { device, options },
            Command::DevWait => Request::Wait {
                device,
                event_nr: header.event_nr.get(),
                query: self.query(),
            },
            Command::TableLoad => {
                let (lines, is_whole) = self.table()?;
                Request::TableLoad {
                    device,
                    lines,
                    is_whole,
                    read_only: header.has(flag::READONLY),
                }
            }
            Command::TableClear => Request::TableClear { device },
            Command::TableDeps => Request::TableDeps { device, inactive },
            Command::TableStatus => Request::TableStatus {
                device,
                query: self.query(),
            },
            Command::TargetMsg => self.message(device)?,
            Command::DevSetGeometry => self.geometry(device)?,
            // DevStatus, and those that `decode` has already taken.
            _ => Request::Status { device, inactive },
        })
    }

    fn query(&self) -> StatusQuery {
        StatusQuery {
            kind: if self.header.has(flag::STATUS_TABLE) {
                StatusKind::Table
            } else if self.header.has(flag::IMA_MEASUREMENT) {
                StatusKind::Measurement
            } else {
                StatusKind::Info
            },
            inactive: self.header.has(flag::QUERY_INACTIVE_TABLE),
            no_flush: self.header.has(flag::NOFLUSH),
        }
    }

    /// The target records of a table load, as far as they can be read; `next` counts from the record that holds it.
    fn table(&self) -> Result<Records, DmError> {
        let count = self.header.target_count.get();
        if count == 0 {
            return Err(log("populate_table: no targets specified"));
        }
        if count > TARGETS_MAX {
            let text = format!("device-mapper: table: {count} targets are too many");
            return Err(DmError::new(Errno::OVERFLOW, text));
        }
        let mut lines = Vec::new();
        let mut at = 0_usize;
        let mut next = self.header.data_start.get() as usize;
        let mut head_bytes = HEADER_BYTES_MIN;
        for _ in 0..count {
            // INVARIANT: `next` steps over the previous head, so a hostile chain cannot loop for ever.
            let record = (next >= head_bytes)
                .then(|| self.record_at(at.checked_add(next)?))
                .flatten();
            let Some((spec, params)) = record else {
                return Ok((lines, false));
            };
            lines.push(TableLine {
                start: Sector(spec.sector_start.get()),
                len: Sector(spec.length.get()),
                target: text(until_nul(&spec.target_type)),
                params: text(params),
            });
            at += next;
            next = spec.next.get() as usize;
            head_bytes = TARGET_SPEC_BYTES;
        }
        Ok((lines, true))
    }

    fn record_at(&self, at: usize) -> Option<(TargetSpec, &[u8])> {
        let (spec, _) = TargetSpec::read_from_prefix(self.buffer.get(at..)?).ok()?;
        Some((spec, self.text_at(at + TARGET_SPEC_BYTES)?))
    }

    fn message(&self, device: DeviceSelector) -> Result<Request, DmError> {
        let invalid = || log("Invalid target message parameters.");
        let start = self.payload_start().ok_or_else(invalid)?;
        let rest = self.buffer.get(start..).ok_or_else(invalid)?;
        let (sector, _) = U64::<NativeEndian>::read_from_prefix(rest).map_err(|_| invalid())?;
        let message = self.text_at(start + size_of::<u64>()).ok_or_else(invalid)?;
        Ok(Request::Message {
            device,
            sector: Sector(sector.get()),
            message: text(message),
        })
    }

    fn geometry(&self, device: DeviceSelector) -> Result<Request, DmError> {
        let text = self
            .payload_start()
            .and_then(|start| self.text_at(start))
            .ok_or_else(|| log("Invalid geometry supplied."))?;
        let [cylinders, heads, sectors, start] =
            four_numbers(text).ok_or_else(|| log("Unable to interpret geometry settings."))?;
        let beyond = |_| log("Geometry exceeds range limits.");
        Ok(Request::SetGeometry {
            device,
            geometry: Geometry {
                cylinders: cylinders.try_into().map_err(beyond)?,
                heads: heads.try_into().map_err(beyond)?,
                sectors_per_track: sectors.try_into().map_err(beyond)?,
                start: Sector(start),
            },
        })
    }
}

/// Lines of a table, and whether that is all of them.
type Records = (Vec<TableLine>, bool);

/// Four numbers with white space before each of them and nothing behind, as the kernel's `sscanf` reads them: without
/// signs, and beyond 64 bits beginning at 0 again.
fn four_numbers(text: &[u8]) -> Option<[u64; 4]> {
    let mut rest = text;
    let mut numbers = [0_u64; 4];
    for number in &mut numbers {
        while let [b' ' | b'\t'..=b'\r' | 0xa0, tail @ ..] = rest {
            rest = tail;
        }
        rest.first().filter(|byte| byte.is_ascii_digit())?;
        while let [digit @ b'0'..=b'9', tail @ ..] = rest {
            *number = number
                .wrapping_mul(10)
                .wrapping_add(u64::from(digit - b'0'));
            rest = tail;
        }
    }
    rest.is_empty().then_some(numbers)
}

/// What only has to be looked up or refused may hold any bytes.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// COMPAT: the kernel gives devices names and uuids of any bytes; here they must be UTF-8.
fn utf8(bytes: &[u8]) -> Result<&str, DmError> {
    std::str::from_utf8(bytes).map_err(|_| log("a new name or uuid is not valid UTF-8"))
}

fn new_name(bytes: &[u8]) -> Result<DmName, DmError> {
    DmName::new(utf8(bytes)?).map_err(|_| log("invalid device name"))
}

fn new_uuid(bytes: &[u8]) -> Result<DmUuid, DmError> {
    DmUuid::new(utf8(bytes)?).map_err(|_| log("invalid device uuid"))
}
