//! What the kernel asks of who uses device mapper.

/// May make device mapper's ioctls, in a set as the kernel shows it in `/proc`.
pub const CAP_SYS_ADMIN: u64 = 1 << 21;
/// May open what belongs to others.
pub const CAP_DAC_OVERRIDE: u64 = 1 << 1;

/// A thread's effective capabilities; `None` where they cannot be seen.
pub fn effective_capabilities(thread: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let set = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threads_capabilities_are_seen() {
        let own = rustix::thread::capabilities(None).expect("capabilities");
        let me = rustix::process::getpid().as_raw_nonzero().get();
        assert_eq!(effective_capabilities(me), Some(own.effective.bits()));
        assert_eq!(effective_capabilities(i32::MAX), None);
    }
}
