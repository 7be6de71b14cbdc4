//! Kernel names of block devices, for `-o blkdevname` and its like.

use std::fs;

use thinmap_control::Request;
use thinmap_units::DevNo;

use super::names::{self, Kind};
use super::task::Subject;
use super::{Dmsetup, node};

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
    /// The kernel's name of a block device. A mapped device that has no block device of its number (it is a FUSE file or
    /// NBD alone) is called `dm-MINOR`, as the kernel would call it.
    pub(super) fn block_name(&mut self, dev: DevNo) -> Option<String> {
        let devices = self.all_devices().ok()?;
        let Some(mapped) = devices.into_iter().find(|device| device.dev == dev) else {
            return kernel_name(dev);
        };
        let node = self.paths.dev_dir.join(mapped.name.as_str());
        let is_block_device = node::device_number(&node) == Some(dev);
        is_block_device
            .then(|| kernel_name(dev))
            .flatten()
            .or_else(|| Some(format!("dm-{}", dev.minor)))
    }

    /// The name that `kind` asks for; `None` when only the number is left to show.
    pub(super) fn device_name(&mut self, dev: DevNo, kind: DevNameKind) -> Option<String> {
        // Before a table is loaded there is no block device, and only the number is shown.
        if kind != DevNameKind::Number && self.is_without_table(dev) {
            return None;
        }
        match kind {
            DevNameKind::Number => None,
            DevNameKind::BlockDevice => self.block_name(dev),
            DevNameKind::Mapped => self.mapped_name(dev).or_else(|| kernel_name(dev)),
        }
    }

    fn is_without_table(&mut self, dev: DevNo) -> bool {
        let subject = Subject {
            dev: Some(dev),
            ..Subject::default()
        };
        let asked = self.device_task("info", &subject, |device| Request::Status {
            device,
            inactive: false,
        });
        asked.is_ok_and(|info| info.live.is_none() && info.inactive.is_none())
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
