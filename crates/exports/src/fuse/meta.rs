//! Everything but data: the mount's handshake, look-up, attributes, the directory.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use zerocopy::{FromBytes, IntoBytes};

use super::abi::{self, opcode};
use super::abi::{
    Attr, AttrOut, DirentHead, EntryOut, InHeader, InitIn, InitInMore, InitOut, LseekIn, OpenOut,
    ReadWriteIn, SetattrIn, StatfsOut,
};
use super::file::DeviceFile;
use super::queue::Queue;
use super::server::REQUEST_BYTES_MAX;

impl Queue {
    /// Answers any request that carries no data.
    pub(super) fn meta(&mut self, header: &InHeader, args: &[u8]) {
        let unique = header.unique;
        let answer = match header.opcode {
            // These have no reply.
            opcode::FORGET | opcode::BATCH_FORGET => {
                return self.forget(header);
            }
            // A block request cannot be taken back; it ends soon and its reply is then ignored.
            opcode::INTERRUPT => return,
            opcode::INIT => self.init(args),
            opcode::LOOKUP => self.lookup(header, args),
            opcode::GETATTR => self.getattr(header),
            opcode::SETATTR => self.setattr(header, args),
            opcode::OPEN => self.open(header),
            opcode::RELEASE => {
                if let Some(file) = self.files.by_id(header.nodeid) {
                    file.released();
                }
                Ok(Vec::new())
            }
            opcode::STATFS => Ok(self.statfs(header)),
            opcode::OPENDIR => Ok(OpenOut::default().as_bytes().to_vec()),
            opcode::READDIR => self.readdir(args),
            opcode::RELEASEDIR | opcode::FSYNCDIR | opcode::ACCESS | opcode::DESTROY => {
                Ok(Vec::new())
            }
            opcode::LSEEK => self.lseek(header, args),
            // FLUSH too: the kernel then stops asking at every close.
            _ => Err(libc::ENOSYS),
        };
        match answer {
            Ok(content) => self.channel.reply_bytes(unique, &content),
            Err(errno) => self.channel.reply(unique, errno),
        }
        if header.opcode == opcode::INIT {
            // The kernel takes entries once it has our answer.
            self.ringing.answered(self.agreed);
        }
    }

    fn init(&mut self, args: &[u8]) -> Answer {
        let (init, more) = InitIn::read_from_prefix(args).map_err(|_| libc::EIO)?;
        if init.major != abi::MAJOR {
            // The kernel asks again with our major number when its own is newer.
            let out = InitOut {
                major: abi::MAJOR,
                minor: abi::MINOR,
                ..InitOut::default()
            };
            return Ok(out.as_bytes().to_vec());
        }
        let offered = init.flags & abi::init_flag::INIT_EXT != 0
            && InitInMore::read_from_prefix(more)
                .is_ok_and(|(more, _)| more.flags2 & abi::init_flag::OVER_IO_URING != 0);
        self.agreed = offered && self.ringing.is_wanted();
        let (more_flags, flags2) = if self.agreed {
            (abi::init_flag::INIT_EXT, abi::init_flag::OVER_IO_URING)
        } else {
            (0, 0)
        };
        let out = InitOut {
            major: abi::MAJOR,
            minor: abi::MINOR,
            max_readahead: init.max_readahead,
            flags: init.flags & (WANTED_FLAGS | more_flags),
            flags2,
            max_background: MAX_BACKGROUND,
            congestion_threshold: MAX_BACKGROUND / 4 * 3,
            max_write: REQUEST_BYTES_MAX as u32,
            time_gran: 1,
            max_pages: (REQUEST_BYTES_MAX / 4096) as u16,
            ..InitOut::default()
        };
        Ok(out.as_bytes().to_vec())
    }

    fn forget(&mut self, header: &InHeader) {
        // Only the ways back cached here; the file itself lives as long as its node.
        if header.opcode == opcode::FORGET {
            self.sinks.remove(&header.nodeid);
        }
    }

    fn lookup(&self, header: &InHeader, args: &[u8]) -> Answer {
        let name = args.strip_suffix(&[0]).unwrap_or(args);
        if header.nodeid != abi::ROOT_ID {
            return Err(libc::ENOTDIR);
        }
        let file = self.files.by_name(name).ok_or(libc::ENOENT)?;
        // Nothing is cached: sizes change, and files go.
        let out = EntryOut {
            nodeid: file.nodeid(),
            attr: file_attr(&file),
            ..EntryOut::default()
        };
        Ok(out.as_bytes().to_vec())
    }

    fn attr(&self, nodeid: u64) -> Result<Attr, i32> {
        if nodeid == abi::ROOT_ID {
            return Ok(attr(nodeid, libc::S_IFDIR | 0o700, 0));
        }
        self.files
            .by_id(nodeid)
            .map(|file| file_attr(&file))
            .ok_or(libc::ESTALE)
    }

    fn getattr(&self, header: &InHeader) -> Answer {
        let out = AttrOut {
            attr: self.attr(header.nodeid)?,
            ..AttrOut::default()
        };
        Ok(out.as_bytes().to_vec())
    }

