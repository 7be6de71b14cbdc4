//! The file `state.log` in the run directory: each device's last state, for the next daemon of the same keeper.
//!
//! The first line says who wrote it, each other one what became of a device: its state, or that it is gone. The last line of a
//! device counts. A line is appended before a command is answered, in one write; one without an end was not answered for.
//! One file and no new ones: making a file costs a disk's file system more than a whole command. When most lines are outdated, the
//! file is written anew beside and renamed.
//!
//! Nothing here must outlive the kernel: with the keeper (at a reboot, or a clean end) all it described is gone.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thinmap_exports::block_node::SESSION_VERSION;
use thinmap_units::DevNo;

use crate::devices::Device;
use crate::state::SavedDevice;

/// The file.
pub struct StateLog {
    path: PathBuf,
    keeper: String,
    inner: Mutex<Inner>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    keeper: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Device(SavedDevice),
    Gone { major: u32, minor: u32 },
}

impl StateLog {
    /// Opens the file, and gives what earlier daemons of this keeper have left in it, by number; what another one left is
    /// removed. An error when a file of this keeper's cannot be understood.
    pub fn open(run_dir: &Path, keeper: &str) -> io::Result<(Self, Vec<SavedDevice>)> {
        let path = run_dir.join("state.log");
        let devices = read(&path, keeper)?;
        let mut last = HashMap::new();
        for device in &devices {
            last.insert(device.dev_no(), line(&Record::Device(device.clone()))?);
        }
        let inner = match Inner::write(&path, keeper, last.clone()) {
            // What is there is whole. Later changes cannot be noted, and say so.
            Err(error) if !last.is_empty() => {
                tracing::error!(path = %path.display(), %error, "cannot be written anew");
                Inner::found(&path, last)?
            }
            inner => inner?,
        };
        let log = Self {
            inner: Mutex::new(inner),
            path,
            keeper: keeper.to_owned(),
        };
        Ok((log, devices))
    }

    /// Notes a device's state.
    pub fn save(&self, device: &Device) -> io::Result<()> {
        let saving = device.saving.lock();
        let saved = SavedDevice::of(device, *saving);
        self.note(saved.dev_no(), Record::Device(saved), &|| device.removing())
    }

    #[cfg(test)]
    fn put(&self, saved: SavedDevice) -> io::Result<()> {
        self.note(saved.dev_no(), Record::Device(saved), &|| false)
    }

    /// Notes that a device is gone.
    pub fn remove(&self, dev_no: DevNo) {
        let DevNo { major, minor } = dev_no;
        if let Err(error) = self.note(dev_no, Record::Gone { major, minor }, &|| false) {
            tracing::warn!(path = %self.path.display(), device = %dev_no, %error, "a removed device's state stays");
        }
    }

    /// `is_over`: nothing is to be noted any more. Asked under the lock, so that no state follows the word that a device is gone.
    fn note(&self, dev_no: DevNo, record: Record, is_over: &dyn Fn() -> bool) -> io::Result<()> {
        let line = line(&record)?;
        let mut inner = self.inner.lock();
        if is_over() {
            return Ok(());
        }
        if inner.is_due() {
            let last = std::mem::take(&mut inner.last);
            match Inner::write(&self.path, &self.keeper, last.clone()) {
                Ok(anew) => *inner = anew,
                Err(error) => {
                    inner.last = last;
                    return Err(error);
                }
            }
        }
        inner.append(&line)?;
        let before = match record {
            Record::Device(_) => {
                inner.live += line.len();
                inner.last.insert(dev_no, line)
            }
            Record::Gone { .. } => inner.last.remove(&dev_no),
        };
        inner.live -= before.map_or(0, |line| line.len());
        Ok(())
    }
}

struct Inner {
    file: File,
    /// Bytes in the file, and in the lines that count.
    written: usize,
    live: usize,
    /// Each device's last line, with its end.
    last: HashMap<DevNo, Vec<u8>>,
    /// The last write did not end well: nothing may follow what is there.
    torn: bool,
}

impl Inner {
    /// A new file with these lines, in the old one's place.
    fn write(path: &Path, keeper: &str, last: HashMap<DevNo, Vec<u8>>) -> io::Result<Self> {
        let mut text = line(&Header {
            version: SESSION_VERSION,
            keeper: keeper.to_owned(),
        })?;
        last.values().for_each(|line| text.extend_from_slice(line));
        let new = path.with_extension("new");
        // Table lines may hold keys, of integrity's hashes.
        let _ = std::fs::remove_file(&new);
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        let renamed = file
            .write_all(&text)
            .and_then(|()| std::fs::rename(&new, path));
        if let Err(error) = renamed {
            let _ = std::fs::remove_file(&new);
            return Err(error);
        }
        Ok(Self {
            file,
            written: text.len(),
            live: text.len(),
            last,
            torn: false,
        })
    }

