//! The program that makes a system call: its memory, where an address may be anything, and its patience.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::thread::CapabilitySet;

/// The smallest page that memory is made of.
const PAGE_BYTES: u64 = 4096;

/// Who made the system call that is performed for it.
pub trait Caller {
    /// Fills `into` from `address` of its memory; a bad address is EFAULT, as `copy_from_user` has it.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno>;
    /// Puts `bytes` at `address` of its memory, or EFAULT.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno>;
    /// Whether it has the capability that the kernel asks of who uses device mapper.
    fn is_admin(&self) -> bool;
    /// Waits until `answer` is readable, for a command that a signal to the caller may interrupt: the errno then.
    fn wait_for(&self, answer: BorrowedFd<'_>) -> Result<(), Errno>;
}

/// The calling thread itself.
#[derive(Clone, Copy, Debug)]
pub struct ThisThread(ProcessMemory);

impl ThisThread {
    /// To be made anew for each call: after a fork it is another process.
    pub fn new() -> Self {
        Self(ProcessMemory(Pid::this()))
    }
}

impl Default for ThisThread {
    fn default() -> Self {
        Self::new()
    }
}

impl Caller for ThisThread {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.0.read(address, into)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.0.write(address, bytes)
    }

    fn is_admin(&self) -> bool {
        // What cannot be asked is left to the daemon's socket to refuse.
        rustix::thread::capabilities(None).map_or(true, |sets| {
            sets.effective.contains(CapabilitySet::SYS_ADMIN)
        })
    }

    /// A signal ends it with EINTR, or not at all if its handler restarts system calls.
    fn wait_for(&self, answer: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut first = [0];
        rustix::net::recv(answer, &mut first[..], RecvFlags::PEEK).map(|_| ())
    }
}

/// The memory of a process, by the kernel's own copying calls: safe for every address, also in one's own process.
#[derive(Clone, Copy, Debug)]
pub struct ProcessMemory(Pid);

impl ProcessMemory {
    /// Another process's memory, by the number of one of its threads.
    pub fn of(pid: i32) -> Self {
        Self(Pid::from_raw(pid))
    }

    /// Fills `into` from `address`, or EFAULT.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        let len = into.len();
        let remote = [remote(address, len)?];
        let done = process_vm_readv(self.0, &mut [IoSliceMut::new(into)], &remote);
        whole(done, len)
    }

    /// The bytes from `address` up to a NUL. EFAULT if memory ends before one, ENAMETOOLONG beyond `max` bytes.
    pub fn read_text(&self, address: u64, max: usize) -> Result<Vec<u8>, Errno> {
        let mut text = Vec::new();
        while text.len() < max {
            let start = text.len();
            let at = address.checked_add(start as u64).ok_or(Errno::FAULT)?;
            // Never beyond the page: the next one may not be there, and the text may end before it.
            let in_page = (PAGE_BYTES - at % PAGE_BYTES) as usize;
            text.resize(max.min(start + in_page), 0);
            let piece = text.get_mut(start..).ok_or(Errno::FAULT)?;
            self.read(at, piece)?;
            if let Some(len) = piece.iter().position(|byte| *byte == 0) {
                text.truncate(start + len);
                return Ok(text);
            }
        }
        Err(Errno::NAMETOOLONG)
    }

    /// Puts `bytes` at `address`, or EFAULT.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        let remote = [remote(address, bytes.len())?];
        let done = process_vm_writev(self.0, &[IoSlice::new(bytes)], &remote);
        whole(done, bytes.len())
    }
}

fn remote(address: u64, len: usize) -> Result<RemoteIoVec, Errno> {
    let base = usize::try_from(address).map_err(|_| Errno::FAULT)?;
    Ok(RemoteIoVec { base, len })
}

/// The kernel copies what it can reach; less than all is a bad address.
fn whole(done: nix::Result<usize>, len: usize) -> Result<(), Errno> {
    match done {
        Ok(copied) if copied == len => Ok(()),
        Ok(_) => Err(Errno::FAULT),
        Err(errno) => Err(Errno::from_raw_os_error(errno as i32)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_is_read_and_written() {
        let mut cell = *b"before";
        let address = cell.as_mut_ptr() as u64;
        let mut seen = [0; 6];
        let memory = ThisThread::new();
        memory.read(address, &mut seen).expect("read");
        assert_eq!(&seen, b"before");
        memory.write(address, b"after!").expect("written");
        assert_eq!(&std::hint::black_box(cell), b"after!");
    }

    #[test]
    fn a_text_ends_at_its_nul() {
        let memory = ProcessMemory(Pid::this());
        let mut bytes = vec![b'x'; 3 * 4096];
        bytes[5000] = 0;
        let address = bytes.as_ptr() as u64;
        let text = memory.read_text(address, 8192).expect("read");
        assert_eq!(text, vec![b'x'; 5000]);
        assert_eq!(memory.read_text(address, 4000), Err(Errno::NAMETOOLONG));
        assert_eq!(memory.read_text(8, 4096), Err(Errno::FAULT));
    }

    #[test]
    fn a_bad_address_is_efault() {
        let mut into = [0; 8];
        let memory = ThisThread::new();
        for address in [0, 8, u64::MAX - 3] {
            assert_eq!(memory.read(address, &mut into), Err(Errno::FAULT));
            assert_eq!(memory.write(address, &into), Err(Errno::FAULT));
        }
    }
}
