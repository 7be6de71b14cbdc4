//! The kernel's side behind a seam, so that tests can put a driver of their own there.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use thinmap_runtime::{CommandRing, control_command};
use thinmap_units::DevNo;
use zerocopy::IntoBytes;

use super::abi::{ControlCommand, Descriptor, QueueCommand, data_offset, descriptors_offset};
use super::{CONTROL, block_path, char_path};
use crate::{dev_node, openers};

/// The driver. Control calls block; never on a queue thread.
pub(super) trait Driver: Send + Sync {
    /// Sends a control command whose buffer is `buffer`; the answer's number.
    fn control(&self, op: u32, command: ControlCommand, buffer: &mut [u8]) -> Result<i32, Errno>;

    /// Opens the character device `id`, whose number is `number`.
    fn open(&self, id: u32, number: DevNo) -> Result<Arc<dyn CharDevice>, Errno>;

    /// Where a queue thread sends commands; called on that thread.
    fn commands(&self) -> std::io::Result<Box<dyn Commands>>;

    /// Sees to it that the block device `id`, whose number is `number`, has a path.
    fn show(&self, id: u32, number: DevNo) -> Result<(), Errno>;

    /// Takes back paths made by `open` and `show`.
    fn hide(&self, id: u32);

    /// Lets the block device refuse writers, or not.
    fn set_read_only(&self, id: u32, read_only: bool) -> Result<(), Errno>;

    /// Openers of the block device: known ones, and whether it is claimed; `fresh` looks anew.
    fn users(&self, id: u32, number: DevNo, fresh: bool) -> u32;

    /// Devices there are.
    fn ids(&self) -> Vec<u32>;
}

/// An open character device: where requests and their data are found.
pub(super) trait CharDevice: Send + Sync {
    /// For real commands.
    fn raw_fd(&self) -> RawFd;

    /// The memory that describes the requests of `queue`, which has `depth` tags.
    fn descriptors(&self, queue: u16, depth: u16) -> Result<Box<dyn Descriptors>, Errno>;

    /// Copies a write's data out of the kernel: all of `buf`.
    fn take_data(&self, queue: u16, tag: u16, buf: &mut [u8]) -> Result<(), Errno>;

    /// Copies a read's data into the kernel: all of `buf`.
    fn give_data(&self, queue: u16, tag: u16, buf: &[u8]) -> Result<(), Errno>;
}

/// A queue's descriptors. Valid for a tag between its fetch's answer and its commit.
pub(super) trait Descriptors {
    /// That of one tag, below the depth.
    fn read(&self, tag: u16) -> Descriptor;
}

/// A queue thread's line to the driver.
pub(super) trait Commands {
    /// Queues a command; `user_data` comes back with the result.
    fn push(&mut self, device: &dyn CharDevice, op: u32, command: QueueCommand, user_data: u64);

    /// Sends what is queued.
    fn submit(&mut self);

    /// Takes what has come: `user_data` and result.
    fn reap(&mut self, out: &mut Vec<(u64, i32)>);

    /// Readable when there is something to take.
    fn raw_fd(&self) -> RawFd;
}

/// This machine's kernel.
pub(super) struct Kernel {
    control: OwnedFd,
    /// Paths that neither udev nor devtmpfs had made.
    made: parking_lot::Mutex<Vec<PathBuf>>,
}

impl Kernel {
    pub(super) fn open() -> Result<Self, Errno> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        Ok(Self {
            control: rustix::fs::open(CONTROL, flags, Mode::empty())?,
            made: Default::default(),
        })
    }

    fn ensure(&self, path: PathBuf, kind: FileType, number: DevNo) -> Result<(), Errno> {
        if dev_node::ensure(&path, kind, number)? {
            self.made.lock().push(path);
        }
        Ok(())
    }
}

impl Driver for Kernel {
    fn control(
        &self,
        op: u32,
        mut command: ControlCommand,
        buffer: &mut [u8],
    ) -> Result<i32, Errno> {
        command.len = u16::try_from(buffer.len()).map_err(|_| Errno::INVAL)?;
        command.addr = if buffer.is_empty() {
            0
        } else {
            buffer.as_mut_ptr().expose_provenance() as u64
        };
        let mut bytes = [0; 80];
        bytes[..size_of::<ControlCommand>()].copy_from_slice(command.as_bytes());
        // SAFETY: `addr` and `len` describe `buffer`, which is ours alone until the call returns; the driver reads
        // and writes nothing else.
        let answer = unsafe { control_command(self.control.as_fd(), op, bytes) };
        answer.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    fn open(&self, id: u32, number: DevNo) -> Result<Arc<dyn CharDevice>, Errno> {
        let path = char_path(id);
        self.ensure(path.clone(), FileType::CharacterDevice, number)?;
        let fd = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Arc::new(OpenDevice(fd)))
    }

    fn commands(&self) -> std::io::Result<Box<dyn Commands>> {
        Ok(Box::new(CommandRing::new(RING_ENTRIES)?))
    }

    fn show(&self, id: u32, number: DevNo) -> Result<(), Errno> {
        self.ensure(block_path(id), FileType::BlockDevice, number)
    }

    fn hide(&self, id: u32) {
        let gone = [block_path(id), char_path(id)];
        let mine = |path: &mut PathBuf| gone.contains(path);
        for path in self.made.lock().extract_if(.., mine) {
            let _ = std::fs::remove_file(path);
        }
    }

