//! Responses: typed answers and their bytes in an ioctl buffer, both ways.
//!
//! [`Response::encode`] fills a buffer as the kernel does, within the size that the caller gave;
//! [`Response::decode`] is a client's reading of it.

use rustix::io::Errno;
use thinmap_units::{DevNo, DmName, DmUuid, Sector};
use zerocopy::{FromBytes, IntoBytes, NativeEndian, U32, U64};

use crate::ioctl::{
    HEADER_BYTES, HEADER_BYTES_MIN, Header, INTERFACE_VERSION, TARGET_SPEC_BYTES, TargetSpec, flag,
    name_list_flag, nul_padded, until_nul,
};
use crate::request::Request;
use crate::service::{
    DeviceDeps, DeviceInfo, DeviceListEntry, DeviceStatus, DmError, TableInfo, TableLine,
    TargetVersion,
};

/// An answer in typed form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Response {
    /// Done, nothing to tell.
    Done,
    /// Done; the caller's header stands but for the flags. (A removed device has no state.)
    Removed,
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
    /// Writes the answer to `request` into `buffer`, the caller's buffer, and cuts it to the bytes that the kernel
    /// would copy out. What does not fit within its size is left out, with [`flag::BUFFER_FULL`].
    pub fn encode(&self, request: &Request, buffer: &mut Vec<u8>) {
        let Ok((mut header, _)) = Header::read_from_prefix(buffer) else {
            return;
        };
        header.version = INTERFACE_VERSION.map(U32::new);
        if *request == Request::Version {
            // Only the version is written.
            buffer.clear();
            buffer.extend_from_slice(header.version.as_bytes());
            return;
        }
        let kept =
            !(flag::BUFFER_FULL | flag::UEVENT_GENERATED | flag::SECURE_DATA | flag::DATA_OUT);
        header.flags = U32::new(header.flags.get() & kept);
        let room = if request.command().ignores_payload() {
            0
        } else {
            (header.data_size.get() as usize).saturating_sub(HEADER_BYTES)
        };

        let mut payload = None;
        match self {
            Self::Done => {
                // The kernel copies nothing out for these.
                header.data_size = U32::new(0);
                buffer.clear();
                buffer.extend_from_slice(header.version.as_bytes());
                return;
            }
            Self::Removed => header.flags |= U32::new(flag::UEVENT_GENERATED),
            Self::Device(info) => put_info(&mut header, info, request),
            Self::Devices(devices) => payload = Some(device_list(devices, request)),
            Self::Status(status) => {
                put_info(&mut header, &status.info, request);
                if let Some(lines) = &status.lines {
                    header.target_count = U32::new(count(lines.len()));
                    put_status_lines(&mut header, buffer, lines, room);
                    return;
                }
            }
            Self::Deps(deps) => {
                put_info(&mut header, &deps.info, request);
                payload = deps.devices.as_ref().map(|devices| dependencies(devices));
            }
            Self::Versions(versions) => payload = Some(version_list(versions)),
            Self::Message { info, text } => {
                put_info(&mut header, info, request);
                if let Some(text) = text {
                    header.flags |= U32::new(flag::DATA_OUT);
                    // The kernel wants one byte to spare.
                    let mut bytes = text.clone().into_bytes();
                    bytes.push(0);
                    let needed = bytes.len() + 1;
                    payload = Some(Payload { bytes, needed });
                }
            }
        }
        finish(header, buffer, payload, room);
    }

    /// Reads the answer to `request` from a buffer, or `None` when the buffer was too small and the call must be
    /// repeated with a larger one. EPROTO for an answer that makes no sense.
    pub fn decode(request: &Request, buffer: &[u8]) -> Result<Option<Self>, DmError> {
        if matches!(
            request,
            Request::Version
                | Request::RemoveAll { .. }
                | Request::ArmPoll
                | Request::SetGeometry { .. }
        ) {
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
            Request::Remove { .. } => Self::Removed,
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

/// Bytes to put behind the header, and the room that the kernel asks for before it does.
struct Payload {
    bytes: Vec<u8>,
    needed: usize,
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn finish(mut header: Header, buffer: &mut Vec<u8>, payload: Option<Payload>, room: usize) {
    buffer.truncate(HEADER_BYTES_MIN);
    header.data_size = U32::new(HEADER_BYTES_MIN as u32);
    if let Some(payload) = payload {
        header.data_start = U32::new(HEADER_BYTES as u32);
        if payload.needed > room {
            header.flags |= U32::new(flag::BUFFER_FULL);
        } else {
            buffer.resize(HEADER_BYTES, 0);
            buffer.extend_from_slice(&payload.bytes);
            header.data_size = U32::new(count(buffer.len()));
        }
    }
    put_header(&header, buffer);
}

fn put_header(header: &Header, buffer: &mut [u8]) {
    if let Some(start) = buffer.get_mut(..HEADER_BYTES_MIN) {
        start.copy_from_slice(header.as_bytes());
    }
}

/// A device's state into the header, of the table that was asked for.
fn put_info(header: &mut Header, info: &DeviceInfo, request: &Request) {
    // The kernel fills name and uuid in on every look-up, but not on creation and rename.
    if !matches!(
        request,
        Request::Create { .. } | Request::Rename { .. } | Request::SetUuid { .. }
    ) {
        header.name = nul_padded(info.name.as_str());
        header.uuid = nul_padded(info.uuid.as_ref().map_or("", DmUuid::as_str));
    }
    header.dev = U64::new(info.dev.to_kernel());
    header.open_count = U32::new(info.open_count);
    header.event_nr = U32::new(info.event_nr);

    let asked = if header.has(flag::QUERY_INACTIVE_TABLE) {
        info.inactive
    } else {
        info.live
    };
    header.target_count = U32::new(asked.map_or(0, |table| table.target_count));
    let states = [
        (flag::SUSPEND, info.suspended),
        (flag::INTERNAL_SUSPEND, info.internally_suspended),
        (flag::DEFERRED_REMOVE, info.deferred_remove),
        (flag::UEVENT_GENERATED, info.uevent),
        (flag::ACTIVE_PRESENT, info.live.is_some()),
        (flag::INACTIVE_PRESENT, info.inactive.is_some()),
        (flag::READONLY, asked.is_some_and(|table| table.read_only)),
    ];
    let mut flags = header.flags.get();
    for (flag, set) in states {
        if set {
            flags |= flag;
        } else {
            flags &= !flag;
        }
    }
    header.flags = U32::new(flags);
}

fn device_list(devices: &[DeviceListEntry], request: &Request) -> Payload {
    let (name_prefix, uuid_prefix, with_uuids) = match request {
        Request::ListDevices {
            name_prefix,
            uuid_prefix,
            with_uuids,
        } => (name_prefix.as_str(), uuid_prefix.as_str(), *with_uuids),
        _ => ("", "", false),
    };
    let mut bytes = Vec::new();
    let mut last_next_at = None;
    for device in devices {
        let uuid = device.uuid.as_ref().map_or("", DmUuid::as_str);
        if !device.name.as_str().starts_with(name_prefix) || !uuid.starts_with(uuid_prefix) {
            continue;
        }
        let start = bytes.len();
        link(&mut bytes, last_next_at);
        bytes.extend_from_slice(U64::<NativeEndian>::new(device.dev.to_kernel()).as_bytes());
        last_next_at = Some((start, bytes.len()));
        put_u32(&mut bytes, 0);
        put_aligned_text(&mut bytes, device.name.as_str());
        put_u32(&mut bytes, device.event_nr);
        put_u32(
            &mut bytes,
            match (with_uuids, uuid.is_empty()) {
                (false, _) => 0,
                (true, true) => name_list_flag::DOESNT_HAVE_UUID,
                (true, false) => name_list_flag::HAS_UUID,
            },
        );
        if with_uuids && !uuid.is_empty() {
            put_aligned_text(&mut bytes, uuid);
        }
    }
    // Where there are none the kernel wants room for a zero device number, which says so, but copies nothing out.
    let needed = bytes.len().max(size_of::<u64>());
    Payload { bytes, needed }
}

fn version_list(versions: &[TargetVersion]) -> Payload {
    let mut bytes = Vec::new();
    let mut last_next_at = None;
    for target in versions {
        let start = bytes.len();
        link(&mut bytes, last_next_at);
        last_next_at = Some((start, start));
        put_u32(&mut bytes, 0);
        target
            .version
            .iter()
            .for_each(|number| put_u32(&mut bytes, *number));
        put_aligned_text(&mut bytes, &target.name);
    }
    let needed = bytes.len();
    Payload { bytes, needed }
}

fn dependencies(devices: &[DevNo]) -> Payload {
    let mut bytes = Vec::new();
    put_u32(&mut bytes, count(devices.len()));
    put_u32(&mut bytes, 0);
    for dev in devices {
        bytes.extend_from_slice(U64::<NativeEndian>::new(dev.to_kernel()).as_bytes());
    }
    let needed = bytes.len();
    Payload { bytes, needed }
}

/// Status records. The kernel writes as many as fit, so a caller sees [`flag::BUFFER_FULL`] and a part.
fn put_status_lines(header: &mut Header, buffer: &mut Vec<u8>, lines: &[TableLine], room: usize) {
    header.data_start = U32::new(HEADER_BYTES as u32);
    let mut out: Vec<u8> = Vec::new();
    let mut used = 0;
    for line in lines {
        let start = out.len();
        let text_room = room.saturating_sub(start + TARGET_SPEC_BYTES);
        // One byte stays free behind a text, as the kernel cannot tell a cut text from one that just fits.
        if room.saturating_sub(start) <= TARGET_SPEC_BYTES || line.params.len() + 1 >= text_room {
            header.flags |= U32::new(flag::BUFFER_FULL);
            break;
        }
        used = start + TARGET_SPEC_BYTES + line.params.len() + 1;
        let next = used.next_multiple_of(8);
        let spec = TargetSpec {
            sector_start: U64::new(line.start.raw()),
            length: U64::new(line.len.raw()),
            status: U32::new(0),
            next: U32::new(count(next)),
            target_type: nul_padded(&line.target),
        };
        out.extend_from_slice(spec.as_bytes());
        out.extend_from_slice(line.params.as_bytes());
        out.resize(next, 0);
    }
    buffer.truncate(HEADER_BYTES_MIN);
    if used == 0 {
        header.data_size = U32::new(HEADER_BYTES_MIN as u32);
    } else {
        buffer.resize(HEADER_BYTES, 0);
        out.truncate(used);
        buffer.extend_from_slice(&out);
        header.data_size = U32::new(count(buffer.len()));
    }
    put_header(header, buffer);
}

/// Writes the distance to the record that begins at the end of `bytes` into the previous record's `next`.
fn link(bytes: &mut [u8], last: Option<(usize, usize)>) {
    let end = bytes.len();
    let Some((start, next_at)) = last else { return };
    if let Some(next) = bytes.get_mut(next_at..next_at + size_of::<u32>()) {
        next.copy_from_slice(U32::<NativeEndian>::new(count(end - start)).as_bytes());
    }
}

fn put_u32(bytes: &mut Vec<u8>, number: u32) {
    bytes.extend_from_slice(U32::<NativeEndian>::new(number).as_bytes());
}

fn put_aligned_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
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
