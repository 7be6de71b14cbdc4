//! What the next daemon must know of each device; [`crate::state_log`] keeps it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};
use thinmap_block::{BlockDevice, QueueLimits};
use thinmap_dm::{TableLine, TargetStatus, WhichTable};
use thinmap_exports::block_node::SavedNode;
use thinmap_targets::{changes_origin, keeps_old_data_of};
use thinmap_units::{DevNo, Sector};

use crate::devices::{Device, Saving};

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
    /// NBD clients were among them.
    #[serde(default)]
    pub nbd_clients: bool,
    /// The table that takes requests.
    pub live: Option<SavedTable>,
    /// The table that waits for a resume.
    pub inactive: Option<SavedTable>,
    /// What requests must look like, for who has it open while its table is not back.
    #[serde(with = "SavedLimits", default = "unknown_limits")]
    pub limits: QueueLimits,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "QueueLimits")]
struct SavedLimits {
    logical_block_size: u32,
    physical_block_size: u32,
    io_min: u32,
    io_opt: u32,
    discard_granularity: u32,
    #[serde(with = "SavedSector")]
    max_discard: Sector,
    #[serde(with = "SavedSector")]
    max_write_zeroes: Sector,
    write_cache: bool,
    read_only: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Sector")]
struct SavedSector(u64);

/// Of a device that a daemon has noted which did not know them.
fn unknown_limits() -> QueueLimits {
    QueueLimits::STACKING
}

/// A table as `dmsetup table` prints it, but for keys of ciphers: those are in no file. Keys of integrity's hashes are: they stand in
/// its table line, as in a kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SavedTable {
    /// Loaded read-only.
    pub read_only: bool,
    /// First sector, sectors, target, arguments.
    pub lines: Vec<(u64, u64, String, String)>,
    /// `st_dev` and inode of the plain files among its backings: a path may lead to another one by then.
    #[serde(default)]
    pub files: Vec<(u64, u64)>,
}

impl SavedTable {
    /// A table of a device as the next daemon takes it.
    pub fn of(device: &Device, which: WhichTable) -> Option<Self> {
        let facts = device.md.info();
        let facts = match which {
            WhichTable::Live => facts.live,
            WhichTable::Inactive => facts.inactive,
        };
        let read_only = facts?.read_only;
        let status = device.md.table_for_successor(which)?.into_iter();
        let line = |line: TargetStatus| {
            let (start, len) = (line.start.raw(), line.len.raw());
            (start, len, line.target.to_owned(), line.text)
        };
        let lines = status.map(line).collect();
        Some(Self {
            read_only,
            lines,
            files: device.md.backing_files(which),
        })
    }

    /// A path that leads to another file than the one that the table stood on.
    pub fn exchanged_file(&self) -> Option<&str> {
        let is_another = |path: &&str| {
            let found = std::fs::metadata(path).ok().filter(Metadata::is_file);
            found.is_some_and(|file| !self.files.contains(&(file.dev(), file.ino())))
        };
        // A daemon of before has noted none.
        let is_known = !self.files.is_empty();
        let mut paths = self.devices().filter(|word| word.starts_with('/'));
        is_known.then(|| paths.find(is_another)).flatten()
    }

    /// Length of a device with it.
    pub fn size(&self) -> Sector {
        let ends = self.lines.iter().map(|(start, len, ..)| start + len);
        Sector(ends.max().unwrap_or(0))
    }

    /// The lines, to load them.
    pub fn lines(&self) -> Vec<TableLine> {
        let line = |(start, len, target, params): &(u64, u64, String, String)| TableLine {
            start: Sector(*start),
            len: Sector(*len),
            target: target.clone(),
            params: params.clone(),
        };
        self.lines.iter().map(line).collect()
    }

    /// Origins whose old data its lines keep, as they name them.
    pub fn origins_kept(&self) -> impl Iterator<Item = &str> {
        let lines = self.lines.iter();
        lines.filter_map(|(.., target, params)| keeps_old_data_of(target, params))
    }

    /// Origins that its lines change, as they name them.
    pub fn origins_changed(&self) -> impl Iterator<Item = &str> {
        let lines = self.lines.iter();
        lines.filter_map(|(.., target, params)| changes_origin(target, params))
    }

    /// What could name a device among the arguments.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        let words = self.lines.iter().flat_map(|(.., params)| params.split(' '));
        words.filter(|word| word.starts_with('/') || word.parse::<DevNo>().is_ok())
    }

    /// Numbers of devices among the arguments.
    pub fn numbers(&self) -> impl Iterator<Item = DevNo> {
        self.devices().filter_map(|word| word.parse().ok())
    }
}

impl SavedDevice {
    /// A device as it is, or as what is under way will have made it.
    pub fn of(device: &Device, saving: Saving) -> Self {
        let facts = device.md.info();
        let SavedNode {
            minor: _,
            file,
            made_node,
        } = device.node.saved();
        let lost = device.lost.lock();
        let (lost_live, lost_inactive) = (lost.live.clone(), lost.inactive.clone());
        let (was_suspended, was_frozen) = (lost.suspended, lost.frozen);
        drop(lost);
        // A table on its way back, or refused on it, is suspended whatever the device was.
        let is_suspended = facts.suspended && lost_live.is_none();
        let limits = match (&facts.live, &*device.stand_in.lock()) {
            (None, Some(stand_in)) => stand_in.limits(),
            _ => device.md.limits(),
        };
        let mut saved = Self {
            name: facts.name.to_string(),
            uuid: facts.uuid.map(|uuid| uuid.to_string()),
            major: facts.dev_no.major,
            minor: facts.dev_no.minor,
            file,
            made_node,
            event_nr: facts.event_nr,
            suspended: is_suspended || was_suspended,
            frozen: device.md.is_frozen() || was_frozen,
            deferred_remove: device.deferred_remove(),
            nbd_clients: device.nbd_clients(),
            live: SavedTable::of(device, WhichTable::Live).or(lost_live),
            inactive: SavedTable::of(device, WhichTable::Inactive),
            limits,
        };
        match saving {
            Saving::AsIs => {}
            Saving::AfterResume => {
                saved.suspended = false;
                saved.live = saved.inactive.take().or(saved.live);
            }
            Saving::OnTheWayBack => saved.inactive = None,
        }
        saved.inactive = saved.inactive.or(lost_inactive);
        saved
    }

    /// Both tables.
    pub fn tables(&self) -> impl Iterator<Item = &SavedTable> {
        self.live.iter().chain(&self.inactive)
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
