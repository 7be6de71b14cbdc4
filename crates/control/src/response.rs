//! Responses: typed answers, and a client's reading of their bytes ([`Response::decode`]). The kernel's writing of them is in
//! [`crate::answer`].

use rustix::io::Errno;
use thinmap_units::{DevNo, DmName, DmUuid, Sector, TableLine};
use zerocopy::{FromBytes, NativeEndian, U32, U64};
use zeroize::Zeroize;

use crate::ioctl::{
    HEADER_BYTES_MIN, Header, TARGET_SPEC_BYTES, TargetSpec, flag, name_list_flag, until_nul,
};
use crate::request::Request;
use crate::service::{
    DeviceDeps, DeviceInfo, DeviceListEntry, DeviceStatus, DmError, Removal, TableInfo,
    TargetVersion,
};

/// An answer in typed form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Response {
    /// Done; the kernel writes nothing but the version.
    Done,
    /// Done; the caller's header comes back, its size and flags set right.
    Header,
    /// A removed device has no state.
    Removed(Removal),
    Device(DeviceInfo),
    Devices(Vec<DeviceListEntry>),
    Status(DeviceStatus),
    Deps(DeviceDeps),
    Versions(Vec<TargetVersion>),
    Message {
        info: DeviceInfo,
        text: Option<String>,
    },
}

impl Response {
    /// Overwrites what may hold a key: table lines.
    pub fn wipe(&mut self) {
        if let Self::Status(DeviceStatus {
            lines: Some(lines), ..
        }) = self
        {
            lines.iter_mut().for_each(|line| line.params.zeroize());
        }
    }

    /// Reads the answer to `request` from a buffer, or `None` when the buffer was too small and the call must be
    /// repeated with a larger one. EPROTO for an answer that makes no sense.
    pub fn decode(request: &Request, buffer: &[u8]) -> Result<Option<Self>, DmError> {
        if matches!(
            request,
            Request::Version | Request::RemoveAll { .. } | Request::SetGeometry { .. }
        ) {
            return Ok(Some(Self::Done));
        }
        if *request == Request::ArmPoll {
            return Ok(Some(Self::Header));
        }
        // To a message that no table took nothing is said.
        if matches!(request, Request::Message { .. }) && buffer.len() < HEADER_BYTES_MIN {
            return Ok(Some(Self::Done));
        }
        let (header, _) = Header::read_from_prefix(buffer).map_err(|_| senseless())?;
        if header.has(flag::BUFFER_FULL) {
            return Ok(None);
        }
        let reader = Reader { header, buffer };
        Ok(Some(match request {
            Request::ListDevices { .. } => Self::Devices(reader.devices()?),
            Request::ListVersions | Request::TargetVersion { .. } => {
                Self::Versions(reader.versions()?)
            }
            Request::Remove { .. } => Self::Removed(reader.removal()?),
            Request::Wait { query, .. } | Request::TableStatus { query, .. } => {
                let info = reader.info()?;
                let present = if query.inactive {
                    info.inactive
                } else {
                    info.live
                }
                .is_some();
                let lines = present.then(|| reader.status_lines()).transpose()?;
                Self::Status(DeviceStatus { info, lines })
            }
            Request::TableDeps { inactive, .. } => {
                let info = reader.info()?;
                let present = if *inactive { info.inactive } else { info.live }.is_some();
                let devices = present.then(|| reader.deps()).transpose()?;
                Self::Deps(DeviceDeps { info, devices })
            }
            Request::Message { .. } => Self::Message {
                info: reader.info()?,
                text: header
                    .has(flag::DATA_OUT)
                    .then(|| reader.message())
                    .transpose()?,
            },
            _ => Self::Device(reader.info()?),
        }))
    }
}

fn senseless() -> DmError {
    DmError::new(Errno::PROTO, "the daemon's answer makes no sense")
}

/// One answer's bytes, as a client sees them.
struct Reader<'a> {
    header: Header,
    buffer: &'a [u8],
}

