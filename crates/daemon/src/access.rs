//! Who beside the daemon's own user and root may do something: two groups, both empty unless the configuration names them.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// `[access]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessSection {
    /// A group (name or number) that may command the daemon. Whoever can load tables can reach every disk of the host: it is as
    /// good as root.
    pub administrators: Option<String>,
    /// A group that may read and write devices: nodes in the device directory and the NBD socket.
    pub devices: Option<String>,
}

/// The groups, found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// May command the daemon.
    pub administrators: Option<u32>,
    /// May use devices.
    pub devices: Option<u32>,
}

/// A group cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// There is no such group.
    #[error("configuration: [access] {key}: there is no group {group} in /etc/group")]
    NoSuchGroup {
        /// Which key names it.
        key: &'static str,
        /// The name.
        group: String,
    },
    /// A socket or directory cannot be given to the group.
    #[error("{path}: cannot be given to group {group}: {source}", path = path.display())]
    NotGiven {
        /// What.
        path: std::path::PathBuf,
        /// The group's number.
        group: u32,
        /// Why.
        source: std::io::Error,
    },
}

impl AccessSection {
    /// Finds the groups in /etc/group.
    ///
    /// # Errors
    /// A name that is not there.
    pub fn resolve(&self) -> Result<Access, AccessError> {
        let known = std::fs::read_to_string("/etc/group").unwrap_or_default();
        let find = |key, group: &Option<String>| match group {
            None => Ok(None),
            Some(group) => {
                number_of(group, &known)
                    .map(Some)
                    .ok_or_else(|| AccessError::NoSuchGroup {
                        key,
                        group: group.clone(),
                    })
            }
        };
        Ok(Access {
            administrators: find("administrators", &self.administrators)?,
            devices: find("devices", &self.devices)?,
        })
    }
}

fn number_of(group: &str, known: &str) -> Option<u32> {
    if let Ok(number) = group.parse() {
        return Some(number);
    }
    known.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(group)).then(|| fields.nth(1)?.parse().ok())?
    })
}

impl Access {
    /// Lets the groups reach the sockets, and nobody else any more. With a group the run directory can be passed through by everybody,
    /// and listed by nobody else: what is in it has modes of its own.
    ///
    /// # Errors
    /// Owner or mode cannot be changed.
    pub fn grant_sockets(&self, run_dir: &Path) -> Result<(), AccessError> {
        for (name, group, mode) in [
            ("control.sock", self.administrators, 0o660),
            // For who waits for the end of a daemon.
            ("control.lock", self.administrators, 0o640),
            ("nbd.sock", self.devices, 0o660),
        ] {
            let path = run_dir.join(name);
            if !path.exists() {
                continue;
            }
            match group {
                Some(group) => give(&path, group, mode)?,
                None => give(&path, own_group(), 0o600)?,
            }
        }
        let group = self.administrators.or(self.devices);
        let failed = |source| AccessError::NotGiven {
            path: run_dir.to_owned(),
            group: group.unwrap_or(own_group()),
            source,
        };
        let mode = std::fs::metadata(run_dir).map_err(failed)?.mode() & 0o7777;
        let wanted = match group {
            Some(_) => PASSABLE,
            // A daemon before had groups. Another mode is an administrator's.
            None if mode == PASSABLE => 0o700,
            None => return Ok(()),
        };
        let wanted = std::fs::Permissions::from_mode(wanted);
        std::fs::set_permissions(run_dir, wanted).map_err(failed)
    }
}

/// Of a run directory with something for a group in it.
const PASSABLE: u32 = 0o711;

/// The daemon's own group, which what is given to no other one belongs to.
pub fn own_group() -> u32 {
    rustix::process::getegid().as_raw()
}

/// Gives a path of ours to a group. Never follows a link.
///
/// # Errors
/// Owner or mode cannot be changed.
pub fn give(path: &Path, group: u32, mode: u32) -> Result<(), AccessError> {
    let failed = |errno: Errno| AccessError::NotGiven {
        path: path.to_owned(),
        group,
        source: errno.into(),
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let what = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&what).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Err(failed(Errno::LOOP));
    }
    let owner = Gid::from_raw(group);
    rustix::fs::chownat(&what, "", None, Some(owner), AtFlags::EMPTY_PATH).map_err(failed)?;
    // Sockets and nodes need not be opened for that.
    let itself = format!("/proc/self/fd/{}", what.as_raw_fd());
    rustix::fs::chmod(itself, Mode::from_raw_mode(mode)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name_and_number() {
        let known = "root:x:0:\ndisk:x:6:backup,me\nbroken\nodd:x:many:\n";
        assert_eq!(number_of("disk", known), Some(6));
        assert_eq!(number_of("1234", known), Some(1234));
        for absent in ["backup", "odd", "broken", "", "dis"] {
            assert_eq!(number_of(absent, known), None, "{absent}");
        }
    }

    #[test]
    fn a_group_that_is_not_there_is_named() {
        let section = AccessSection {
            devices: Some("no-such-group-anywhere".to_owned()),
            ..AccessSection::default()
        };
        let error = section.resolve().expect_err("no group");
        assert!(error.to_string().contains("no-such-group-anywhere"));
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let [file, link] = ["file", "link"].map(|name| dir.path().join(name));
        std::fs::write(&file, "").expect("a file");
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        let mode = || std::fs::metadata(&file).expect("a file").mode() & 0o777;
        let before = mode();
        give(&link, own_group(), 0o604).expect_err("a link");
        assert_eq!(mode(), before);
        give(&file, own_group(), 0o604).expect("ours");
        assert_eq!(mode(), 0o604);
    }
}
