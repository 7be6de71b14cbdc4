//! The key argument: hexadecimal digits, or the name of a key that the kernel keeps.

use std::ffi::CString;

use thinmap_runtime::{KeyringError, SecretBytes, read_key};

use super::key_state::BadKey;

/// A key argument that was understood; the key itself is still in the word.
pub(super) struct KeyWord<'a> {
    /// Bytes.
    pub(super) size: usize,
    source: Source<'a>,
}

enum Source<'a> {
    Hex(&'a str),
    /// `TYPE:DESCRIPTION`
    Kernels(&'a str),
}

impl<'a> KeyWord<'a> {
    /// `None` when not even the key's size can be told.
    pub(super) fn parse(word: &'a str) -> Option<Self> {
        let Some(rest) = word.strip_prefix(':') else {
            // COMPAT: an odd digit at the end does not count.
            let size = word.len() / 2;
            let source = Source::Hex(word);
            return Some(Self { size, source });
        };
        let (size, name) = rest.split_once(':')?;
        let size = crate::args::parse_u64(size)?;
        Some(Self {
            size: usize::try_from(size).ok().filter(|s| *s <= KEY_BYTES_MAX)?,
            source: Source::Kernels(name),
        })
    }

    /// The name under which the last process has left it, as [`super::key_state::KeyState::tell_kept`] tells it. No type of kernel's
    /// keys has that name.
    pub(super) fn kept(&self) -> Option<&'a str> {
        match self.source {
            Source::Kernels(name) => name.strip_prefix(KEPT),
            Source::Hex(_) => None,
        }
    }

    /// Whether the kernel keeps it.
    pub(super) fn is_kernels(&self) -> bool {
        matches!(self.source, Source::Kernels(_))
    }

    /// Puts the key into `key`, which has [`KeyWord::size`] bytes. What of it could be read stays there also when that fails,
    /// as in the kernel. The name of a kernel's key is returned.
    pub(super) fn fill(&self, key: &mut SecretBytes) -> Result<Option<String>, BadKey> {
        match self.source {
            // A hyphen is no key, for ciphers that need none; there are no such ciphers here.
            Source::Hex(_) if self.size == 0 => Err(BadKey::invalid("the key is empty")),
            Source::Hex(digits) => decode(digits, key).map(|()| None),
            Source::Kernels(name) => {
                let content = kernels_key(name)?;
                if content.len() != key.len() {
                    return Err(BadKey::invalid(format!(
                        "key {name} has {} bytes and not {}",
                        content.len(),
                        key.len()
                    )));
                }
                key.copy_from_slice(&content);
                Ok(Some(name.to_owned()))
            }
        }
    }
}

fn decode(digits: &str, key: &mut [u8]) -> Result<(), BadKey> {
    for (byte, pair) in key.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let [high, low] = *pair else { break };
        let digit = |c: u8| {
            char::from(c)
                .to_digit(16)
                .and_then(|d| u8::try_from(d).ok())
        };
        let (Some(high), Some(low)) = (digit(high), digit(low)) else {
            return Err(BadKey::invalid("the key is not all hexadecimal digits"));
        };
        *byte = high << 4 | low;
    }
    Ok(())
}

fn kernels_key(name: &str) -> Result<SecretBytes, BadKey> {
    if name.contains(|c: char| c.is_ascii_whitespace() || c == '\x0b') {
        return Err(BadKey::invalid(
            "whitespace chars not allowed in key string",
        ));
    }
    let (kind, description) = match name.split_once(':') {
        Some((kind, description)) if !kind.is_empty() && !description.is_empty() => {
            (kind, description)
        }
        _ => {
            let reason = format!("'{name}' is not TYPE:DESCRIPTION");
            return Err(BadKey::invalid(reason));
        }
    };
    if !matches!(kind, "user" | "logon" | "encrypted" | "trusted") {
        let reason = format!("there are no keys of type '{kind}'");
        return Err(BadKey::invalid(reason));
    }
    let [kind_text, description] = [kind, description].map(|text| CString::new(text).ok());
    let (Some(kind_text), Some(description)) = (kind_text, description) else {
        return Err(BadKey::invalid("a NUL in the key's name"));
    };
    // What can be read of these is not the key but its encrypted form.
    let readable = !matches!(kind, "encrypted" | "trusted");
    match read_key(&kind_text, &description) {
        Ok(content) if readable => Ok(content),
        Ok(_) | Err(KeyringError::Unreadable(_)) => Err(BadKey {
            reason: format!(
                "key {name}: the kernel hands no {kind} key to a program; give a user key or hexadecimal digits"
            ),
            errno: EOPNOTSUPP,
        }),
        Err(KeyringError::NotFound(error)) => Err(BadKey {
            reason: format!("key {name} is not in the daemon's keyrings: {error}"),
            errno: error.raw_os_error().unwrap_or(ENOKEY),
        }),
        Err(KeyringError::Memory(error)) => Err(BadKey {
            reason: error.to_string(),
            errno: ENOMEM,
        }),
    }
}

/// Before the name of a key of the last process's.
pub(super) const KEPT: &str = "kept:";
const KEY_BYTES_MAX: usize = 4096;
const ENOMEM: i32 = 12;
const EOPNOTSUPP: i32 = 95;
const ENOKEY: i32 = 126;
