//! The file `state.log` in the run directory: each device's last state, for the next daemon of the same keeper.
//!
//! The first line says who wrote it, each other one what became of a device: its state, or that it is gone. The last line of a
//! device counts. A line is appended before a command is answered, in one write; one without an end was not answered for.
//! One file and no new ones: making a file costs a disk's file system more than a whole command. When most lines are outdated, the
//! file is written anew beside and renamed; so it is when somebody has removed it. The keeper holds it, for a daemon that does not find it.
//!
//! Nothing here must outlive the kernel: with the keeper (at a reboot, or a clean end) all it described is gone.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thinmap_exports::block_node::{DescriptorKeeper, SESSION_VERSION};
use thinmap_units::DevNo;

use crate::devices::Device;
use crate::state::SavedDevice;

/// The file.
pub struct StateLog {
    path: PathBuf,
    keeper: String,
    holder: Option<Arc<dyn DescriptorKeeper>>,
    inner: Mutex<Inner>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    keeper: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "one at a time, written at once")]
enum Record {
    Device(SavedDevice),
    Gone { major: u32, minor: u32 },
}

/// What a daemon has from the one before it.
pub struct Before {
    /// The last daemon's file, which may have lost its name.
    pub file: Option<OwnedFd>,
    /// There was one, and its devices are in use: they must not go because nothing can be written.
    pub is_successor: bool,
}

impl StateLog {
    /// Opens the file, and gives what earlier daemons of this keeper have left in it, by number; what another one left is
    /// removed. `holder` gets each new file. An error when a file of this keeper's cannot be understood.
    pub fn open(
        run_dir: &Path,
        keeper: &str,
        holder: Option<Arc<dyn DescriptorKeeper>>,
        before: Before,
    ) -> io::Result<(Self, Vec<SavedDevice>)> {
        let path = run_dir.join("state.log");
        let devices = read_either(&path, before.file, keeper)?;
        let mut last = HashMap::new();
        for device in &devices {
            last.insert(device.dev_no(), line(&Record::Device(device.clone()))?);
        }
        let log = Self {
            inner: Mutex::new(Inner {
                live: last.values().map(Vec::len).sum(),
                last,
                ..Inner::default()
            }),
            path,
            keeper: keeper.to_owned(),
            holder,
        };
        match log.write_anew(&mut log.inner.lock()) {
            Err(error) if before.is_successor => {
                let path = log.path.display();
                tracing::error!(%path, %error, "cannot be written: devices cannot be changed until it can");
            }
            written => written?,
        }
        Ok((log, devices))
    }

    /// Notes a device's state, unless its removal has begun.
    pub fn save(&self, device: &Device) -> io::Result<()> {
        let saving = device.saving.lock();
        let saved = SavedDevice::of(device, *saving);
        self.note(saved.dev_no(), Record::Device(saved), &|| device.removing())
    }

    #[cfg(test)]
    fn put(&self, saved: SavedDevice) -> io::Result<()> {
        self.note(saved.dev_no(), Record::Device(saved), &|| false)
    }

    /// Notes that a device is gone. If that cannot be written, the next that can leaves it out.
    pub fn remove(&self, dev_no: DevNo) {
        let DevNo { major, minor } = dev_no;
        if let Err(error) = self.note(dev_no, Record::Gone { major, minor }, &|| false) {
            tracing::warn!(path = %self.path.display(), device = %dev_no, %error, "a removed device's state stays for now");
        }
    }

    /// `is_over`: nothing is to be noted any more. Asked under the lock, so that no state follows the word that a device is gone.
    fn note(&self, dev_no: DevNo, record: Record, is_over: &dyn Fn() -> bool) -> io::Result<()> {
        let line = line(&record)?;
        let mut inner = self.inner.lock();
        if is_over() {
            return Ok(());
        }
        let is_device = matches!(record, Record::Device(_));
        if !is_device {
            // Whatever becomes of the line: nothing may bring the device back.
            let before = inner.last.remove(&dev_no);
            inner.live -= before.map_or(0, |line| line.len());
        }
        if inner.is_due(&self.path) {
            self.write_anew(&mut inner)?;
        }
        inner.append(&line)?;
        if is_device {
            inner.live += line.len();
            let before = inner.last.insert(dev_no, line);
            inner.live -= before.map_or(0, |line| line.len());
        }
        Ok(())
    }