    /// The file that is there.
    fn found(path: &Path, last: HashMap<DevNo, Vec<u8>>) -> io::Result<Self> {
        Ok(Self {
            file: File::options().append(true).open(path)?,
            written: 0,
            live: last.values().map(Vec::len).sum(),
            last,
            torn: true,
        })
    }

    fn is_due(&self) -> bool {
        self.torn || self.written > ANEW_ABOVE.max(self.live.saturating_mul(4))
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        self.torn = true;
        self.file.write_all(line)?;
        self.torn = false;
        self.written += line.len();
        Ok(())
    }
}

fn line(what: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    Ok(line)
}

/// What the lines of this keeper come to.
fn read(path: &Path, keeper: &str) -> io::Result<Vec<SavedDevice>> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let error = |text: &str| io::Error::other(format!("{}: {text}", path.display()));
    let mut lines = text
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| line.ends_with(b"\n"));
    let header = lines.next().map(serde_json::from_slice::<Header>);
    let Some(Ok(header)) = header else {
        return Err(error("not the state of thinmap's devices"));
    };
    if header.keeper != keeper {
        return Ok(Vec::new());
    }
    if header.version != SESSION_VERSION {
        return Err(error(
            "written by a version of thinmap that hands over in another way",
        ));
    }
    let mut devices = BTreeMap::new();
    for line in lines {
        match serde_json::from_slice(line).map_err(|e| error(&e.to_string()))? {
            Record::Device(device) => devices.insert(device.dev_no(), device),
            Record::Gone { major, minor } => devices.remove(&DevNo::new(major, minor)),
        };
    }
    Ok(devices.into_values().collect())
}

/// Bytes: below this much the file is only appended to.
const ANEW_ABOVE: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use thinmap_block::QueueLimits;

    use super::*;

    fn saved(minor: u32, name: &str) -> SavedDevice {
        SavedDevice {
            name: name.to_owned(),
            uuid: None,
            major: 7,
            minor,
            file: 2,
            made_node: false,
            event_nr: 0,
            suspended: false,
            frozen: false,
            deferred_remove: false,
            live: None,
            inactive: None,
            limits: QueueLimits::STACKING,
        }
    }

    fn names(devices: &[SavedDevice]) -> Vec<(u32, &str)> {
        devices.iter().map(|d| (d.minor, d.name.as_str())).collect()
    }

    #[test]
    fn the_last_word_on_each_device_counts() {
        let run = tempfile::tempdir().expect("a directory");
        let (log, none) = StateLog::open(run.path(), "k").expect("open");
        assert_eq!(names(&none), []);
        for (minor, name) in [(2, "two"), (1, "one"), (3, "three"), (1, "renamed")] {
            log.put(saved(minor, name)).expect("put");
        }
        let mode = std::fs::metadata(run.path().join("state.log"))
            .expect("file")
            .mode();
        assert_eq!(mode & 0o777, 0o600, "others may not read it");
        log.remove(DevNo::new(7, 2));
        log.remove(DevNo::new(7, 9));
        drop(log);
        for _ in 0..2 {
            let (_, devices) = StateLog::open(run.path(), "k").expect("open");
            assert_eq!(names(&devices), [(1, "renamed"), (3, "three")]);
        }
        let (_, devices) = StateLog::open(run.path(), "another").expect("open");
        assert_eq!(names(&devices), []);
    }

    #[test]
    fn a_line_without_its_end_was_not_answered_for() {
        let run = tempfile::tempdir().expect("a directory");
        let (log, _) = StateLog::open(run.path(), "k").expect("open");
        log.put(saved(1, "one")).expect("put");
        let path = run.path().join("state.log");
        let before = std::fs::read(&path).expect("read");
        log.put(saved(1, "renamed")).expect("put");
        drop(log);
        let after = std::fs::read(&path).expect("read");
        for cut in before.len()..=after.len() {
            std::fs::write(&path, &after[..cut]).expect("write");
            let (_, devices) = StateLog::open(run.path(), "k").expect("open");
            let name = if cut == after.len() { "renamed" } else { "one" };
            assert_eq!(names(&devices), [(1, name)]);
        }
    }

    #[test]
    fn the_file_stays_small() {
        let run = tempfile::tempdir().expect("a directory");
        let (log, _) = StateLog::open(run.path(), "k").expect("open");
        for number in 0..20_000 {
            log.put(saved(number % 3, &format!("name{number}")))
                .expect("put");
        }
        let size = std::fs::metadata(run.path().join("state.log")).expect("size");
        assert!(size.len() < 2 << 20, "{} bytes", size.len());
        drop(log);
        let (_, devices) = StateLog::open(run.path(), "k").expect("open");
        let expected = [(0, "name19998"), (1, "name19999"), (2, "name19997")];
        assert_eq!(names(&devices), expected);
    }
}
