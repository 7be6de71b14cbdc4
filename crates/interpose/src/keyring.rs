//! Whether the kernel keeps keys for device mapper: not for ours.
//!
//! libcryptsetup puts a volume's key into the kernel's keyring as a `logon` key and names it in the table, where it can. No
//! program may read such a key, the daemon neither. It asks first, by a look for a key that cannot be there; told that there
//! is no keyring (ENOSYS), it gives the key in the table.

use crate::caller::Caller;

/// What libcryptsetup looks for.
const KIND: &[u8] = b"logon\0";
const DESCRIPTION: &[u8] = b"dummy\0";

/// Whether request_key(2) with these addresses of texts is libcryptsetup's question. The kernel's answer would be ENOKEY:
/// the description of a logon key has a colon in it.
pub fn asks_for_logon_keys(caller: &impl Caller, kind: u64, description: u64) -> bool {
    has(caller, kind, KIND) && has(caller, description, DESCRIPTION)
}

fn has(caller: &impl Caller, address: u64, text: &[u8]) -> bool {
    let mut there = vec![0; text.len()];
    caller.read(address, &mut there).is_ok() && there == text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ThisThread;

    #[test]
    fn only_the_question_itself_is_answered() {
        let asks = |kind: &std::ffi::CStr, description: &std::ffi::CStr| {
            let [kind, description] = [kind, description].map(|text| text.as_ptr() as u64);
            asks_for_logon_keys(&ThisThread::new(), kind, description)
        };
        assert!(asks(c"logon", c"dummy"));
        assert!(!asks(c"user", c"dummy"));
        assert!(!asks(c"logon", c"dummy:0"));
        assert!(!asks_for_logon_keys(&ThisThread::new(), 0, 8));
    }
}
