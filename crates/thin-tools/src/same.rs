//! Whether two paths lead to one storage: one file by two names, or a file and the loop device that stands on it.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use thinmap_units::DevNo;

use crate::loops::{DEPTH_MAX, backing_path};
use crate::mounts::Mounts;

/// What a path stands for.
#[derive(PartialEq, Eq, Debug)]
enum Storage {
    /// A file: device and inode.
    File(u64, u64),
    /// A block device that is no loop device.
    Block(u64),
    /// The file of a server that is not asked, by the kernel's name for it.
    Served(PathBuf),
}

/// Whether what is written to one path changes what is read from the other. A path that leads nowhere is like no other.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    let (Ok(one), Ok(other)) = (std::fs::metadata(one), std::fs::metadata(other)) else {
        return false;
    };
    // A file on a file system of neither is not the other path's, so its server need not be asked.
    let answered = [one.dev(), other.dev()];
    let storage = storage_of(one, &answered);
    storage.is_some() && storage == storage_of(other, &answered)
}

fn storage_of(stat: Metadata, answered: &[u64]) -> Option<Storage> {
    let mounts = Mounts::read();
    let mut stat = stat;
    for _ in 0..DEPTH_MAX {
        let kind = stat.file_type();
        if kind.is_file() {
            return Some(Storage::File(stat.dev(), stat.ino()));
        }
        if !kind.is_block_device() {
            return None;
        }
        let Some(path) = backing_path(DevNo::from_dev_t(stat.rdev())) else {
            return Some(Storage::Block(stat.rdev()));
        };
        if mounts.is_served(&path, answered) {
            return Some(Storage::Served(path));
        }
        match std::fs::metadata(&path) {
            Ok(below) => stat = below,
            Err(_) => return Some(Storage::Block(stat.rdev())),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_file_are_the_same_and_what_is_no_storage_is_like_nothing() {
        let directory = tempfile::tempdir().expect("directory");
        let [file, link, soft, other, gone] =
            ["file", "link", "soft", "other", "gone"].map(|name| directory.path().join(name));
        std::fs::write(&file, "x").expect("file");
        std::fs::write(&other, "x").expect("other");
        std::fs::hard_link(&file, &link).expect("link");
        std::os::unix::fs::symlink(&file, &soft).expect("symlink");
        assert!(is_same(&file, &file) && is_same(&file, &link) && is_same(&soft, &link));
        assert!(!is_same(&file, &other) && !is_same(&gone, &gone));
        let null = Path::new("/dev/null");
        assert!(!is_same(null, null));
    }
}
