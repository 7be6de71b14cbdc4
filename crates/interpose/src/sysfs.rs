//! The attributes that a mapped device has in sysfs: `dm/name`, `dm/uuid`, `dm/suspended`.
//!
//! Our devices are loop or ublk devices to the kernel, which has no `dm/` for them; libdevmapper and lvm2 read them by
//! number (`/sys/dev/block/7:3/dm/name`) or by kernel name (`/sys/block/loop3/dm/name`).

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use thinmap_control::{DeviceInfo, DeviceSelector, Request, Response};
use thinmap_units::DevNo;

use crate::world::World;

const SYSFS: &[u8] = b"/sys/";

/// The text of the attribute at `path`; `None` when it is no such path or no such device.
pub fn attribute(world: &World, path: &Path) -> Option<Vec<u8>> {
    // Every path at which the kernel has nothing comes by here.
    if !path.as_os_str().as_bytes().starts_with(SYSFS) {
        return None;
    }
    let (device, name) = split(path.to_str()?)?;
    let info = info_of(world, number_of(device)?)?;
    let text = match name {
        "name" => info.name.to_string(),
        "uuid" => info.uuid.map(|uuid| uuid.to_string()).unwrap_or_default(),
        "suspended" => u32::from(info.suspended).to_string(),
        _ => return None,
    };
    Some(format!("{text}\n").into_bytes())
}

/// The device's directory and the attribute's name.
fn split(path: &str) -> Option<(&str, &str)> {
    let (device, name) = path.rsplit_once("/dm/")?;
    (!name.contains('/')).then_some((device, name))
}

fn number_of(device: &str) -> Option<DevNo> {
    let text = match device.strip_prefix("/sys/dev/block/") {
        Some(number) => number.to_owned(),
        None => std::fs::read_to_string(format!("{device}/dev")).ok()?,
    };
    let (major, minor) = text.trim_end().split_once(':')?;
    Some(DevNo::new(major.parse().ok()?, minor.parse().ok()?))
}

fn info_of(world: &World, dev: DevNo) -> Option<DeviceInfo> {
    let request = Request::Status {
        device: DeviceSelector::Dev(dev),
        inactive: false,
    };
    match world.connect().ok()?.run(&request) {
        Ok(Response::Device(info)) => Some(info),
        _ => None,
    }
}