    fn set_read_only(&self, id: u32, read_only: bool) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open(block_path(id), flags, Mode::empty())?;
        dev_node::set_read_only(&fd, read_only)
    }

    fn users(&self, id: u32, number: DevNo, fresh: bool) -> u32 {
        let path = block_path(id);
        if !fresh {
            return openers::count(number, &path);
        }
        let counted = openers::count_now(number, &path);
        counted.max(u32::from(dev_node::is_claimed(&path)))
    }

    fn ids(&self) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir(Path::new("/sys/class/ublk-char")) else {
            return Vec::new();
        };
        let id = |name: std::ffi::OsString| name.to_str()?.strip_prefix("ublkc")?.parse().ok();
        entries
            .flatten()
            .filter_map(|e| id(e.file_name()))
            .collect()
    }
}

struct OpenDevice(OwnedFd);

impl CharDevice for OpenDevice {
    fn raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn descriptors(&self, queue: u16, depth: u16) -> Result<Box<dyn Descriptors>, Errno> {
        let page = rustix::param::page_size();
        let bytes = (usize::from(depth) * size_of::<Descriptor>()).next_multiple_of(page);
        let offset = descriptors_offset(queue, page as u64);
        // SAFETY: a new mapping at an address of the kernel's choice; it touches no memory of ours.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::POPULATE,
                &self.0,
                offset,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Box::new(Mapping {
            start,
            bytes,
            depth,
        }))
    }

    fn take_data(&self, queue: u16, tag: u16, buf: &mut [u8]) -> Result<(), Errno> {
        let mut done = 0;
        while done < buf.len() {
            let offset = data_offset(queue, tag) + done as u64;
            match rustix::io::pread(&self.0, &mut buf[done..], offset) {
                Ok(0) => return Err(Errno::IO),
                Ok(bytes) => done += bytes,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn give_data(&self, queue: u16, tag: u16, buf: &[u8]) -> Result<(), Errno> {
        let mut done = 0;
        while done < buf.len() {
            let offset = data_offset(queue, tag) + done as u64;
            match rustix::io::pwrite(&self.0, &buf[done..], offset) {
                Ok(0) => return Err(Errno::IO),
                Ok(bytes) => done += bytes,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

/// The driver's descriptors in our memory, read-only.
struct Mapping {
    start: NonNull<Descriptor>,
    bytes: usize,
    depth: u16,
}

impl Descriptors for Mapping {
    fn read(&self, tag: u16) -> Descriptor {
        assert!(tag < self.depth, "tag {tag} of {}", self.depth);
        // SAFETY: inside the mapping (the depth was mapped whole, the tag is below it), aligned (page start, 24-byte
        // steps of 8-aligned fields), any bytes are a Descriptor. Volatile: the kernel writes there, though not
        // between a fetch's answer and the commit, when this is called.
        unsafe { self.start.add(usize::from(tag)).read_volatile() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length; nobody holds a reference into it, `read` copies.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

impl Commands for CommandRing {
    fn push(&mut self, device: &dyn CharDevice, op: u32, command: QueueCommand, user_data: u64) {
        debug_assert_eq!(command.addr, 0, "data goes through the character device");
        let mut bytes = [0; 16];
        bytes.copy_from_slice(command.as_bytes());
        // SAFETY: `device` is borrowed, so its descriptor is open for this call.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(device.raw_fd()) };
        // SAFETY: the command names no memory: `addr` is 0, devices are added with user copy.
        unsafe { self.push(fd, op, bytes, user_data) }
    }

    fn submit(&mut self) {
        self.submit();
    }

    fn reap(&mut self, out: &mut Vec<(u64, i32)>) {
        self.reap(out);
    }

    fn raw_fd(&self) -> RawFd {
        self.raw_fd()
    }
}

const RING_ENTRIES: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in memory where the driver would have descriptors and data.
    fn device() -> OpenDevice {
        let fd = rustix::fs::memfd_create("ublk-test", rustix::fs::MemfdFlags::CLOEXEC);
        let fd = fd.expect("memfd");
        rustix::fs::ftruncate(&fd, 1 << 20).expect("size");
        OpenDevice(fd)
    }

    #[test]
    fn descriptors_are_read_from_their_queues_mapping() {
        let device = device();
        let page = rustix::param::page_size() as u64;
        let written = |tag: u16| Descriptor {
            op_flags: 1,
            sectors: 8,
            start_sector: tag.into(),
            addr: 0,
        };
        for tag in [0, 1, 127] {
            let offset = descriptors_offset(1, page) + 24 * u64::from(tag);
            rustix::io::pwrite(&device.0, written(tag).as_bytes(), offset).expect("write");
        }
        let descriptors = device.descriptors(1, 128).expect("map");
        for tag in [0, 1, 127] {
            assert_eq!(descriptors.read(tag), written(tag));
        }
        assert_eq!(descriptors.read(2), Descriptor::default());
    }

    #[test]
    #[should_panic(expected = "tag 128 of 128")]
    fn a_tag_beyond_the_depth_is_not_read() {
        let descriptors = device().descriptors(0, 128).expect("map");
        descriptors.read(128);
    }

    #[test]
    fn data_is_found_under_queue_and_tag_and_only_whole() {
        let device = device();
        device.give_data(0, 3, &[7; 1024]).expect("give");
        let mut buf = [0; 1024];
        device.take_data(0, 3, &mut buf).expect("take");
        assert_eq!(buf, [7; 1024]);
        let short = device.take_data(0, 3, &mut [0; 2048]);
        assert_eq!(short, Err(Errno::IO), "less than asked is no success");
    }
}
