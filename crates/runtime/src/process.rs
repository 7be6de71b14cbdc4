//! What a process that serves block devices must tell the kernel, so that it cannot be made to wait
//! on itself when memory runs short.

/// The kernel refused the wish; the daemon goes on and says so.
#[derive(Debug)]
pub struct IoFlusherError(pub std::io::Error);

/// Marks the calling thread (and those it starts later) as part of the I/O path: its allocations never start
/// write-back to a device it serves itself (PR_SET_IO_FLUSHER, needs CAP_SYS_RESOURCE).
pub fn mark_io_flusher() -> Result<(), IoFlusherError> {
    // SAFETY: prctl with PR_SET_IO_FLUSHER takes plain integers and touches no memory of ours.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(IoFlusherError(std::io::Error::last_os_error()))
    }
}

/// Locks all present memory, and all future memory when it is first touched, so that the I/O path is never paged out.
pub fn lock_memory() -> std::io::Result<()> {
    let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: mlockall takes flags only and changes no memory content.
    let result = unsafe { libc::mlockall(flags) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// From <linux/prctl.h>; the libc crate does not name it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
