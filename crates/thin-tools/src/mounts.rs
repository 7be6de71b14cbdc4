//! The mount table, to tell which files cannot be looked at without waiting for somebody.
//!
//! Loop devices are the whole machine's: one of them may stand on a file whose server hangs, and a tool that works
//! on other files must not wait for that server.

use std::fs::Metadata;
use std::path::{Path, PathBuf};

/// The type of thinmap's own mounts.
const THINMAP: &str = "fuse.thinmap";
/// Types of file systems of which a server answers; those whose name begins with `fuse` too.
const SERVED: [&str; 7] = ["9p", "afs", "ceph", "cifs", "nfs", "nfs4", "smb3"];

/// The mounts that this process sees.
pub(crate) struct Mounts(Vec<Mount>);

struct Mount {
    point: PathBuf,
    /// The number of the files on it, but on file systems with numbers of their own, none of which is served.
    dev: u64,
    kind: String,
}

impl Mount {
    fn is_served(&self) -> bool {
        self.kind.starts_with("fuse") || SERVED.contains(&self.kind.as_str())
    }
}

impl Mounts {
    /// The mount table as of now; empty where it cannot be read.
    pub(crate) fn read() -> Self {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self(table.lines().filter_map(parse).collect())
    }

    /// Whether `path`, which has no symbolic links, cannot be looked at without asking a server, but for those of
    /// the file systems `answered`: they have answered a moment ago.
    pub(crate) fn is_served(&self, path: &Path, answered: &[u64]) -> bool {
        let above = self.0.iter().filter(|mount| path.starts_with(&mount.point));
        // Without the root nothing works at all.
        let root = Path::new("/");
        above
            .filter(|mount| mount.point != root && !answered.contains(&mount.dev))
            .any(Mount::is_served)
    }

    /// Whether `path`, which has no symbolic links, is a file of a daemon of thinmap's.
    pub(crate) fn is_thinmap(&self, path: &Path) -> bool {
        let on = |mount: &&Mount| path.parent() == Some(&mount.point);
        self.0.iter().rfind(on).is_some_and(|m| m.kind == THINMAP)
    }

    /// What is at `path`, unless a server other than those of `answered` must be asked.
    pub(crate) fn stat(&self, path: &Path, answered: &[u64]) -> Option<Metadata> {
        if self.is_served(path, answered) {
            return None;
        }
        std::fs::metadata(path).ok()
    }
}

/// A line of `/proc/self/mountinfo`. Source: proc(5).
fn parse(line: &str) -> Option<Mount> {
    let mut words = line.split(' ');
    let (major, minor) = words.nth(2)?.split_once(':')?;
    let point = unescaped(words.nth(1)?);
    let kind = words.skip_while(|word| *word != "-").nth(1)?;
    Some(Mount {
        point: point.into(),
        dev: rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?),
        kind: kind.to_owned(),
    })
}

/// Blank, tab, newline and backslash stand in the table as octal `\NNN`.
fn unescaped(word: &str) -> String {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let mut plain = String::with_capacity(word.len());
    let mut rest = word;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let known = escapes.iter().find(|(code, _)| rest.starts_with(code));
        let (code, character) = known.copied().unwrap_or(("\\", "\\"));
        plain.push_str(character);
        rest = &rest[code.len()..];
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_below_a_served_mount_are_told_from_others() {
        let table = r"21 1 8:1 / / rw - ext4 /dev/sda1 rw
30 21 0:50 / /mnt/a\040b rw,nosuid shared:3 - fuse.sshfs me@there: rw
31 21 0:51 / /run/thinmap/fuse rw - fuse.thinmap thinmap rw
32 30 8:2 / /mnt/a\040b/in rw - ext4 /dev/sda2 rw
33 21 0:52 / /mnt/n rw - nfs4 server:/ rw
junk";
        let mounts = Mounts(table.lines().filter_map(parse).collect());
        let served = |path: &str| mounts.is_served(Path::new(path), &[]);
        assert!(served("/mnt/a b/file") && served("/mnt/n/file") && served("/run/thinmap/fuse/1"));
        assert!(served("/mnt/a b/in/file"));
        assert!(!served("/mnt/ab/file") && !served("/file") && !served("/run/thinmap/fuse2/1"));
        let answered = [rustix::fs::makedev(0, 50)];
        assert!(!mounts.is_served(Path::new("/mnt/a b/file"), &answered));
        assert!(mounts.is_thinmap(Path::new("/run/thinmap/fuse/1")));
        assert!(!mounts.is_thinmap(Path::new("/mnt/a b/1")));
        assert_eq!(unescaped("a\\134040\\x"), "a\\040\\x");
    }
}
