//! One device-mapper ioctl, forwarded: read the caller's buffer as the kernel would, ask the daemon, write the answer back.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use thinmap_control::ioctl::{
    Command, HEADER_BYTES_MIN, Header, INTERFACE_VERSION, IOCTL_TYPE, flag,
};
use thinmap_control::{BODY_BYTES_MAX, check_version};
use zerocopy::{FromBytes, IntoBytes, NativeEndian, U32};
use zeroize::Zeroizing;

use crate::caller::Caller;
use crate::cookie;
use crate::foreign;
use crate::world::World;

/// Bytes of the version numbers at the start of the buffer.
const VERSION_BYTES: usize = 12;
/// Buffers are fetched in steps, so that a length that lies reserves no memory.
const STEP_BYTES: usize = 1 << 20;

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
        if !caller.is_admin() && self.daemon_is_admin() {
            return Err(Errno::ACCESS);
        }
        if !is_dm_ioctl(request) {
            return Err(Errno::NOTTY);
        }
        let nr = request & 0xff;
        exchange_versions(caller, nr, address)?;
        let command = Command::from_nr(nr).ok_or(Errno::NOTTY)?;
        // May hold a key, as may the answer.
        let buffer = Zeroizing::new(fetch(caller, command, address)?);
        if command == Command::DevArmPoll {
            self.arm_poll(fd);
        }
        let mut client = self.connect()?;
        let waits = command == Command::DevWait;
        let wait = |answer: BorrowedFd<'_>| match waits {
            true => Ok(caller.wait_for(answer)?),
            false => Ok(()),
        };
        match client.forward(nr, buffer.to_vec(), wait) {
            Ok(answer) => {
                let errno = answer.errno;
                let mut answer = Zeroizing::new(answer.buffer);
                if errno == Errno::NXIO.raw_os_error()
                    && let Some(stranger) = foreign::answer(nr, &buffer, &self.majors())
                {
                    return caller.write(address, &stranger);
                }
                if errno != 0 {
                    return Err(Errno::from_raw_os_error(errno));
                }
                complete_cookie(&buffer, &mut answer);
                self.renamed.note(nr, &buffer);
                // The version alone was told already, and may have been wiped since.
                if answer.len() > VERSION_BYTES {
                    caller.write(address, &answer)?;
                }
                Ok(())
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

/// The kernel tells its version before it looks at anything else, and to a caller of a wrong one too.
fn exchange_versions(caller: &impl Caller, nr: u32, address: u64) -> Result<(), Errno> {
    let mut version = [U32::<NativeEndian>::new(0); 3];
    caller.read(address, version.as_mut_bytes())?;
    let told = INTERFACE_VERSION.map(U32::<NativeEndian>::new);
    caller.write(address, told.as_bytes())?;
    check_version(nr, version.map(U32::get)).map_err(|error| Errno::from_raw_os_error(error.errno))
}

/// What the kernel copies in: the version for the version command, the header for commands that ignore the rest, else
/// `data_size` bytes. From a caller that asks for it they are taken away.
fn fetch(caller: &impl Caller, command: Command, address: u64) -> Result<Vec<u8>, Errno> {
    let mut buffer = INTERFACE_VERSION
        .map(U32::<NativeEndian>::new)
        .as_bytes()
        .to_vec();
    if command == Command::Version {
        return Ok(buffer);
    }
    buffer.resize(HEADER_BYTES_MIN, 0);
    caller.read(address, &mut buffer)?;
    let header = Header::read_from_bytes(&buffer).map_err(|_| Errno::FAULT)?;
    if !header.has_good_size() {
        return Err(Errno::INVAL);
    }
    if !command.ignores_payload() {
        let size = header.data_size.get() as usize;
        if size > BODY_BYTES_MAX {
            return Err(too_large(caller, address, size));
        }
        while buffer.len() < size {
            let start = buffer.len();
            buffer.resize(size.min(start + STEP_BYTES), 0);
            let rest = buffer.get_mut(start..).ok_or(Errno::FAULT)?;
            caller.read(address + start as u64, rest)?;
        }
    }
    if header.has(flag::SECURE_DATA) {
        caller.write(address, &vec![0; buffer.len()])?;
    }
    Ok(buffer)
}

/// COMPAT: the kernel tries to allocate this much; the limit here is far beyond what a command needs. A caller that has not so much
/// memory at all gets the kernel's EFAULT.
fn too_large(caller: &impl Caller, address: u64, size: usize) -> Errno {
    let mut step = vec![0; STEP_BYTES];
    for at in (0..size).step_by(STEP_BYTES) {
        let bytes = STEP_BYTES.min(size - at);
        let Some(place) = step.get_mut(..bytes) else {
            break;
        };
        if let Err(errno) = caller.read(address + at as u64, place) {
            return errno;
        }
    }
    Errno::NOMEM
}
