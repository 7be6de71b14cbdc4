//! The names in the device directory (`/dev/mapper/NAME`): real device nodes where the system allows them, links
//! to the kernel's own node or to the FUSE file otherwise; links always, as udev makes them, where that is wished.
//!
//! A list of the nodes made is kept in the run directory, so that the next daemon can take away what a killed one left.

use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode};
use thinmap_units::{DevNo, DmName};

/// The device directory and what we have put there.
pub struct Nodes {
    dev_dir: PathBuf,
    list: PathBuf,
    /// Links to the kernel's own nodes, even where nodes could be made.
    links: bool,
    made: Mutex<Vec<PathBuf>>,
    /// Whose group the nodes are, with the right to read and write.
    group: Option<u32>,
}

impl Nodes {
    /// Opens the device directory (made when missing); what an earlier daemon of the same run directory made there is ours.
    pub fn open(dev_dir: &Path, run_dir: &Path, links: bool) -> std::io::Result<Self> {
        std::fs::create_dir_all(dev_dir)?;
        let list = run_dir.join("nodes");
        let made = std::fs::read_to_string(&list).unwrap_or_default();
        Ok(Self {
            dev_dir: dev_dir.to_owned(),
            list,
            links,
            made: Mutex::new(made.lines().map(PathBuf::from).collect()),
            group: None,
        })
    }

    /// Removes what an earlier daemon made, except the nodes of these devices.
    pub fn remove_stale(&self, live: &[DmName]) {
        let live: Vec<PathBuf> = live.iter().map(|name| self.path(name)).collect();
        let mut made = self.made.lock();
        for stale in made.extract_if(.., |path| !live.contains(path)) {
            // Only what looks like ours: names in our directory that are a block node or a link.
            if stale.parent() == Some(&self.dev_dir) && is_node_or_link(&stale) {
                match std::fs::remove_file(&stale) {
                    Ok(()) => tracing::info!(node = %stale.display(), "removed a stale node"),
                    Err(error) => {
                        tracing::warn!(node = %stale.display(), %error, "a stale node stays")
                    }
                }
            }
        }
        self.save(&made);
    }

    /// From now on nodes belong to this group, too.
    pub fn give_to(&mut self, group: Option<u32>) {
        self.group = group;
    }

    /// The path of a device's node, whether it exists or not.
    pub fn path(&self, name: &DmName) -> PathBuf {
        self.dev_dir.join(mangle(name.as_str()))
    }

    /// The device directory.
    pub fn dev_dir(&self) -> &Path {
        &self.dev_dir
    }

    /// Whether the name belongs to somebody else's device: whoever used the name would get that one.
    pub fn is_taken(&self, name: &DmName) -> bool {
        let path = self.path(name);
        if self.made.lock().contains(&path) {
            return false;
        }
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.file_type().is_block_device() => {
                is_live(DevNo::from_dev_t(metadata.rdev()))
            }
            // A link that leads nowhere is a killed daemon's, or nobody's.
            Ok(metadata) if metadata.file_type().is_symlink() => path.exists(),
            Ok(_) => true,
            Err(_) => false,
        }
    }

    /// Makes the node for a block device number, or a link to `target` where nodes cannot be made or links are wished.
    pub fn add(
        &self,
        name: &DmName,
        dev: DevNo,
        target: &Path,
        is_block: bool,
    ) -> std::io::Result<()> {
        let path = self.path(name);
        let as_node = is_block && !self.links;
        let is_there = as_node && is_block_node(&path, dev);
        if !is_there && is_node_or_link(&path) {
            std::fs::remove_file(&path)?;
        }
        // The list first: a crash in between leaves an entry without a node, never a node without an entry.
        let mut made = self.made.lock();
        if !made.contains(&path) {
            made.push(path.clone());
        }
        self.save(&made);
        drop(made);
        // A program's own (libdevmapper's) goes with the device, too, whoever has its number by then.
        if is_there {
            self.give_as_it_is_now(&path);
            return Ok(());
        }
        if as_node && make_block_node(&path, dev) {
            if let Some(group) = self.group {
                give(&path, group, GIVEN);
            }
            return Ok(());
        }
        symlink(target, &path)
    }

    /// A node that is there may have been given to another group, by a daemon with another configuration. What nobody was given stays as
    /// it is: programs (libvirt) change the owners of the nodes that they use.
    fn give_as_it_is_now(&self, path: &Path) {
        let was_given = || {
            let metadata = std::fs::symlink_metadata(path);
            metadata.is_ok_and(|m| m.mode() & 0o777 == GIVEN)
        };
        match self.group {
            Some(group) => give(path, group, GIVEN),
            None if was_given() => give(path, crate::access::own_group(), 0o600),
            None => {}
        }
    }

    /// Removes a device's node; one that is not there is no error.
    pub fn remove(&self, name: &DmName) {
        let path = self.path(name);
        if is_node_or_link(&path)
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!(node = %path.display(), %error, "cannot remove a node");
        }
        let mut made = self.made.lock();
        made.retain(|known| *known != path);
        self.save(&made);
    }

    fn save(&self, made: &[PathBuf]) {
        let text: String = made
            .iter()
            .map(|path| format!("{}\n", path.display()))
            .collect();
        let new = self.list.with_extension("new");
        let saved = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &self.list));
        if let Err(error) = saved {
            tracing::warn!(list = %self.list.display(), %error, "cannot note the nodes made");
        }
    }
}

/// The mode of a node that belongs to a group.
const GIVEN: u32 = 0o660;