impl Reader<'_> {
    fn text(&self, bytes: &[u8]) -> Result<String, DmError> {
        String::from_utf8(bytes.to_vec()).map_err(|_| senseless())
    }

    fn at(&self, offset: usize) -> Result<&[u8], DmError> {
        self.buffer.get(offset..).ok_or_else(senseless)
    }

    fn u32_at(&self, offset: usize) -> Result<u32, DmError> {
        let (number, _) =
            U32::<NativeEndian>::read_from_prefix(self.at(offset)?).map_err(|_| senseless())?;
        Ok(number.get())
    }

    fn u64_at(&self, offset: usize) -> Result<u64, DmError> {
        let (number, _) =
            U64::<NativeEndian>::read_from_prefix(self.at(offset)?).map_err(|_| senseless())?;
        Ok(number.get())
    }

    fn text_at(&self, offset: usize) -> Result<String, DmError> {
        self.text(until_nul(self.at(offset)?))
    }

    fn start(&self) -> usize {
        self.header.data_start.get() as usize
    }

    fn info(&self) -> Result<DeviceInfo, DmError> {
        let header = &self.header;
        let inactive_asked = header.has(flag::QUERY_INACTIVE_TABLE);
        let table = |present: u32, asked: bool| {
            header.has(present).then(|| TableInfo {
                target_count: if asked { header.target_count.get() } else { 0 },
                read_only: asked && header.has(flag::READONLY),
            })
        };
        let uuid = self.text(until_nul(&header.uuid))?;
        Ok(DeviceInfo {
            name: DmName::new(&self.text(until_nul(&header.name))?).map_err(|_| senseless())?,
            uuid: DmUuid::new(&uuid).ok(),
            dev: DevNo::from_kernel(header.dev.get()),
            open_count: header.open_count.get(),
            event_nr: header.event_nr.get(),
            suspended: header.has(flag::SUSPEND),
            internally_suspended: header.has(flag::INTERNAL_SUSPEND),
            deferred_remove: header.has(flag::DEFERRED_REMOVE),
            uevent: header.has(flag::UEVENT_GENERATED),
            live: table(flag::ACTIVE_PRESENT, !inactive_asked),
            inactive: table(flag::INACTIVE_PRESENT, inactive_asked),
        })
    }

    fn removal(&self) -> Result<Removal, DmError> {
        let uuid = self.text(until_nul(&self.header.uuid))?;
        Ok(Removal {
            name: DmName::new(&self.text(until_nul(&self.header.name))?)
                .map_err(|_| senseless())?,
            uuid: DmUuid::new(&uuid).ok(),
            inactive: self.header.has(flag::INACTIVE_PRESENT),
            waits: self.header.has(flag::DEFERRED_REMOVE),
            uevent: self.header.has(flag::UEVENT_GENERATED),
        })
    }

    fn devices(&self) -> Result<Vec<DeviceListEntry>, DmError> {
        let mut devices = Vec::new();
        let mut at = self.start();
        if at >= self.buffer.len() || self.u64_at(at)? == 0 {
            return Ok(devices);
        }
        loop {
            let dev = DevNo::from_kernel(self.u64_at(at)?);
            let next = self.u32_at(at + 8)? as usize;
            let name = self.text_at(at + 12)?;
            // Records are aligned from the buffer's start.
            let event_at = (at + 12 + name.len() + 1).next_multiple_of(8);
            let has_uuid = self.u32_at(event_at + 4)? & name_list_flag::HAS_UUID != 0;
            let uuid = has_uuid.then(|| self.text_at(event_at + 8)).transpose()?;
            devices.push(DeviceListEntry {
                name: DmName::new(&name).map_err(|_| senseless())?,
                uuid: uuid.and_then(|uuid| DmUuid::new(&uuid).ok()),
                dev,
                event_nr: self.u32_at(event_at)?,
            });
            if next == 0 {
                return Ok(devices);
            }
            at = at.checked_add(next).ok_or_else(senseless)?;
        }
    }

    fn versions(&self) -> Result<Vec<TargetVersion>, DmError> {
        let mut versions = Vec::new();
        let mut at = self.start();
        while at < self.buffer.len() {
            let next = self.u32_at(at)? as usize;
            versions.push(TargetVersion {
                version: [
                    self.u32_at(at + 4)?,
                    self.u32_at(at + 8)?,
                    self.u32_at(at + 12)?,
                ],
                name: self.text_at(at + 16)?,
            });
            if next == 0 {
                break;
            }
            at = at.checked_add(next).ok_or_else(senseless)?;
        }
        Ok(versions)
    }

    fn deps(&self) -> Result<Vec<DevNo>, DmError> {
        let start = self.start();
        let count = self.u32_at(start)? as usize;
        (0..count)
            .map(|index| Ok(DevNo::from_kernel(self.u64_at(start + 8 + index * 8)?)))
            .collect()
    }

    /// Status records. Here `next` counts from the first record.
    fn status_lines(&self) -> Result<Vec<TableLine>, DmError> {
        let start = self.start();
        let mut at = start;
        let mut lines = Vec::new();
        for _ in 0..self.header.target_count.get() {
            let (spec, _) = TargetSpec::read_from_prefix(self.at(at)?).map_err(|_| senseless())?;
            lines.push(TableLine {
                start: Sector(spec.sector_start.get()),
                len: Sector(spec.length.get()),
                target: self.text(until_nul(&spec.target_type))?,
                params: self.text_at(at + TARGET_SPEC_BYTES)?,
            });
            at = start
                .checked_add(spec.next.get() as usize)
                .ok_or_else(senseless)?;
        }
        Ok(lines)
    }

    fn message(&self) -> Result<String, DmError> {
        self.text_at(self.start())
    }
}
