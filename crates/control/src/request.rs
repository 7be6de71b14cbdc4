//! Requests: what an ioctl buffer asks for, in typed form, and the buffer that libdevmapper would send for it
//! ([`Request::encode`]). The kernel's reading of a buffer is in [`crate::decode`].

use thinmap_units::{DevNo, DmName, DmUuid, Sector, TableLine};
use zerocopy::{IntoBytes, NativeEndian, U32, U64};
use zeroize::Zeroize;

use crate::ioctl::{
    Command, HEADER_BYTES, Header, TARGET_SPEC_BYTES, TargetSpec, flag, nul_padded,
};
use crate::service::{DeviceSelector, Geometry, StatusKind, StatusQuery, SuspendOptions};

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
        /// No record is missing behind the lines, or cannot be read.
        is_whole: bool,
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

    /// Overwrites what may hold a key: tables and messages.
    pub fn wipe(&mut self) {
        match self {
            Self::TableLoad { lines, .. } => lines.iter_mut().for_each(|l| l.params.zeroize()),
            Self::Message { message, .. } => message.zeroize(),
            _ => {}
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
                ..
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
