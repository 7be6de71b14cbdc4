//! Which paths look different to a program that looks for device mapper.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::proc_files;
use crate::sysfs;
use crate::world::World;

/// What stands at a path in place of what the kernel has there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Face {
    /// Device mapper's control node.
    Control,
    /// A read-only file with these bytes.
    Text(Vec<u8>),
}

impl World {
    /// The face of an absolute path that stands before whatever the kernel has there.
    pub fn face(&self, path: &Path) -> Option<Face> {
        if self.is_control(path) {
            return Some(Face::Control);
        }
        let text = match path.as_os_str().as_bytes() {
            b"/proc/misc" => proc_files::misc(),
            b"/proc/devices" => proc_files::devices(&self.majors()),
            _ => None,
        };
        text.map(Face::Text)
    }

    /// The face of an absolute path at which the kernel has nothing.
    pub fn face_of_missing(&self, path: &Path) -> Option<Face> {
        if self.is_control(path) {
            return Some(Face::Control);
        }
        sysfs::attribute(self, path).map(Face::Text)
    }
}
