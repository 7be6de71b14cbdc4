//! What the next daemon must know of each device, in a file of its own: `state/MAJOR-MINOR.json` in the run directory.
//!
//! CRASH: a file is written beside and renamed, before a command is answered; so it shows the device before the command or after
//! it. Only the daemon of the same keeper uses it: with the keeper (at a reboot, or a clean end) all it described is gone.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thinmap_dm::{StatusKind, WhichTable};
use thinmap_exports::block_node::{SESSION_VERSION, SavedNode};
use thinmap_units::DevNo;

use crate::devices::Device;

/// One device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SavedDevice {
    /// Of what is written here and of the mount.
    pub version: u32,
    /// Whose daemon wrote it.
    pub keeper: String,
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
    /// A table is not noted, for it holds keys: those are in no file.
    #[serde(default)]
    pub held_keys: bool,
}

/// A table as `dmsetup table` prints it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SavedTable {
    /// Loaded read-only.
    pub read_only: bool,
    /// First sector, sectors, target, arguments.
    pub lines: Vec<(u64, u64, String, String)>,
}

impl SavedDevice {
    /// A device as it is, or as a resume under way will have made it.
    pub fn of(device: &Device, keeper: &str, ahead_of_resume: bool) -> Self {
        let facts = device.md.info();
        let SavedNode {
            minor: _,
            file,
            made_node,
        } = device.node.saved();
        let mut saved = Self {
            version: SESSION_VERSION,
            keeper: keeper.to_owned(),
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
                .and_then(|t| table(device, WhichTable::Live, t.read_only)),
            inactive: facts
                .inactive
                .and_then(|t| table(device, WhichTable::Inactive, t.read_only)),
            held_keys: false,
        };
        saved.held_keys = [WhichTable::Live, WhichTable::Inactive]
            .into_iter()
            .any(|which| holds_keys(device, which));
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

/// Whether a table line has a key among its words.
fn holds_keys(device: &Device, which: WhichTable) -> bool {
    let lines = device.md.table_status(StatusKind::Info, which, true);
    lines.is_some_and(|lines| lines.iter().any(|line| line.target == "crypt"))
}

fn table(device: &Device, which: WhichTable, read_only: bool) -> Option<SavedTable> {
    if holds_keys(device, which) {
        return None;
    }
    let status = device.md.table_status(StatusKind::Table, which, true)?;
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

/// The directory of the files.
pub struct StateDir {
    dir: PathBuf,
    keeper: String,
}

impl StateDir {
    /// Opens it (made when missing).
    pub fn open(run_dir: &Path, keeper: &str) -> io::Result<Self> {
        let dir = run_dir.join("state");
        std::fs::create_dir_all(&dir)?;
        Ok(Self {
            dir,
            keeper: keeper.to_owned(),
        })
    }

    /// Writes a device's file.
    pub fn save(&self, device: &Device) -> io::Result<()> {
        let ahead = device.saving.lock();
        let saved = SavedDevice::of(device, &self.keeper, *ahead);
        let path = self.path(device.dev_no());
        let new = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(&saved)?)?;
        std::fs::rename(&new, &path)
    }

    /// Removes a device's file; none is no error.
    pub fn remove(&self, dev_no: DevNo) {
        let path = self.path(dev_no);
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a removed device's state stays");
        }
    }

    /// What earlier daemons of this keeper have left; files of others are removed. An error when one of this keeper's cannot be
    /// understood.
    pub fn load(&self) -> io::Result<Vec<SavedDevice>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let error = |text: String| io::Error::other(format!("{}: {text}", path.display()));
            let text = std::fs::read(&path).map_err(|e| error(e.to_string()))?;
            let whose = serde_json::from_slice::<Whose>(&text).ok();
            let ours = whose.as_ref().is_some_and(|w| w.keeper == self.keeper);
            if !ours || path.extension().is_none_or(|e| e != "json") {
                let _ = std::fs::remove_file(&path);
                continue;
            }
            if whose.is_none_or(|w| w.version != SESSION_VERSION) {
                return Err(error(
                    "written by a version of thinmap that hands over in another way".to_owned(),
                ));
            }
            all.push(serde_json::from_slice(&text).map_err(|e| error(e.to_string()))?);
        }
        all.sort_by_key(SavedDevice::dev_no);
        Ok(all)
    }

    fn path(&self, dev_no: DevNo) -> PathBuf {
        self.dir
            .join(format!("{}-{}.json", dev_no.major, dev_no.minor))
    }
}

/// What every version can read.
#[derive(Deserialize)]
struct Whose {
    version: u32,
    keeper: String,
}
