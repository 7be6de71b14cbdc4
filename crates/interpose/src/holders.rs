//! `/sys/block/dm-N/holders`: the mapped devices that stand on one.
//!
//! lvm2 looks there, by a name that only the kernel's mapped devices have, before it suspends what pvmove has moved.

use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::os::fd::OwnedFd;
use thinmap_control::{Client, DeviceSelector, Request, Response};
use thinmap_units::DevNo;

use crate::world::World;

const BEGIN: &str = "/sys/block/dm-";
const END: &str = "/holders";

/// Whether this is such a path, of whatever device.
pub fn concerns(path: &Path) -> bool {
    minor_of(path).is_some()
}

/// Names of the directory's entries; `None` when it is no such path or no such device.
pub fn holders(world: &World, path: &Path) -> Option<Vec<String>> {
    let minor = minor_of(path)?;
    let mut client = world.connect().ok()?;
    let all = Request::ListDevices {
        name_prefix: String::new(),
        uuid_prefix: String::new(),
        with_uuids: false,
    };
    let Ok(Response::Devices(devices)) = client.run(&all) else {
        return None;
    };
    let below = devices.iter().find(|device| device.dev.minor == minor)?.dev;
    let above = devices.iter().map(|device| device.dev);
    let above = above.filter(|dev| stands_on(&mut client, *dev, below));
    Some(above.map(|dev| format!("dm-{}", dev.minor)).collect())
}

fn minor_of(path: &Path) -> Option<u32> {
    let path = path.to_str()?;
    let minor = path.strip_prefix(BEGIN)?.strip_suffix(END)?;
    minor.parse().ok()
}

/// By its live or its inactive table, as in the kernel.
fn stands_on(client: &mut Client, above: DevNo, below: DevNo) -> bool {
    [false, true].into_iter().any(|inactive| {
        let request = Request::TableDeps {
            device: DeviceSelector::Dev(above),
            inactive,
        };
        match client.run(&request) {
            Ok(Response::Deps(deps)) => {
                deps.devices.is_some_and(|devices| devices.contains(&below))
            }
            _ => false,
        }
    })
}

/// A directory that is nowhere, with empty files of these names: the root of a file system of its own, which goes at the last close.
///
/// EPERM for those who may not mount.
pub fn directory(names: &[String]) -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let mount = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    for name in names {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&mount, name.as_str(), flags, Mode::RUSR)?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&mount, ".", flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_holders_of_a_mapped_device() {
        let minor = |path: &str| minor_of(Path::new(path));
        assert_eq!(minor("/sys/block/dm-138/holders"), Some(138));
        for other in [
            "/sys/block/loop138/holders",
            "/sys/block/dm-138/slaves",
            "/sys/block/dm-/holders",
            "/sys/block/dm-1x/holders",
            "/sys/block/dm-1/holders/dm-2",
        ] {
            assert_eq!(minor(other), None, "{other}");
        }
    }

    #[test]
    fn a_directory_lists_its_names() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP a_directory_lists_its_names: needs root");
            return;
        }
        let names = ["dm-1".to_owned(), "dm-20".to_owned()];
        let mut directory = rustix::fs::Dir::new(directory(&names).unwrap()).unwrap();
        let mut found = Vec::new();
        while let Some(entry) = directory.read() {
            found.push(entry.unwrap().file_name().to_str().unwrap().to_owned());
        }
        found.retain(|name| name != "." && name != "..");
        found.sort();
        assert_eq!(found, names);
    }
}
