//! Keys that the kernel keeps (add_key(2), keyctl(1)).

use std::ffi::CStr;
use std::io;

use crate::secret::SecretBytes;

/// Why a key of the kernel's could not be read.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// Not there, not allowed, revoked, expired: the kernel's errno.
    #[error("the kernel has no such key for this process: {0}")]
    NotFound(io::Error),
    /// It is there, and its content stays in the kernel: keys of type `logon` always do.
    #[error("the kernel does not let programs read it: {0}")]
    Unreadable(io::Error),
    /// No locked memory for it.
    #[error("no memory for a key: {0}")]
    Memory(io::Error),
}

/// The content of the key of type `kind` called `description` in this process's keyrings, or in its user's.
pub fn read_key(kind: &CStr, description: &CStr) -> Result<SecretBytes, KeyringError> {
    let serial = find(kind, description).map_err(KeyringError::NotFound)?;
    let mut content = SecretBytes::zeroed(KEY_BYTES_MAX).map_err(KeyringError::Memory)?;
    // SAFETY: the kernel writes at most the length given, into a buffer of that length.
    let len = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_READ,
            serial,
            content.as_mut_ptr(),
            content.len(),
        )
    };
    let len = usize::try_from(len).map_err(|_| KeyringError::Unreadable(last_error()))?;
    // The kernel tells the whole length also of a longer key, of which it gives nothing.
    if len > content.len() {
        let error = io::Error::from_raw_os_error(libc::EINVAL);
        return Err(KeyringError::Unreadable(error));
    }
    let mut key = SecretBytes::zeroed(len).map_err(KeyringError::Memory)?;
    key.copy_from_slice(content.get(..len).unwrap_or_default());
    Ok(key)
}

fn find(kind: &CStr, description: &CStr) -> io::Result<libc::c_long> {
    // SAFETY: both texts end in a NUL and live for the call; without a callout text the kernel starts no program.
    let found = unsafe {
        libc::syscall(
            libc::SYS_request_key,
            kind.as_ptr(),
            description.as_ptr(),
            std::ptr::null::<libc::c_char>(),
            0,
        )
    };
    if found >= 0 {
        return Ok(found);
    }
    let error = last_error();
    // A session's keyring hides the user's, unless it was linked to it.
    // SAFETY: as above; the kernel only looks.
    let found = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_SEARCH,
            KEY_SPEC_USER_KEYRING,
            kind.as_ptr(),
            description.as_ptr(),
            0,
        )
    };
    if found >= 0 { Ok(found) } else { Err(error) }
}

fn last_error() -> io::Error {
    io::Error::last_os_error()
}

// From <linux/keyctl.h>.
const KEYCTL_SEARCH: libc::c_long = 10;
const KEYCTL_READ: libc::c_long = 11;
const KEY_SPEC_USER_KEYRING: libc::c_long = -4;
/// More than any cipher's key.
const KEY_BYTES_MAX: usize = 4096;
