//! Who beside the daemon's own user and root may do something: two groups, both empty unless the configuration names them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

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
    /// Lets the groups reach the sockets. The run directory can be passed through by everybody then, and listed by nobody else:
    /// what is in it has modes of its own.
    ///
    /// # Errors
    /// Owner or mode cannot be changed.
    pub fn grant_sockets(&self, run_dir: &Path) -> Result<(), AccessError> {
        if *self == Self::default() {
            return Ok(());
        }
        for (socket, group) in [
            ("control.sock", self.administrators),
            ("nbd.sock", self.devices),
        ] {
            let path = run_dir.join(socket);
            if let Some(group) = group
                && path.exists()
            {
                give(&path, group, 0o660)?;
            }
        }
        let group = self.administrators.or(self.devices).unwrap_or_default();
        let passable = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(run_dir, passable).map_err(|source| AccessError::NotGiven {
            path: run_dir.to_owned(),
            group,
            source,
        })
    }
}

/// Gives a path of ours to a group. Never follows a link.
///
/// # Errors
/// Owner or mode cannot be changed.
pub fn give(path: &Path, group: u32, mode: u32) -> Result<(), AccessError> {
    let failed = |source| AccessError::NotGiven {
        path: path.to_owned(),
        group,
        source,
    };
    std::os::unix::fs::lchown(path, None, Some(group)).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)
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
}
