//! Device numbers, `major:minor`.

/// A block device's number. Ordered by major, then minor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct DevNo {
    /// The driver's number.
    pub major: u32,
    /// The device's number within its driver.
    pub minor: u32,
}

/// The text is not `MAJOR:MINOR`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not MAJOR:MINOR")]
pub struct ParseDevNoError(String);

impl DevNo {
    /// A device number from its two parts.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// From the C library's `dev_t` (as in `st_rdev`).
    pub const fn from_dev_t(dev: u64) -> Self {
        Self {
            major: (((dev >> 8) & 0xfff) | ((dev >> 32) & 0xffff_f000)) as u32,
            minor: ((dev & 0xff) | ((dev >> 12) & 0xffff_ff00)) as u32,
        }
    }

    /// To the C library's `dev_t`.
    pub const fn to_dev_t(self) -> u64 {
        let (major, minor) = (self.major as u64, self.minor as u64);
        ((major & 0xfff) << 8)
            | ((major & 0xffff_f000) << 32)
            | (minor & 0xff)
            | ((minor & 0xffff_ff00) << 12)
    }

    /// From the kernel's `new_encode_dev` form, as `struct dm_ioctl` carries it.
    pub const fn from_kernel(dev: u64) -> Self {
        Self {
            major: ((dev & 0xfff00) >> 8) as u32,
            minor: ((dev & 0xff) | ((dev >> 12) & 0xfff00)) as u32,
        }
    }

    /// To the kernel's `new_encode_dev` form.
    pub const fn to_kernel(self) -> u64 {
        let (major, minor) = (self.major as u64, self.minor as u64);
        (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
    }
}

impl std::fmt::Display for DevNo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl std::str::FromStr for DevNo {
    type Err = ParseDevNoError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseDevNoError(text.to_owned());
        let (major, minor) = text.split_once(':').ok_or_else(wrong)?;
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(major) || !digits(minor) {
            return Err(wrong());
        }
        Ok(Self {
            major: major.parse().map_err(|_| wrong())?,
            minor: minor.parse().map_err(|_| wrong())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_round_trip() {
        for dev in [
            DevNo::new(7, 2015),
            DevNo::new(253, 0),
            DevNo::new(259, 70_000),
        ] {
            assert_eq!(DevNo::from_dev_t(dev.to_dev_t()), dev);
            assert_eq!(DevNo::from_kernel(dev.to_kernel()), dev);
            assert_eq!(dev.to_string().parse(), Ok(dev));
        }
    }

    #[test]
    fn text_must_be_two_numbers() {
        for wrong in ["", "7", "7:", ":1", "7:1:2", "+7:1", "a:b"] {
            assert!(wrong.parse::<DevNo>().is_err(), "{wrong}");
        }
    }
}
