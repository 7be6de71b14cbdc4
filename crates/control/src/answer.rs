//! Answers as the kernel writes them: [`Response::encode`].
//!
//! INVARIANT: the kernel answers in a copy of the caller's buffer, so what it does not write comes back as the caller sent it:
//! the tail of a name behind its NUL, the gaps between records. So does this.

use thinmap_units::{DevNo, DmName, DmUuid, TableLine};
use zerocopy::{FromBytes, IntoBytes, NativeEndian, U32, U64};

use crate::ioctl::{
    Command, HEADER_BYTES, HEADER_BYTES_MIN, Header, INTERFACE_VERSION, TARGET_SPEC_BYTES,
    TARGET_TYPE_BYTES, flag, name_list_flag,
};
use crate::request::Request;
use crate::response::Response;
use crate::service::{DeviceInfo, DeviceListEntry, TargetVersion};

/// What the kernel adds for each record of a list of versions, for its alignment.
const VERSION_SLACK_BYTES: usize = 7;
const VERSION_HEAD_BYTES: usize = 16;
const NAME_LIST_HEAD_BYTES: usize = 12;
/// Flags that no caller has a say in.
const CLEARED: u32 =
    flag::BUFFER_FULL | flag::UEVENT_GENERATED | flag::SECURE_DATA | flag::DATA_OUT;

impl Response {
    /// Writes the answer to `request` into `buffer`, the caller's buffer, and cuts it to the bytes that the kernel
    /// would copy out. What does not fit within its size is left out, with [`flag::BUFFER_FULL`].
    pub fn encode(&self, request: &Request, buffer: &mut Vec<u8>) {
        let Ok((mut header, _)) = Header::read_from_prefix(buffer) else {
            return;
        };
        header.version = INTERFACE_VERSION.map(U32::new);
        if *request == Request::Version || *self == Self::Done {
            buffer.clear();
            buffer.extend_from_slice(header.version.as_bytes());
            return;
        }
        let command = request.command();
        header.terminate(command);
        header.flags &= U32::new(!CLEARED);
        let size = match command.ignores_payload() {
            true => HEADER_BYTES_MIN,
            false => (header.data_size.get() as usize).min(buffer.len()),
        };
        header.data_size = U32::new(HEADER_BYTES_MIN as u32);
        let mut area = Area(buffer.get_mut(HEADER_BYTES..size).unwrap_or_default());
        self.fill(request, &mut header, &mut area);
        if let Some(start) = buffer.get_mut(..HEADER_BYTES_MIN) {
            start.copy_from_slice(header.as_bytes());
        }
        buffer.truncate(header.data_size.get() as usize);
    }

    fn fill(&self, request: &Request, header: &mut Header, area: &mut Area<'_>) {
        match self {
            Self::Done | Self::Header => {}
            Self::Removed(removal) => {
                found(header, &removal.name, removal.uuid.as_ref());
                set(header, flag::INACTIVE_PRESENT, removal.inactive);
                if !removal.waits {
                    set(header, flag::DEFERRED_REMOVE, false);
                    set(header, flag::UEVENT_GENERATED, removal.uevent);
                }
            }
            Self::Device(info) => put_info(header, info, request),
            Self::Devices(devices) => device_list(header, area, devices, request),
            Self::Status(status) => {
                put_info(header, &status.info, request);
                if let Some(lines) = &status.lines {
                    header.target_count = U32::new(count(lines.len()));
                    status_lines(header, area, lines);
                }
            }
            Self::Deps(deps) => {
                put_info(header, &deps.info, request);
                if let Some(devices) = &deps.devices {
                    dependencies(header, area, devices);
                }
            }
            Self::Versions(versions) => version_list(header, area, versions),
            Self::Message { info, text } => {
                put_info(header, info, request);
                header.data_start = U32::new(HEADER_BYTES as u32);
                if let Some(text) = text {
                    header.flags |= U32::new(flag::DATA_OUT);
                    let end = text.len() + 1;
                    // The kernel wants one byte to spare.
                    if area.begin(header, end + 1) {
                        area.put(0, text.as_bytes());
                        area.put(text.len(), &[0]);
                        used(header, end);
                    }
                }
            }
        }
    }
}

