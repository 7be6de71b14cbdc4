//! What the next daemon must know of each device; [`crate::state_log`] keeps it.

use serde::{Deserialize, Serialize};
use thinmap_dm::WhichTable;
use thinmap_exports::block_node::SavedNode;
use thinmap_units::DevNo;

use crate::devices::Device;

/// One device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SavedDevice {
    /// Its name.
    pub name: String,
    /// Its uuid.
    pub uuid: Option<String>,
    /// Its number.
    pub major: u32,
    /// Its number, and that of its loop device.
    pub minor: u32,
    /// Its FUSE file.
    pub file: u64,
    /// Its node under `/dev` was made by the daemon.
    pub made_node: bool,
    /// Events up to then.
    pub event_nr: u32,
    /// Requests wait for a resume.
    pub suspended: bool,
    /// The file system on it is frozen.
    pub frozen: bool,
    /// Removal waits for the last user.
    pub deferred_remove: bool,
    /// The table that takes requests.
    pub live: Option<SavedTable>,
    /// The table that waits for a resume.
    pub inactive: Option<SavedTable>,
}

/// A table as `dmsetup table` prints it, but for keys of ciphers: those are in no file. Keys of integrity's hashes are: they stand in
/// its table line, as in a kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SavedTable {
    /// Loaded read-only.
    pub read_only: bool,
    /// First sector, sectors, target, arguments.
    pub lines: Vec<(u64, u64, String, String)>,
}

impl SavedDevice {
    /// A device as it is, or as a resume under way will have made it.
    pub fn of(device: &Device, ahead_of_resume: bool) -> Self {
        let facts = device.md.info();
        let SavedNode {
            minor: _,
            file,
            made_node,
        } = device.node.saved();
        let mut saved = Self {
            name: facts.name.to_string(),
            uuid: facts.uuid.map(|uuid| uuid.to_string()),
            major: facts.dev_no.major,
            minor: facts.dev_no.minor,
            file,
            made_node,
            event_nr: facts.event_nr,
            suspended: facts.suspended,
            frozen: device.md.is_frozen(),
            deferred_remove: device.deferred_remove(),
            live: facts
                .live
                .and_then(|t| table(device, WhichTable::Live, t.read_only))
                .or_else(|| device.lost.lock().clone()),
            inactive: facts
                .inactive
                .and_then(|t| table(device, WhichTable::Inactive, t.read_only)),
        };
        if ahead_of_resume {
            saved.suspended = false;
            saved.live = saved.inactive.take().or(saved.live);
        }
        saved
    }

    /// Its number.
    pub fn dev_no(&self) -> DevNo {
        DevNo::new(self.major, self.minor)
    }

    /// Its node.
    pub fn node(&self) -> SavedNode {
        SavedNode {
            minor: self.minor,
            file: self.file,
            made_node: self.made_node,
        }
    }
}

fn table(device: &Device, which: WhichTable, read_only: bool) -> Option<SavedTable> {
    let status = device.md.table_for_successor(which)?;
    let lines = status
        .into_iter()
        .map(|line| {
            (
                line.start.raw(),
                line.len.raw(),
                line.target.to_owned(),
                line.text,
            )
        })
        .collect();
    Some(SavedTable { read_only, lines })
}
