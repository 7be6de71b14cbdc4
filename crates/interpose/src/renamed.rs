//! Nodes that libdevmapper would take away right after a rename.
//!
//! The kernel moves no nodes, so without udev libdevmapper does: it removes what stands at the new name, for it can only be stale,
//! and renames the old node to it. Our daemon has moved the node before the ioctl returned, so the first step would remove the
//! live node and the second find none to rename. The first removal of such a node is therefore left out.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, TryLockError};

use thinmap_control::Request;
use thinmap_control::ioctl::Command;

/// The names that devices were given through this world, until their nodes' first removal.
#[derive(Debug)]
pub struct Renamed {
    dev_dir: PathBuf,
    names: Mutex<Vec<OsString>>,
    /// Whether a name was ever noted: programs that never rename a device need not look.
    has_names: AtomicBool,
}

/// More than a program renames before it moves the nodes; older ones are forgotten.
const NAMES_MAX: usize = 256;

impl Renamed {
    pub fn new(dev_dir: &Path) -> Self {
        Self {
            dev_dir: dev_dir.to_owned(),
            names: Mutex::default(),
            has_names: AtomicBool::new(false),
        }
    }

    /// Notes the new name if `buffer` was a successful request for one.
    pub fn note(&self, nr: u32, buffer: &[u8]) {
        if nr != Command::DevRename.nr() {
            return;
        }
        if let Ok(Request::Rename { new_name, .. }) = Request::decode(Command::DevRename, buffer) {
            let name = OsString::from(new_name.to_string());
            self.with_names(|names| {
                names.retain(|known| *known != name);
                if names.len() == NAMES_MAX {
                    names.remove(0);
                }
                names.push(name);
            });
            self.has_names.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the path is in the device directory.
    pub fn concerns(&self, path: &Path) -> bool {
        path.parent() == Some(&self.dev_dir)
    }

    /// Whether the removal of `path` is the one to leave out; asked once for each removal.
    pub fn keeps(&self, path: &Path) -> bool {
        if !self.has_names.load(Ordering::Relaxed) {
            return false;
        }
        let Some(name) = path.file_name() else {
            return false;
        };
        if !self.concerns(path) {
            return false;
        }
        let mut known = false;
        self.with_names(|names| {
            let before = names.len();
            names.retain(|noted| noted != name);
            known = names.len() < before;
        });
        known && std::fs::symlink_metadata(path).is_ok()
    }

    /// Never waits: a fork may have caught another thread with the lock, and it will not give it back here.
    fn with_names(&self, work: impl FnOnce(&mut Vec<OsString>)) {
        match self.names.try_lock() {
            Ok(mut names) => work(&mut names),
            Err(TryLockError::Poisoned(names)) => work(&mut names.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thinmap_units::DmName;

    #[test]
    fn one_removal_is_left_out_after_a_rename() {
        let dir = tempfile::tempdir().expect("directory");
        let renamed = Renamed::new(dir.path());
        let node = dir.path().join("new");
        std::fs::write(&node, "").expect("node");
        assert!(!renamed.keeps(&node));
        let name = |text| DmName::new(text).expect("name");
        let request = Request::Rename {
            device: name("old"),
            new_name: name("new"),
        };
        let buffer = request.encode(0);
        renamed.note(Command::DevRename.nr(), &buffer);
        assert!(!renamed.keeps(Path::new("/elsewhere/new")));
        assert!(renamed.keeps(&node));
        assert!(!renamed.keeps(&node));
        // Where nothing stands there is nothing to keep.
        renamed.note(Command::DevRename.nr(), &buffer);
        std::fs::remove_file(&node).expect("removed");
        assert!(!renamed.keeps(&node));
    }
}
