//! Names as libdevmapper writes them: bytes that udev cannot bear are mangled to `\xNN`.

use thinmap_units::{NAME_BYTES_MAX, UUID_BYTES_MAX};

/// How names are mangled on the way in and unmangled on the way out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mangling {
    /// Names pass as they are.
    None,
    /// Mangle what needs it, keep what is mangled already. libdevmapper's default.
    #[default]
    Auto,
    /// Mangle always, backslashes too.
    Hex,
}

impl Mangling {
    /// The value of `--manglename`.
    pub fn from_option(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "none" => Some(Self::None),
            "auto" => Some(Self::Auto),
            "hex" => Some(Self::Hex),
            _ => None,
        }
    }
}

/// What a name belongs to, for messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Name,
    /// The one that a device is renamed to.
    NewName,
    Uuid,
}

impl Kind {
    /// The longest mangled form, in bytes.
    fn bytes_max(self) -> usize {
        match self {
            Self::Name | Self::NewName => NAME_BYTES_MAX,
            Self::Uuid => UUID_BYTES_MAX,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::NewName => "new name",
            Self::Uuid => "UUID",
        }
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"#+-.:=@_".contains(&byte)
}

/// Mangles; an error is the lines to print. With [`Mangling::None`] the rules of `Auto` hold, as in libdevmapper.
pub fn mangle(text: &str, kind: Kind, mode: Mangling) -> Result<String, String> {
    let label = kind.label();
    let mixed = || {
        format!(
            "The {label} \"{text}\" contains mixed mangled and unmangled \
             characters or it's already mangled improperly."
        )
    };
    let mut mangled = String::new();
    let (mut kept_mangled, mut newly_mangled) = (false, false);
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        if mode != Mangling::Hex
            && text
                .as_bytes()
                .get(at..)
                .is_some_and(|r| r.starts_with(b"\\x"))
        {
            let quad = text
                .get(at..at + 4)
                .filter(|_| !newly_mangled)
                .ok_or_else(mixed)?;
            mangled.push_str(quad);
            bytes.nth(2);
            kept_mangled = true;
        } else if is_plain(byte) {
            mangled.push(char::from(byte));
        } else {
            if mode != Mangling::Hex && kept_mangled {
                return Err(mixed());
            }
            mangled.push_str(&format!("\\x{byte:02x}"));
            newly_mangled = true;
        }
    }
    if mangled.len() > kind.bytes_max() {
        return Err(format!(
            "Mangled form of the {label} too long for \"{text}\"."
        ));
    }
    Ok(mangled)
}

/// The readable form of a mangled text. Strict modes refuse bytes that should have been mangled.
pub fn unmangle(text: &str, kind: Kind, mode: Mangling) -> Result<String, String> {
    let label = kind.label();
    if mode != Mangling::None && !text.bytes().all(|byte| is_plain(byte) || byte == b'\\') {
        return Err(format!(
            "The {label} \"{text}\" should be mangled but it contains blacklisted characters."
        ));
    }
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = rest
            .strip_prefix(b"\\x")
            .and_then(|r| r.get(..2))
            .and_then(|two| std::str::from_utf8(two).ok())
            .and_then(|two| u8::from_str_radix(two, 16).ok());
        match hex {
            Some(byte) => {
                bytes.push(byte);
                rest = rest.get(4..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// In mode `Auto` a backslash that is itself mangled means that a name was mangled twice.
pub fn check_mangled_once(text: &str, kind: Kind, mode: Mangling) -> Result<(), String> {
    if mode == Mangling::Auto && text.contains("\\x5cx") {
        return Err(format!(
            "The {} \"{text}\" seems to be mangled more than once. This is not allowed in auto mode.",
            kind.label()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mangles_what_udev_cannot_bear() {
        let auto = |text| mangle(text, Kind::Name, Mangling::Auto);
        assert_eq!(auto("vg-lv_0.1"), Ok("vg-lv_0.1".into()));
        assert_eq!(auto("a b"), Ok("a\\x20b".into()));
        assert_eq!(auto("a\\x20b"), Ok("a\\x20b".into()));
        assert!(auto("a\\x20b c").is_err());
        assert!(auto("a b\\x20c").is_err());
        assert_eq!(
            mangle("a\\x20", Kind::Name, Mangling::Hex),
            Ok("a\\x5cx20".into())
        );
        assert_eq!(auto("é"), Ok("\\xc3\\xa9".into()));
    }

    #[test]
    fn unmangles_back() {
        let auto = |text| unmangle(text, Kind::Name, Mangling::Auto);
        assert_eq!(auto("a\\x20b"), Ok("a b".into()));
        assert!(auto("a b").is_err());
        assert_eq!(
            unmangle("a b", Kind::Name, Mangling::None),
            Ok("a b".into())
        );
    }
}
