//! Requests: what an ioctl buffer asks for, in typed form, and back.
//!
//! [`Request::decode`] is the kernel's reading of a buffer, with its errnos; [`Request::encode`] is what
//! libdevmapper would send. Decoding must never panic, whatever the bytes.

use rustix::io::Errno;
use thinmap_units::{DevNo, DmName, DmUuid, Sector};
use zerocopy::{FromBytes, IntoBytes, NativeEndian, U32, U64};

use crate::ioctl::{
    Command, HEADER_BYTES, HEADER_BYTES_MIN, Header, NAME_FIELD_BYTES, TARGET_SPEC_BYTES,
    TargetSpec, UUID_FIELD_BYTES, flag, nul_padded, until_nul,
};
use crate::service::{
    DeviceSelector, DmError, Geometry, StatusKind, StatusQuery, SuspendOptions, TableLine,
};
use crate::split_args;

/// A request in typed form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Interface version only.
    Version,
    RemoveAll {
        deferred: bool,
    },
    /// Devices whose name and uuid begin with the prefixes (empty: all).
    ListDevices {
        name_prefix: String,
        uuid_prefix: String,
        with_uuids: bool,
    },
    Create {
        name: DmName,
        uuid: Option<DmUuid>,
        minor: Option<u32>,
    },
    Remove {
        device: DeviceSelector,
        deferred: bool,
    },
    Rename {
        device: DmName,
        new_name: DmName,
    },
    SetUuid {
        device: DmName,
        uuid: DmUuid,
    },
    Suspend {
        device: DeviceSelector,
        options: SuspendOptions,
    },
    Resume {
        device: DeviceSelector,
        options: SuspendOptions,
    },
    Status {
        device: DeviceSelector,
        inactive: bool,
    },
    Wait {
        device: DeviceSelector,
        event_nr: u32,
        query: StatusQuery,
    },
    TableLoad {
        device: DeviceSelector,
        lines: Vec<TableLine>,
        read_only: bool,
    },
    TableClear {
        device: DeviceSelector,
    },
    TableDeps {
        device: DeviceSelector,
        inactive: bool,
    },
    TableStatus {
        device: DeviceSelector,
        query: StatusQuery,
    },
    ListVersions,
    Message {
        device: DeviceSelector,
        sector: Sector,
        /// Unsplit text.
        message: String,
    },
    SetGeometry {
        device: DeviceSelector,
        geometry: Geometry,
    },
    ArmPoll,
    /// One target's version.
    TargetVersion {
        target: String,
    },
}

