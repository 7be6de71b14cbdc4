//! What the kernel asks of who uses device mapper.

/// May make device mapper's ioctls, in a set as the kernel shows it in `/proc`.
pub const CAP_SYS_ADMIN: u64 = 1 << 21;
/// May open what belongs to others.
pub const CAP_DAC_OVERRIDE: u64 = 1 << 1;

/// A thread's effective capabilities; `None` where they cannot be seen.
pub fn effective_capabilities(thread: i32) -> Option<u64> {
    u64::from_str_radix(&status_field(thread, "CapEff:")?, 16).ok()
}

/// What stands behind `field` (with its colon) in `/proc/THREAD/status`.
pub fn status_field(thread: i32, field: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let text = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(text.trim().to_owned())
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
