//! Whether two paths lead to one storage: one file by two names, or a file and the loop device that stands on it.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Loop devices on loop devices that are followed.
const DEPTH_MAX: usize = 8;

/// What a path stands for.
#[derive(PartialEq, Eq, Debug)]
enum Storage {
    /// A file: device and inode.
    File(u64, u64),
    /// A block device that is no loop device.
    Block(u64),
}

/// Whether what is written to one path changes what is read from the other. A path that leads nowhere is like no other.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    let storage = |path: &Path| storage_of(&std::fs::metadata(path).ok()?);
    storage(one).is_some_and(|one| storage(other) == Some(one))
}

fn storage_of(stat: &Metadata) -> Option<Storage> {
    let mut stat = stat.clone();
    for _ in 0..DEPTH_MAX {
        let kind = stat.file_type();
        if kind.is_file() {
            return Some(Storage::File(stat.dev(), stat.ino()));
        }
        if !kind.is_block_device() {
            return None;
        }
        match backing_file(stat.rdev()) {
            Some(file) => stat = file,
            None => return Some(Storage::Block(stat.rdev())),
        }
    }
    None
}

/// The file that a loop device stands on.
fn backing_file(device: u64) -> Option<Metadata> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let link = format!("/sys/dev/block/{major}:{minor}/loop/backing_file");
    let path = std::fs::read_to_string(link).ok()?;
    std::fs::metadata(path.trim_end_matches('\n')).ok()
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