impl Header {
    /// Closes the names, as the kernel does for all commands but those that look at none.
    pub(crate) fn terminate(&mut self, command: Command) {
        if !command.ignores_names() {
            for last in [self.name.last_mut(), self.uuid.last_mut()] {
                last.into_iter().for_each(|byte| *byte = 0);
            }
        }
    }
}

/// The caller's bytes behind the header, as many as it said there are.
struct Area<'a>(&'a mut [u8]);

impl Area<'_> {
    /// Says where the answer is; whether there is room for `needed` bytes of it.
    fn begin(&self, header: &mut Header, needed: usize) -> bool {
        header.data_start = U32::new(HEADER_BYTES as u32);
        let fits = needed <= self.0.len();
        set(header, flag::BUFFER_FULL, !fits);
        fits
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(to) = self.0.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    }

    fn put_u32(&mut self, at: usize, number: u32) {
        self.put(at, U32::<NativeEndian>::new(number).as_bytes());
    }

    fn put_u64(&mut self, at: usize, number: u64) {
        self.put(at, U64::<NativeEndian>::new(number).as_bytes());
    }

    fn put_text(&mut self, at: usize, text: &str) {
        self.put(at, text.as_bytes());
        self.put(at + text.len(), &[0]);
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn used(header: &mut Header, payload_bytes: usize) {
    header.data_size = U32::new(count(HEADER_BYTES + payload_bytes));
}

fn set(header: &mut Header, flag: u32, on: bool) {
    let flags = header.flags.get() & !flag;
    header.flags = U32::new(if on { flags | flag } else { flags });
}

/// A text and its NUL over the beginning of a field.
fn overwrite(field: &mut [u8], text: &str) {
    for (to, from) in field.iter_mut().zip(text.bytes().chain([0])) {
        *to = from;
    }
}

/// What the kernel fills in as it finds the device.
fn found(header: &mut Header, name: &DmName, uuid: Option<&DmUuid>) {
    overwrite(&mut header.name, name.as_str());
    overwrite(&mut header.uuid, uuid.map_or("", DmUuid::as_str));
}

/// A device's state into the header, of the table that was asked for.
fn put_info(header: &mut Header, info: &DeviceInfo, request: &Request) {
    match request {
        Request::Create { .. } => set(header, flag::INACTIVE_PRESENT, false),
        // A rename looks the device up by a way of its own.
        Request::Rename { .. } | Request::SetUuid { .. } => {}
        _ => {
            found(header, &info.name, info.uuid.as_ref());
            set(header, flag::INACTIVE_PRESENT, info.inactive.is_some());
        }
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
    set(header, flag::SUSPEND, info.suspended);
    set(header, flag::INTERNAL_SUSPEND, info.internally_suspended);
    set(header, flag::ACTIVE_PRESENT, info.live.is_some());
    let read_only = asked.is_some_and(|table| table.read_only);
    set(header, flag::READONLY, read_only);
    // These the kernel only ever adds.
    for (flag, on) in [
        (flag::DEFERRED_REMOVE, info.deferred_remove),
        (flag::UEVENT_GENERATED, info.uevent),
    ] {
        if on {
            set(header, flag, true);
        }
    }
}

fn device_list(
    header: &mut Header,
    area: &mut Area<'_>,
    devices: &[DeviceListEntry],
    request: &Request,
) {
    let Request::ListDevices {
        name_prefix,
        uuid_prefix,
        with_uuids,
    } = request
    else {
        return;
    };
    let listed: Vec<_> = devices
        .iter()
        .filter(|device| device.name.as_str().starts_with(name_prefix.as_str()))
        .filter(|device| uuid_of(device).starts_with(uuid_prefix))
        .collect();
    let size = |device: &DeviceListEntry| {
        let text = |bytes: usize| (bytes + 1).next_multiple_of(8);
        let uuid = uuid_of(device);
        let uuid_bytes = if *with_uuids && !uuid.is_empty() {
            text(uuid.len())
        } else {
            0
        };
        text(NAME_LIST_HEAD_BYTES + device.name.as_str().len()) + 8 + uuid_bytes
    };
    let needed: usize = listed.iter().map(|device| size(device)).sum();
    // The number of the first device is there in any case: zero if there is none.
    if !area.begin(header, needed.max(size_of::<u64>())) {
        return;
    }
    let mut at = 0;
    for (index, device) in listed.iter().enumerate() {
        let size = size(device);
        let next = if index + 1 < listed.len() { size } else { 0 };
        area.put_u64(at, device.dev.to_kernel());
        area.put_u32(at + 8, count(next));
        let name = device.name.as_str();
        area.put_text(at + NAME_LIST_HEAD_BYTES, name);
        let event_at = at + (NAME_LIST_HEAD_BYTES + name.len() + 1).next_multiple_of(8);
        let uuid = uuid_of(device);
        let flags = match (with_uuids, uuid.is_empty()) {
            (false, _) => 0,
            (true, true) => name_list_flag::DOESNT_HAVE_UUID,
            (true, false) => name_list_flag::HAS_UUID,
        };
        area.put_u32(event_at, device.event_nr);
        area.put_u32(event_at + 4, flags);
        if *with_uuids && !uuid.is_empty() {
            area.put_text(event_at + 8, uuid);
        }
        at += size;
    }
    used(header, needed);
}

/// Its uuid, or nothing.
fn uuid_of(device: &DeviceListEntry) -> &str {
    device.uuid.as_ref().map_or("", DmUuid::as_str)
}

fn version_list(header: &mut Header, area: &mut Area<'_>, versions: &[TargetVersion]) {
    let size = |target: &TargetVersion| VERSION_HEAD_BYTES + target.name.len() + 1;
    let needed: usize = versions
        .iter()
        .map(|target| size(target) + VERSION_SLACK_BYTES)
        .sum();
    if !area.begin(header, needed) {
        return;
    }
    let mut at = 0;
    for (index, target) in versions.iter().enumerate() {
        let size = size(target).next_multiple_of(8);
        let next = if index + 1 < versions.len() { size } else { 0 };
        area.put_u32(at, count(next));
        for (place, number) in target.version.iter().enumerate() {
            area.put_u32(at + 4 + 4 * place, *number);
        }
        area.put_text(at + VERSION_HEAD_BYTES, &target.name);
        at += size;
    }
    used(header, needed);
}

fn dependencies(header: &mut Header, area: &mut Area<'_>, devices: &[DevNo]) {
    let needed = 8 * (devices.len() + 1);
    if area.begin(header, needed) {
        area.put_u32(0, count(devices.len()));
        for (index, dev) in devices.iter().enumerate() {
            area.put_u64(8 + 8 * index, dev.to_kernel());
        }
        used(header, needed);
    }
}

/// Status records. The kernel writes as many as fit, so a caller sees [`flag::BUFFER_FULL`] and a part.
fn status_lines(header: &mut Header, area: &mut Area<'_>, lines: &[TableLine]) {
    header.data_start = U32::new(HEADER_BYTES as u32);
    let room = area.0.len();
    let mut at = 0;
    for line in lines {
        let text_at = at + TARGET_SPEC_BYTES;
        let end = text_at + line.params.len() + 1;
        // A text that just fits cannot be told from one that was cut.
        if room.saturating_sub(at) <= TARGET_SPEC_BYTES || end >= room {
            header.flags |= U32::new(flag::BUFFER_FULL);
            return;
        }
        area.put_u64(at, line.start.raw());
        area.put_u64(at + 8, line.len.raw());
        area.put_u32(at + 16, 0);
        let mut kind = [0; TARGET_TYPE_BYTES - 1];
        overwrite(&mut kind, &line.target);
        area.put(at + 24, &kind);
        area.put_text(text_at, &line.params);
        used(header, end);
        let next = end.next_multiple_of(8);
        if next > room {
            header.flags |= U32::new(flag::BUFFER_FULL);
            return;
        }
        area.put_u32(at + 20, count(next));
        at = next;
    }
}