impl Request {
    /// The command that carries this request.
    pub fn command(&self) -> Command {
        match self {
            Self::Version => Command::Version,
            Self::RemoveAll { .. } => Command::RemoveAll,
            Self::ListDevices { .. } => Command::ListDevices,
            Self::Create { .. } => Command::DevCreate,
            Self::Remove { .. } => Command::DevRemove,
            Self::Rename { .. } | Self::SetUuid { .. } => Command::DevRename,
            Self::Suspend { .. } | Self::Resume { .. } => Command::DevSuspend,
            Self::Status { .. } => Command::DevStatus,
            Self::Wait { .. } => Command::DevWait,
            Self::TableLoad { .. } => Command::TableLoad,
            Self::TableClear { .. } => Command::TableClear,
            Self::TableDeps { .. } => Command::TableDeps,
            Self::TableStatus { .. } => Command::TableStatus,
            Self::ListVersions => Command::ListVersions,
            Self::Message { .. } => Command::TargetMsg,
            Self::SetGeometry { .. } => Command::DevSetGeometry,
            Self::ArmPoll => Command::DevArmPoll,
            Self::TargetVersion { .. } => Command::TargetVersion,
        }
    }

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
                name_prefix: input.text(until_nul(&header.name))?,
                uuid_prefix: input.text(until_nul(&header.uuid))?,
                with_uuids: header.has(flag::UUID),
            }),
            Command::DevCreate => input.create(),
            Command::DevRename => input.rename(),
            Command::ListVersions => Ok(Self::ListVersions),
            Command::DevArmPoll => Ok(Self::ArmPoll),
            Command::TargetVersion => Ok(Self::TargetVersion {
                target: input.text(until_nul(&header.name))?,
            }),
            _ => input.about_device(command),
        }
    }

    /// The buffer that asks for this request, `size` bytes or as many more as the payload needs.
    pub fn encode(&self, size: usize) -> Vec<u8> {
        let mut header = Header::new(0);
        header.data_start = U32::new(HEADER_BYTES as u32);
        let mut payload = Vec::new();
        self.fill(&mut header, &mut payload);
        let size = size.max(HEADER_BYTES + payload.len());
        header.data_size = U32::new(u32::try_from(size).unwrap_or(u32::MAX));
        let mut buffer = header.as_bytes().to_vec();
        buffer.resize(HEADER_BYTES, 0);
        buffer.extend_from_slice(&payload);
        buffer.resize(size, 0);
        buffer
    }

    fn fill(&self, header: &mut Header, payload: &mut Vec<u8>) {
        let mut flags = 0;
        match self {
            Self::Version | Self::ListVersions | Self::ArmPoll => {}
            Self::RemoveAll { deferred } => flags |= bit(*deferred, flag::DEFERRED_REMOVE),
            Self::ListDevices {
                name_prefix,
                uuid_prefix,
                with_uuids,
            } => {
                header.name = nul_padded(name_prefix);
                header.uuid = nul_padded(uuid_prefix);
                flags |= bit(*with_uuids, flag::UUID);
            }
            Self::Create { name, uuid, minor } => {
                header.name = nul_padded(name.as_str());
                header.uuid = nul_padded(uuid.as_ref().map_or("", DmUuid::as_str));
                flags |= bit(minor.is_some(), flag::PERSISTENT_DEV);
                let dev = minor.map_or(0, |minor| DevNo::new(0, minor).to_kernel());
                header.dev = U64::new(dev);
            }
            Self::Remove { device, deferred } => {
                select(header, device);
                flags |= bit(*deferred, flag::DEFERRED_REMOVE);
            }
            Self::Rename { device, new_name } => {
                header.name = nul_padded(device.as_str());
                put_text(payload, new_name.as_str());
            }
            Self::SetUuid { device, uuid } => {
                header.name = nul_padded(device.as_str());
                put_text(payload, uuid.as_str());
                flags |= flag::UUID;
            }
            Self::Suspend { device, options } => {
                select(header, device);
                flags |= flag::SUSPEND | suspend_flags(*options);
            }
            Self::Resume { device, options } => {
                select(header, device);
                flags |= suspend_flags(*options);
            }
            Self::Status { device, inactive } | Self::TableDeps { device, inactive } => {
                select(header, device);
                flags |= bit(*inactive, flag::QUERY_INACTIVE_TABLE);
            }
            Self::Wait {
                device,
                event_nr,
                query,
            } => {
                select(header, device);
                header.event_nr = U32::new(*event_nr);
                flags |= query_flags(*query);
            }
            Self::TableLoad {
                device,
                lines,
                read_only,
            } => {
                select(header, device);
                flags |= bit(*read_only, flag::READONLY);
                header.target_count = U32::new(u32::try_from(lines.len()).unwrap_or(u32::MAX));
                lines.iter().for_each(|line| put_line(payload, line));
            }
            Self::TableClear { device } => select(header, device),
            Self::TableStatus { device, query } => {
                select(header, device);
                flags |= query_flags(*query);
            }
            Self::Message {
                device,
                sector,
                message,
            } => {
                select(header, device);
                payload.extend_from_slice(U64::<NativeEndian>::new(sector.raw()).as_bytes());
                put_text(payload, message);
            }
            Self::SetGeometry { device, geometry } => {
                select(header, device);
                let Geometry {
                    cylinders,
                    heads,
                    sectors_per_track,
                    start,
                } = geometry;
                put_text(
                    payload,
                    &format!("{cylinders} {heads} {sectors_per_track} {start}"),
                );
            }
            Self::TargetVersion { target } => header.name = nul_padded(target),
        }
        header.flags = U32::new(flags);
    }
}

