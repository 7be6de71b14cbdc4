//! udev cookies: System V semaphores on which libdevmapper waits until udev has handled a device's uevent.
//!
//! No uevent of ours reaches udev, so what udev's rules would do at the end (`dmsetup udevcomplete`) is done here, once the command
//! has succeeded: the semaphore is lowered by one. Source: dmsetup(8), libdevmapper.h (`DM_COOKIE_MAGIC`,
//! `DM_UDEV_FLAGS_MASK`).
#![expect(unsafe_code, reason = "no crate offers System V semaphores safely")]

/// What `event_nr` carries into a command that sends a uevent: a cookie in the lower half, flags for udev's rules above it.
const COOKIE_MASK: u32 = 0xffff;
/// The upper half of a cookie's semaphore key.
const KEY_MAGIC: u32 = 0x0d4d << 16;

/// Completes the cookie in `event_nr`, if there is one; whether nobody needs to do that any more.
///
/// `false` when there is no such semaphore here, say in a caller's IPC namespace of its own.
pub fn complete(event_nr: u32) -> bool {
    let cookie = event_nr & COOKIE_MASK;
    cookie == 0 || lower(KEY_MAGIC | cookie).is_some()
}

fn lower(key: u32) -> Option<()> {
    // SAFETY: takes numbers only, and finds a semaphore without making one.
    let id = unsafe { libc::semget(key as libc::key_t, 1, 0) };
    let mut by_one = libc::sembuf {
        sem_num: 0,
        sem_op: -1,
        // A cookie that was completed too often already is nothing to wait for.
        sem_flg: libc::IPC_NOWAIT as libc::c_short,
    };
    // SAFETY: one operation, which lives beyond the call.
    (id >= 0 && unsafe { libc::semop(id, &mut by_one, 1) } == 0).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A semaphore of value 1, as libdevmapper makes them; removed at the end.
    struct Semaphore(libc::c_int);

    impl Semaphore {
        fn new(cookie: u32) -> Self {
            let flags = libc::IPC_CREAT | libc::IPC_EXCL | 0o600;
            // SAFETY: numbers only.
            let id = unsafe { libc::semget((KEY_MAGIC | cookie) as libc::key_t, 1, flags) };
            assert!(id >= 0, "{}", std::io::Error::last_os_error());
            // SAFETY: numbers only; SETVAL takes an int.
            assert_eq!(unsafe { libc::semctl(id, 0, libc::SETVAL, 1) }, 0);
            Self(id)
        }

        fn value(&self) -> libc::c_int {
            // SAFETY: numbers only.
            unsafe { libc::semctl(self.0, 0, libc::GETVAL) }
        }
    }

    impl Drop for Semaphore {
        fn drop(&mut self) {
            // SAFETY: numbers only.
            unsafe { libc::semctl(self.0, 0, libc::IPC_RMID) };
        }
    }

    #[test]
    fn a_cookie_is_completed_once() {
        // A number of this process's own; tests run beside each other.
        let cookie = std::process::id() & COOKIE_MASK | 1;
        let semaphore = Semaphore::new(cookie);
        let with_flags = 0x0012_0000 | cookie;
        assert!(complete(with_flags));
        assert_eq!(semaphore.value(), 0);
        assert!(!complete(with_flags));
        drop(semaphore);
        assert!(!complete(cookie));
        assert!(complete(0x0012_0000));
    }
}