fn give(path: &Path, group: u32, mode: u32) {
    if let Err(error) = crate::access::give(path, group, mode) {
        tracing::warn!(%error, "a node keeps its group and mode");
    }
}

/// A device name as a file name: libdevmapper's "auto" mangling, `\xNN` for what udev would not take.
pub fn mangle(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c) || !c.is_ascii();
    // Mangled already, or nothing to do. Never as it is with a control character: the list of nodes has one name a line.
    let mangled_already = name.contains("\\x") && !name.contains(|c: char| c.is_ascii_control());
    if mangled_already || name.chars().all(allowed) {
        return name.to_owned();
    }
    let mut mangled = String::with_capacity(name.len() + 3);
    for c in name.chars() {
        if allowed(c) {
            mangled.push(c);
        } else {
            mangled.push_str(&format!("\\x{:02x}", u32::from(c)));
        }
    }
    mangled
}

/// Whether the kernel has something behind a device number; an unbound loop device is nothing.
fn is_live(dev: DevNo) -> bool {
    let device = Path::new("/sys/dev/block").join(dev.to_string());
    device.exists() && (dev.major != LOOP_MAJOR || device.join("loop").exists())
}

/// COMPAT: the loop driver's number on Linux.
const LOOP_MAJOR: u32 = 7;

fn is_node_or_link(path: &Path) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|m| m.file_type().is_block_device() || m.file_type().is_symlink())
}

fn is_block_node(path: &Path, dev: DevNo) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|m| m.file_type().is_block_device() && DevNo::from_dev_t(m.rdev()) == dev)
}

fn make_block_node(path: &Path, dev: DevNo) -> bool {
    let mode = Mode::from_raw_mode(0o600);
    if rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        FileType::BlockDevice,
        mode,
        dev.to_dev_t(),
    )
    .is_err()
    {
        return false;
    }
    // A directory on a nodev mount takes nodes that nobody can open: ENXIO would be fine, EACCES is not.
    match rustix::fs::open(
        path,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Err(rustix::io::Errno::ACCESS) => {
            let _ = std::fs::remove_file(path);
            false
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_somebody_elses_is_taken() {
        let dir = std::env::temp_dir().join(format!("thinmap-nodes-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("directory");
        let nodes = Nodes::open(&dir.join("mapper"), &dir, false).expect("nodes");
        let name = |text: &str| DmName::new(text).expect("a name");
        assert!(!nodes.is_taken(&name("new")));
        symlink("/dev/null", nodes.path(&name("leads-somewhere"))).expect("link");
        symlink("/no/such/thing", nodes.path(&name("leads-nowhere"))).expect("link");
        std::fs::write(nodes.path(&name("a-file")), "").expect("file");
        assert!(nodes.is_taken(&name("leads-somewhere")) && nodes.is_taken(&name("a-file")));
        assert!(!nodes.is_taken(&name("leads-nowhere")));
        nodes
            .add(
                &name("ours"),
                DevNo::new(7, 0),
                Path::new("/dev/null"),
                false,
            )
            .expect("link");
        assert!(!nodes.is_taken(&name("ours")));
        std::fs::remove_dir_all(&dir).expect("removed");
    }

    /// When it goes its number may be another device's, which is live.
    #[test]
    fn a_node_that_a_program_made_for_the_device_is_the_devices() {
        let dir = tempfile::tempdir().expect("directory");
        let nodes = Nodes::open(&dir.path().join("mapper"), dir.path(), false).expect("nodes");
        let name = DmName::new("made").expect("a name");
        let numbers = std::fs::read_dir("/sys/dev/block").expect("block devices");
        let mut numbers = numbers.flatten().filter_map(|entry| {
            let number = entry.file_name();
            number.to_str()?.parse::<DevNo>().ok()
        });
        let live = numbers.find(|dev| dev.major != LOOP_MAJOR);
        let dev = live.expect("a disk");
        if !make_block_node(&nodes.path(&name), dev) {
            println!(
                "SKIP a_node_that_a_program_made_for_the_device_is_the_devices: cannot make nodes"
            );
            return;
        }
        assert!(nodes.is_taken(&name), "as long as it is nobody's");
        let target = Path::new("/dev/null");
        nodes.add(&name, dev, target, true).expect("there");
        assert!(!nodes.is_taken(&name));
        nodes.remove(&name);
        assert!(!nodes.path(&name).exists());
    }

    #[test]
    fn links_are_made_where_they_are_wished() {
        let dir = std::env::temp_dir().join(format!("thinmap-links-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("directory");
        let nodes = Nodes::open(&dir.join("mapper"), &dir, true).expect("nodes");
        let name = DmName::new("ours").expect("a name");
        let target = Path::new("/dev/loop7");
        for _twice in 0..2 {
            nodes
                .add(&name, DevNo::new(7, 7), target, true)
                .expect("link");
            let leads_to = std::fs::read_link(nodes.path(&name)).expect("a link");
            assert_eq!(leads_to, target);
        }
        nodes.remove(&name);
        assert!(nodes.path(&name).symlink_metadata().is_err());
        std::fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn odd_characters_are_mangled_once() {
        assert_eq!(mangle("plain-name_1.2"), "plain-name_1.2");
        assert_eq!(mangle("a b"), "a\\x20b");
        assert_eq!(mangle("a\\x20b"), "a\\x20b");
        // A name that a line of the list of nodes could be made with.
        assert_eq!(mangle("a\\x\nb"), "a\\x5cx\\x0ab");
    }
}