/// The header as the kernel takes it and the bytes it may look at: `data_size` of them, or the bare header for
/// commands that ignore the rest.
fn header_and_payload(command: Command, buffer: &[u8]) -> Result<(Header, &[u8]), DmError> {
    let (mut header, _) = Header::read_from_prefix(buffer)
        .map_err(|_| DmError::new(Errno::FAULT, "ioctl buffer is shorter than its header"))?;
    let data_size = header.data_size.get() as usize;
    if data_size < HEADER_BYTES_MIN {
        return Err(DmError::new(Errno::INVAL, ""));
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
        Command::RemoveAll | Command::ListDevices | Command::ListVersions => {}
        Command::DevCreate if header.name[0] == 0 => {
            return Err(log("name not supplied when creating device"));
        }
        Command::DevCreate => {}
        _ if header.uuid[0] != 0 && header.name[0] != 0 => {
            return Err(log(&format!("only supply one of name or uuid, cmd({nr})")));
        }
        _ => {}
    }
    header.name[NAME_FIELD_BYTES - 1] = 0;
    header.uuid[UUID_FIELD_BYTES - 1] = 0;
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
    fn text(&self, bytes: &[u8]) -> Result<String, DmError> {
        // COMPAT: the kernel takes any bytes; names, uuids and arguments here must be UTF-8.
        String::from_utf8(bytes.to_vec())
            .map_err(|_| log("a name, uuid or argument is not valid UTF-8"))
    }

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

    fn name(&self, bytes: &[u8]) -> Result<DmName, DmError> {
        DmName::new(&self.text(bytes)?).map_err(|_| log("invalid device name"))
    }

    fn uuid(&self, bytes: &[u8]) -> Result<DmUuid, DmError> {
        DmUuid::new(&self.text(bytes)?).map_err(|_| log("invalid device uuid"))
    }

    /// One of uuid, name and number; ENXIO when it is none or more than one.
    fn selector(&self) -> Result<DeviceSelector, DmError> {
        let name = until_nul(&self.header.name);
        let uuid = until_nul(&self.header.uuid);
        let dev = self.header.dev.get();
        match (name.is_empty(), uuid.is_empty(), dev) {
            (true, false, 0) => self.uuid(uuid).map(DeviceSelector::Uuid),
            // A name that no device can have is not there, rather than wrong.
            (false, true, 0) => DmName::new(&self.text(name)?)
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
            name: self.name(until_nul(&self.header.name))?,
            uuid: (!uuid.is_empty()).then(|| self.uuid(uuid)).transpose()?,
            minor: self.header.has(flag::PERSISTENT_DEV).then_some(minor),
        })
    }

    fn rename(&self) -> Result<Request, DmError> {
        let invalid = || log("Invalid new mapped device name or uuid string supplied.");
        let set_uuid = self.header.has(flag::UUID);
        let new = self
            .payload_start()
            .and_then(|start| self.text_at(start))
            .ok_or_else(invalid)?;
        let new_max = if set_uuid {
            UUID_FIELD_BYTES
        } else {
            NAME_FIELD_BYTES
        } - 1;
        if new.is_empty() || new.len() > new_max {
            return Err(invalid());
        }
        // The kernel looks renames up by name only.
        let old = self.text(until_nul(&self.header.name))?;
        let device = |old: &str| DmName::new(old).map_err(|_| DmError::no_device());
        if set_uuid {
            let uuid = self.uuid(new)?;
            Ok(Request::SetUuid {
                device: device(&old)?,
                uuid,
            })
        } else {
            let new_name = self.name(new)?;
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
            Command::TableLoad => Request::TableLoad {
                device,
                lines: self.table()?,
                read_only: header.has(flag::READONLY),
            },
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

    /// The target records of a table load. `next` counts from the record that holds it.
    fn table(&self) -> Result<Vec<TableLine>, DmError> {
        let count = self.header.target_count.get();
        if count == 0 {
            return Err(log("populate_table: no targets specified"));
        }
        let unable = || log("unable to find target");
        let mut lines = Vec::new();
        let mut at = 0_usize;
        let mut next = self.header.data_start.get() as usize;
        let mut head_bytes = HEADER_BYTES_MIN;
        for _ in 0..count {
            // INVARIANT: `next` steps over the previous head, so a hostile chain cannot loop for ever.
            if next < head_bytes {
                return Err(unable());
            }
            at = at.checked_add(next).ok_or_else(unable)?;
            let rest = self.buffer.get(at..).ok_or_else(unable)?;
            let (spec, _) = TargetSpec::read_from_prefix(rest).map_err(|_| unable())?;
            let params = self.text_at(at + TARGET_SPEC_BYTES).ok_or_else(unable)?;
            lines.push(TableLine {
                start: Sector(spec.sector_start.get()),
                len: Sector(spec.length.get()),
                target: self.text(until_nul(&spec.target_type))?,
                params: self.text(params)?,
            });
            next = spec.next.get() as usize;
            head_bytes = TARGET_SPEC_BYTES;
        }
        Ok(lines)
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
            message: self.text(message)?,
        })
    }

    fn geometry(&self, device: DeviceSelector) -> Result<Request, DmError> {
        let text = self
            .payload_start()
            .and_then(|start| self.text_at(start))
            .ok_or_else(|| log("Invalid geometry supplied."))?;
        let text = self.text(text)?;
        let uninterpretable = || log("Unable to interpret geometry settings.");
        let numbers: Vec<u64> = split_args(&text)
            .iter()
            .map(|word| word.parse().map_err(|_| uninterpretable()))
            .collect::<Result<_, _>>()?;
        let [cylinders, heads, sectors, start] = numbers[..] else {
            return Err(uninterpretable());
        };
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

fn bit(set: bool, flag: u32) -> u32 {
    if set { flag } else { 0 }
}

fn select(header: &mut Header, device: &DeviceSelector) {
    match device {
        DeviceSelector::Name(name) => header.name = nul_padded(name.as_str()),
        DeviceSelector::Uuid(uuid) => header.uuid = nul_padded(uuid.as_str()),
        DeviceSelector::Dev(dev) => header.dev = U64::new(dev.to_kernel()),
    }
}

fn suspend_flags(options: SuspendOptions) -> u32 {
    bit(!options.lock_fs, flag::SKIP_LOCKFS) | bit(options.no_flush, flag::NOFLUSH)
}

fn query_flags(query: StatusQuery) -> u32 {
    let kind = match query.kind {
        StatusKind::Info => 0,
        StatusKind::Table => flag::STATUS_TABLE,
        StatusKind::Measurement => flag::IMA_MEASUREMENT,
    };
    kind | bit(query.inactive, flag::QUERY_INACTIVE_TABLE) | bit(query.no_flush, flag::NOFLUSH)
}

fn put_text(payload: &mut Vec<u8>, text: &str) {
    payload.extend_from_slice(text.as_bytes());
    payload.push(0);
}

fn put_line(payload: &mut Vec<u8>, line: &TableLine) {
    let bytes = (TARGET_SPEC_BYTES + line.params.len() + 1).next_multiple_of(8);
    let spec = TargetSpec {
        sector_start: U64::new(line.start.raw()),
        length: U64::new(line.len.raw()),
        status: U32::new(0),
        next: U32::new(u32::try_from(bytes).unwrap_or(u32::MAX)),
        target_type: nul_padded(&line.target),
    };
    let end = payload.len() + bytes;
    payload.extend_from_slice(spec.as_bytes());
    put_text(payload, &line.params);
    payload.resize(end, 0);
}
