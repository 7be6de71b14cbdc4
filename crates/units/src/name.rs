//! Names and uuids of mapped devices, checked once where they enter.

/// Bytes in a mapped device's name without the closing NUL (`DM_NAME_LEN` is 128).
pub const NAME_BYTES_MAX: usize = 127;
/// Bytes in a mapped device's uuid without the closing NUL (`DM_UUID_LEN` is 129).
pub const UUID_BYTES_MAX: usize = 128;

/// Why a name or uuid is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    /// Nothing given.
    #[error("a device name must not be empty")]
    Empty,
    /// More bytes than the kernel's field holds.
    #[error("'{text}' is too long: {bytes} bytes, at most {max}")]
    TooLong {
        text: String,
        bytes: usize,
        max: usize,
    },
    /// The kernel refuses `/` in names, since a name becomes a file in /dev/mapper.
    #[error("device name '{0}' must not contain '/'")]
    Slash(String),
}

/// A mapped device's name: 1 to 127 bytes, no `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DmName(String);

impl DmName {
    /// Checks and takes a name.
    pub fn new(name: &str) -> Result<Self, NameError> {
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        too_long(name, NAME_BYTES_MAX)?;
        if name.contains('/') {
            return Err(NameError::Slash(name.to_owned()));
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A mapped device's uuid: 1 to 128 bytes. A device without one holds `None`, never an empty uuid.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DmUuid(String);

impl DmUuid {
    /// Checks and takes a uuid.
    pub fn new(uuid: &str) -> Result<Self, NameError> {
        if uuid.is_empty() {
            return Err(NameError::Empty);
        }
        too_long(uuid, UUID_BYTES_MAX)?;
        Ok(Self(uuid.to_owned()))
    }

    /// The uuid.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn too_long(text: &str, max: usize) -> Result<(), NameError> {
    if text.len() > max {
        return Err(NameError::TooLong {
            text: text.to_owned(),
            bytes: text.len(),
            max,
        });
    }
    Ok(())
}

impl std::fmt::Display for DmName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

impl std::fmt::Display for DmUuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_limits_are_the_kernels() {
        assert!(DmName::new(&"x".repeat(127)).is_ok());
        assert!(matches!(
            DmName::new(&"x".repeat(128)),
            Err(NameError::TooLong { .. })
        ));
        assert_eq!(DmName::new(""), Err(NameError::Empty));
        assert!(matches!(DmName::new("a/b"), Err(NameError::Slash(_))));
        assert!(DmUuid::new(&"x".repeat(128)).is_ok());
        assert!(DmUuid::new(&"x".repeat(129)).is_err());
    }
}
