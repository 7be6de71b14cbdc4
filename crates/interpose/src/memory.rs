//! The memory of the program that makes a system call: an address in it may be anything.

use std::io::{IoSlice, IoSliceMut};

use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use rustix::io::Errno;

/// Copies from and to the caller's memory; a bad address is EFAULT, as `copy_from_user` has it.
pub trait CallerMemory {
    /// Fills `into` from `address`.
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno>;
    /// Puts `bytes` at `address`.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno>;
}

/// The memory of a process, by the kernel's own copying calls: safe for every address, also in one's own process.
#[derive(Clone, Copy, Debug)]
pub struct ProcessMemory(Pid);

impl ProcessMemory {
    /// The calling process's own memory.
    pub fn own() -> Self {
        Self(Pid::this())
    }

    /// Another process's memory, by the number of one of its threads.
    pub fn of(pid: i32) -> Self {
        Self(Pid::from_raw(pid))
    }
}

impl CallerMemory for ProcessMemory {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        let len = into.len();
        let remote = [remote(address, len)?];
        let done = process_vm_readv(self.0, &mut [IoSliceMut::new(into)], &remote);
        whole(done, len)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
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
        let memory = ProcessMemory::own();
        memory.read(address, &mut seen).expect("read");
        assert_eq!(&seen, b"before");
        memory.write(address, b"after!").expect("written");
        assert_eq!(&std::hint::black_box(cell), b"after!");
    }

    #[test]
    fn a_bad_address_is_efault() {
        let mut into = [0; 8];
        let memory = ProcessMemory::own();
        for address in [0, 8, u64::MAX - 3] {
            assert_eq!(memory.read(address, &mut into), Err(Errno::FAULT));
            assert_eq!(memory.write(address, &into), Err(Errno::FAULT));
        }
    }
}
