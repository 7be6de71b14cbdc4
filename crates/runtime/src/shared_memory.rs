//! Memory that can outlive the process: an anonymous file whose descriptor somebody else holds, too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// A mapped anonymous file, seen as 64-bit words.
///
/// What was stored is there for whoever maps the same descriptor later, in the order of the stores, however the process that stored
/// it ended.
pub struct SharedMemory {
    fd: OwnedFd,
    base: *mut AtomicU64,
    words: usize,
}

// SAFETY: the mapping belongs to this value until it is dropped, and all access to it is by atomics.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// New memory of so many words, all zero; `name` shows in `/proc/PID/maps`.
    pub fn new(name: &str, words: usize) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create(name, flags)?;
        rustix::fs::ftruncate(&fd, (words * WORD_BYTES) as u64)?;
        // A mapping beyond the end of a file kills who touches it.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::SEAL)?;
        Self::map(fd)
    }

    /// New memory for secrets, all zero: never paged out, in no core dump, and out of reach for other processes and the kernel's own
    /// reads (`memfd_secret(2)`). Counts as locked memory.
    ///
    /// # Errors
    /// The system's, `ENOSYS` where the kernel has none (before Linux 5.14, or switched off).
    pub fn secret(words: usize) -> io::Result<Self> {
        // SAFETY: the call takes no pointers; a descriptor that it returns is new, and ours.
        let fd = unsafe {
            match libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) {
                fd @ 0.. => OwnedFd::from_raw_fd(fd as RawFd),
                _ => return Err(io::Error::last_os_error()),
            }
        };
        rustix::fs::ftruncate(&fd, (words * WORD_BYTES) as u64)?;
        Self::map(fd)
    }

    /// The memory behind a descriptor that [`SharedMemory::fd`] gave, maybe in another process.
    pub fn map(fd: OwnedFd) -> io::Result<Self> {
        let bytes = usize::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(0);
        let words = bytes / WORD_BYTES;
        if words == 0 || !never_shrinks(&fd)? {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: a new mapping at an address of the kernel's choice; the file cannot shrink below it (seal).
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                words * WORD_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &fd,
                0,
            )
        }?;
        Ok(Self {
            fd,
            base: base.cast(),
            words,
        })
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, of this length, lives as long as `self`, and is only used as atomics.
        unsafe { std::slice::from_raw_parts(self.base, self.words) }
    }

    /// The descriptor to hand on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: ours, of this length; nothing borrows from it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), self.words * WORD_BYTES) };
    }
}

/// Secret memory has no seals, and no second size either.
fn never_shrinks(fd: &OwnedFd) -> io::Result<bool> {
    if rustix::fs::fstatfs(fd)?.f_type == SECRETMEM_MAGIC {
        return Ok(true);
    }
    Ok(rustix::fs::fcntl_get_seals(fd)?.contains(SealFlags::SHRINK))
}

/// `SECRETMEM_MAGIC` of `linux/magic.h`.
const SECRETMEM_MAGIC: rustix::fs::FsWord = 0x5345_434d;
const WORD_BYTES: usize = size_of::<AtomicU64>();

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;

    #[test]
    fn what_was_stored_is_there_for_the_next_who_maps_it() {
        let first = SharedMemory::new("test", 1024).expect("memory");
        first.words()[1023].store(7, SeqCst);
        let fd = first
            .fd()
            .try_clone_to_owned()
            .expect("a second descriptor");
        drop(first);
        let second = SharedMemory::map(fd).expect("the same memory");
        assert_eq!(second.words().len(), 1024);
        assert_eq!(second.words()[1023].load(SeqCst), 7);
        assert_eq!(second.words()[0].load(SeqCst), 0);
    }

    #[test]
    fn secrets_are_there_for_the_next_who_maps_them_and_for_no_other_way_of_reading() {
        let first = match SharedMemory::secret(16) {
            Ok(memory) => memory,
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                println!("SKIP secret memory: this kernel has no memfd_secret");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        first.words()[15].store(7, SeqCst);
        let address = first.words().as_ptr() as u64;
        let memory = std::fs::File::open("/proc/self/mem").expect("memory");
        let read = std::os::unix::fs::FileExt::read_at(&memory, &mut [0; 8], address);
        assert!(read.is_err(), "{read:?}");
        let fd = first.fd().try_clone_to_owned().expect("a second");
        drop(first);
        let second = SharedMemory::map(fd).expect("the same memory");
        assert_eq!(second.words()[15].load(SeqCst), 7);
        assert!(rustix::fs::ftruncate(second.fd(), 0).is_err());
    }

    #[test]
    fn a_file_that_may_shrink_is_refused() {
        let fd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).expect("a file");
        rustix::fs::ftruncate(&fd, 4096).expect("grown");
        assert!(SharedMemory::map(fd).is_err());
    }
}
