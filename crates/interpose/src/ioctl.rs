//! One device-mapper ioctl, forwarded: read the caller's buffer as the kernel would, ask the daemon, write the answer back.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use thinmap_control::BODY_BYTES_MAX;
use thinmap_control::ioctl::{Command, HEADER_BYTES_MIN, Header, IOCTL_TYPE, flag};
use zerocopy::{FromBytes, U32};

use crate::caller::Caller;
use crate::cookie;
use crate::foreign;
use crate::lvm2;
use crate::world::World;

/// Bytes of the version numbers at the start of the buffer.
const VERSION_BYTES: usize = 12;
/// Buffers are fetched in steps, so that a length that lies reserves no memory.
const READ_STEP_BYTES: usize = 1 << 20;

/// Whether the type byte of an ioctl number is device mapper's.
pub const fn is_dm_ioctl(request: u32) -> bool {
    (request >> 8) as u8 == IOCTL_TYPE
}

impl World {
    /// Performs ioctl `request` on the control node opened as `fd`, with its argument at `address`. The errno is the
    /// kernel's.
    pub fn ioctl(
        &self,
        fd: impl AsFd,
        caller: &impl Caller,
        request: u32,
        address: u64,
    ) -> Result<(), Errno> {
        if !is_dm_ioctl(request) {
            return Err(Errno::NOTTY);
        }
        let nr = request & 0xff;
        let buffer = fetch(caller, nr, address)?;
        if nr == Command::DevArmPoll.nr() {
            self.arm_poll(fd);
        }
        let mut client = self.connect()?;
        let waits = nr == Command::DevWait.nr();
        let wait = |answer: BorrowedFd<'_>| match waits {
            true => Ok(caller.wait_for(answer)?),
            false => Ok(()),
        };
        match client.forward(nr, buffer.clone(), wait) {
            Ok(mut answer) => {
                if answer.errno == Errno::NXIO.raw_os_error()
                    && let Some(stranger) = foreign::answer(nr, &buffer, &self.majors())
                {
                    return caller.write(address, &stranger);
                }
                if answer.errno == 0 {
                    complete_cookie(&buffer, &mut answer.buffer);
                }
                let with_more = match answer.errno {
                    0 => lvm2::targets(nr, &caller.process(), &buffer, &answer.buffer),
                    _ => None,
                };
                // Of a refused command, the version: the kernel tells it before it looks at anything else.
                caller.write(address, with_more.as_ref().unwrap_or(&answer.buffer))?;
                if answer.errno == 0 {
                    self.renamed.note(nr, &buffer);
                    return Ok(());
                }
                Err(Errno::from_raw_os_error(answer.errno))
            }
            Err(error) if error.errno() == Errno::INTR.raw_os_error() => Err(Errno::INTR),
            Err(_) => Err(Errno::IO),
        }
    }
}

/// Does for the command's cookie what udev would do after the uevent. Where that fails the answer says that there was no
/// uevent: then libdevmapper does it.
fn complete_cookie(request: &[u8], answer: &mut [u8]) {
    let Ok((request, _)) = Header::ref_from_prefix(request) else {
        return;
    };
    let Ok((answer, _)) = Header::mut_from_prefix(answer) else {
        return;
    };
    if answer.has(flag::UEVENT_GENERATED) && !cookie::complete(request.event_nr.get()) {
        answer.flags -= U32::new(flag::UEVENT_GENERATED);
    }
}

/// What the kernel copies in: the version for the version command, the header for commands that ignore the rest, else
/// `data_size` bytes.
fn fetch(caller: &impl Caller, nr: u32, address: u64) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; VERSION_BYTES];
    caller.read(address, &mut buffer)?;
    let command = Command::from_nr(nr);
    if command.is_none_or(|command| command == Command::Version) {
        return Ok(buffer);
    }
    buffer.resize(HEADER_BYTES_MIN, 0);
    caller.read(address, &mut buffer)?;
    if command.is_some_and(Command::ignores_payload) {
        return Ok(buffer);
    }
    let header = Header::read_from_bytes(&buffer).map_err(|_| Errno::FAULT)?;
    let size = header.data_size.get() as usize;
    if size > BODY_BYTES_MAX {
        // COMPAT: the kernel tries to allocate this much; 64 MiB is far beyond what a command needs.
        return Err(Errno::NOMEM);
    }
    while buffer.len() < size {
        let start = buffer.len();
        buffer.resize(size.min(start + READ_STEP_BYTES), 0);
        let rest = buffer.get_mut(start..).ok_or(Errno::FAULT)?;
        caller.read(address + start as u64, rest)?;
    }
    Ok(buffer)
}