    /// Times are accepted and forgotten. A size of 0 is what O_TRUNC asks: ignored, as block devices do.
    fn setattr(&self, header: &InHeader, args: &[u8]) -> Answer {
        let (set, _) = SetattrIn::read_from_prefix(args).map_err(|_| libc::EIO)?;
        let attr = self.attr(header.nodeid)?;
        if set.valid & (abi::FATTR_MODE | abi::FATTR_UID | abi::FATTR_GID) != 0 {
            return Err(libc::EPERM);
        }
        if set.valid & abi::FATTR_SIZE != 0 && set.size != 0 && set.size != attr.size {
            return Err(libc::EINVAL);
        }
        let out = AttrOut {
            attr,
            ..AttrOut::default()
        };
        Ok(out.as_bytes().to_vec())
    }

    fn open(&self, header: &InHeader) -> Answer {
        let file = self.files.by_id(header.nodeid).ok_or(libc::ENXIO)?;
        file.opened();
        let open_flags = abi::FOPEN_DIRECT_IO | abi::FOPEN_PARALLEL_DIRECT_WRITES;
        let out = OpenOut {
            fh: header.nodeid,
            open_flags,
            padding: 0,
        };
        Ok(out.as_bytes().to_vec())
    }

    /// COMPAT: the loop driver takes its discard granularity from `f_bsize`.
    fn statfs(&self, header: &InHeader) -> Vec<u8> {
        let geometry = self.files.by_id(header.nodeid).map(|file| file.geometry());
        let bsize = geometry.map_or(4096, |g| {
            g.limits
                .discard_granularity
                .max(g.limits.logical_block_size)
        });
        let blocks = geometry.map_or(0, |g| g.size_bytes / u64::from(bsize));
        let out = StatfsOut {
            blocks,
            bsize,
            frsize: bsize,
            namelen: 20,
            ..StatfsOut::default()
        };
        out.as_bytes().to_vec()
    }

    fn readdir(&self, args: &[u8]) -> Answer {
        let (read, _) = ReadWriteIn::read_from_prefix(args).map_err(|_| libc::EIO)?;
        let mut out = Vec::new();
        let dots = [
            (abi::ROOT_ID, ".".to_owned()),
            (abi::ROOT_ID, "..".to_owned()),
        ];
        let files = self
            .files
            .all()
            .into_iter()
            .map(|f| (f.nodeid(), f.name().to_owned()));
        // Offsets are node ids, which only grow: an entry removed between two calls hides no other.
        for (position, (ino, name)) in dots.into_iter().chain(files).enumerate() {
            let off = if position < 2 {
                position as u64 + 1
            } else {
                ino + 1
            };
            if off <= read.offset {
                continue;
            }
            let kind = if position < 2 {
                libc::DT_DIR
            } else {
                libc::DT_REG
            };
            let bytes = (size_of::<DirentHead>() + name.len()).next_multiple_of(8);
            if out.len() + bytes > read.size as usize {
                break;
            }
            let namelen = name.len() as u32;
            let head = DirentHead {
                ino,
                off,
                namelen,
                kind: u32::from(kind),
            };
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(name.as_bytes());
            out.resize(out.len().next_multiple_of(8), 0);
        }
        Ok(out)
    }

    /// All of the file is data: what is allocated below is not told here.
    fn lseek(&self, header: &InHeader, args: &[u8]) -> Answer {
        let (seek, _) = LseekIn::read_from_prefix(args).map_err(|_| libc::EIO)?;
        let file = self.files.by_id(header.nodeid).ok_or(libc::ESTALE)?;
        let size = file.geometry().size_bytes;
        if seek.offset >= size {
            return Err(libc::ENXIO);
        }
        match seek.whence.cast_signed() {
            libc::SEEK_DATA => Ok(seek.offset.as_bytes().to_vec()),
            libc::SEEK_HOLE => Ok(size.as_bytes().to_vec()),
            _ => Err(libc::EINVAL),
        }
    }
}

type Answer = Result<Vec<u8>, i32>;

fn file_attr(file: &Arc<DeviceFile>) -> Attr {
    let geometry = file.geometry();
    // Always writable by mode: the loop driver opens once, before it is known whether the table is read-only.
    attr(file.nodeid(), libc::S_IFREG | 0o600, geometry.size_bytes)
}

fn attr(ino: u64, mode: u32, size: u64) -> Attr {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    Attr {
        ino,
        size,
        blocks: size / 512,
        atime: now,
        mtime: now,
        ctime: now,
        mode,
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        blksize: 4096,
        ..Attr::default()
    }
}

const WANTED_FLAGS: u32 = abi::init_flag::ASYNC_READ
    | abi::init_flag::BIG_WRITES
    | abi::init_flag::ASYNC_DIO
    | abi::init_flag::PARALLEL_DIROPS
    | abi::init_flag::MAX_PAGES;
/// Asynchronous requests of all devices together that the kernel hands out: 128 for each of 128 loop devices,
/// so that a device that stalls does not stall the others.
const MAX_BACKGROUND: u16 = 16_384;
