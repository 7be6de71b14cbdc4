//! Kernel names of block devices, for `-o blkdevname` and its like.

use std::fs;

use thinmap_units::DevNo;

use super::Dmsetup;
use super::names::{self, Kind};

/// How `ls` and `deps` show a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DevNameKind {
    /// `(major:minor)`.
    #[default]
    Number,
    /// The kernel's name: `dm-0`, `sda`.
    BlockDevice,
    /// The mapped device's name where there is one, the kernel's otherwise.
    Mapped,
}

impl DevNameKind {
    /// Reads a comma-separated `-o`; the last word counts. Words may be cut short. An error is the line to print.
    pub fn parse(options: &str) -> Result<Self, String> {
        let mut kind = Self::Number;
        let mut rest = options;
        while !rest.is_empty() {
            let (word, tail) = rest.split_once(',').unwrap_or((rest, ""));
            kind = if "devno".starts_with(word) {
                Self::Number
            } else if "blkdevname".starts_with(word) {
                Self::BlockDevice
            } else if "devname".starts_with(word) {
                Self::Mapped
            } else {
                return Err(format!("Option not recognised: {rest}."));
            };
            rest = tail;
        }
        Ok(kind)
    }
}

impl Dmsetup<'_> {
    /// The kernel's name of a block device. Mapped devices have no kernel device of their number; they are called
    /// `dm-MINOR`, which is the name that the kernel would give.
    pub(super) fn block_name(&mut self, dev: DevNo) -> Option<String> {
        if self.mapped_name(dev).is_some() {
            return Some(format!("dm-{}", dev.minor));
        }
        kernel_name(dev)
    }

    /// The name that `kind` asks for; `None` when only the number is left to show.
    pub(super) fn device_name(&mut self, dev: DevNo, kind: DevNameKind) -> Option<String> {
        match kind {
            DevNameKind::Number => None,
            DevNameKind::BlockDevice => self.block_name(dev),
            DevNameKind::Mapped => self.mapped_name(dev).or_else(|| kernel_name(dev)),
        }
    }

    /// A mapped device's name by number.
    pub(super) fn mapped_name(&mut self, dev: DevNo) -> Option<String> {
        let devices = self.all_devices().ok()?;
        let found = devices.into_iter().find(|device| device.dev == dev)?;
        let name = found.name.as_str();
        Some(names::unmangle(name, Kind::Name, self.mangling).unwrap_or_else(|_| name.to_owned()))
    }
}

fn kernel_name(dev: DevNo) -> Option<String> {
    let link = fs::read_link(format!("/sys/dev/block/{dev}")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}