    /// A new file with each device's last line, in the old one's place.
    fn write_anew(&self, inner: &mut Inner) -> io::Result<()> {
        inner.file = None;
        let mut text = line(&Header {
            version: SESSION_VERSION,
            keeper: self.keeper.clone(),
        })?;
        inner
            .last
            .values()
            .for_each(|line| text.extend_from_slice(line));
        let new = self.path.with_extension("new");
        let _ = std::fs::remove_file(&new);
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        // Table lines may hold keys, of integrity's hashes.
        let mut file = options.mode(0o600).open(&new)?;
        let renamed = file
            .write_all(&text)
            .and_then(|()| std::fs::rename(&new, &self.path));
        if let Err(error) = renamed {
            let _ = std::fs::remove_file(&new);
            return Err(error);
        }
        if let Some(holder) = &self.holder
            && let Err(error) = holder.keep(HELD_AS, file.as_fd())
        {
            tracing::debug!(%error, "the keeper was not given the state's file");
        }
        inner.file = Some(file);
        inner.written = text.len();
        inner.live = text.len();
        Ok(())
    }
}

#[derive(Default)]
struct Inner {
    /// `None` when nothing may follow what is there: it could not be written, or the last write did not end well.
    file: Option<File>,
    /// Bytes in the file, and in the lines that count.
    written: usize,
    live: usize,
    /// Each device's last line, with its end.
    last: HashMap<DevNo, Vec<u8>>,
}

impl Inner {
    /// Whether the file must be written anew before anything is added: also when somebody has removed it, as what is added to it then
    /// is read by nobody.
    fn is_due(&self, path: &Path) -> bool {
        let most_is_outdated = self.written > ANEW_ABOVE.max(self.live.saturating_mul(4));
        let file = self.file.as_ref();
        most_is_outdated || file.is_none_or(|file| !is_at(file, path))
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(mut file) = self.file.take() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        file.write_all(line)?;
        self.file = Some(file);
        self.written += line.len();
        Ok(())
    }
}

/// Whether a path leads to an open file.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |metadata: Metadata| (metadata.dev(), metadata.ino());
    match (std::fs::symlink_metadata(path), file.metadata()) {
        (Ok(there), Ok(ours)) => id(there) == id(ours),
        _ => false,
    }
}

fn line(what: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    Ok(line)
}

/// What the file of this keeper says; the one that it holds, if there is none of its own in the run directory.
fn read_either(path: &Path, held: Option<OwnedFd>, keeper: &str) -> io::Result<Vec<SavedDevice>> {
    let found = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        text => text.and_then(|text| read(&text, path, keeper)),
    };
    let Some(held) = held.filter(|_| !matches!(found, Ok(Some(_)))) else {
        return Ok(found?.unwrap_or_default());
    };
    tracing::error!(path = %path.display(), "the state of the devices is not there any more, or is not this daemon's: it is taken from the file that the keeper holds, and written anew");
    let mut text = Vec::new();
    let mut file = File::from(held);
    // The last daemon and this one share the place in the file.
    file.rewind()?;
    file.read_to_end(&mut text)?;
    Ok(read(&text, path, keeper)?.unwrap_or_default())
}

/// What the lines come to; `None` when they are another keeper's.
fn read(text: &[u8], path: &Path, keeper: &str) -> io::Result<Option<Vec<SavedDevice>>> {
    let error = |text: &str| io::Error::other(format!("{}: {text}", path.display()));
    let mut lines = text
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| line.ends_with(b"\n"));
    let header = lines.next().map(serde_json::from_slice::<Header>);
    let Some(Ok(header)) = header else {
        return Err(error("not the state of thinmap's devices"));
    };
    if header.keeper != keeper {
        return Ok(None);
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
    Ok(Some(devices.into_values().collect()))
}

/// The name under which the keeper holds the file.
pub const HELD_AS: &str = "state-log";
/// Bytes: below this much the file is only appended to.
const ANEW_ABOVE: usize = 1 << 20;

#[cfg(test)]
#[path = "state_log_tests.rs"]
mod tests;
