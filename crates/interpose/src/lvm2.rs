//! A question of lvm2's that has to be answered by its purpose.
//!
//! `lvcreate -s` refuses to begin unless the targets `snapshot` and `snapshot-origin` are there, and looks only then at
//! the origin: of a thin volume the pool makes the snapshot, and neither target is used. So lvm2 is told of them also
//! where the daemon has none, unless its command line gives the snapshot a size of its own: such a snapshot does need them, and is
//! better refused at once than after half of its volumes were made. `dmsetup targets` tells the truth in any case.

use std::ffi::OsStr;
use std::path::Path;

use thinmap_control::ioctl::Command;
use thinmap_control::{Request, Response, TargetVersion};

/// The program behind lvcreate, vgchange and the others, all of them links to it.
const PROGRAM: &str = "lvm";

/// What it must see, in the versions of Linux 6.1.
const EXPECTED: &[(&str, [u32; 3])] = &[("snapshot", [1, 16, 0]), ("snapshot-origin", [1, 9, 0])];

/// Beginnings of the options that give a volume a size.
const SIZES: &[&str] = &["-L", "-l", "--size", "--extents"];

/// The answer to a list of targets with the expected ones in it, for the program whose directory in `/proc` this is. `None`
/// when the answer stands: it was another question or another program's, nothing is missing, or it did not
/// fit and will be asked again.
pub fn targets(nr: u32, process: &Path, request: &[u8], answer: &[u8]) -> Option<Vec<u8>> {
    if nr != Command::ListVersions.nr() || !snapshots_without_size(process) {
        return None;
    }
    let question = Request::ListVersions;
    let Ok(Some(Response::Versions(mut targets))) = Response::decode(&question, answer) else {
        return None;
    };
    let known = targets.len();
    for (name, version) in EXPECTED {
        if targets.iter().all(|target| target.name != *name) {
            targets.push(TargetVersion {
                name: (*name).to_owned(),
                version: *version,
            });
        }
    }
    if targets.len() == known {
        return None;
    }
    let mut buffer = request.to_vec();
    Response::Versions(targets).encode(&question, &mut buffer);
    Some(buffer)
}

fn snapshots_without_size(process: &Path) -> bool {
    let program = std::fs::read_link(process.join("exe"));
    if !program.is_ok_and(|program| program.file_name() == Some(OsStr::new(PROGRAM))) {
        return false;
    }
    let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
    let gives_size = |word: &[u8]| SIZES.iter().any(|size| word.starts_with(size.as_bytes()));
    !line.split(|byte| *byte == 0).any(gives_size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use thinmap_control::ioctl::HEADER_BYTES;

    fn names(buffer: &[u8]) -> Option<Vec<String>> {
        match Response::decode(&Request::ListVersions, buffer).expect("an answer") {
            Some(Response::Versions(targets)) => {
                Some(targets.into_iter().map(|target| target.name).collect())
            }
            _ => None,
        }
    }

    /// What the program `file` is told that was called with `words`, by a daemon with these targets.
    fn told(file: &str, words: &str, room: usize, daemons: &[&str]) -> Option<Vec<u8>> {
        let process = tempfile::tempdir().expect("directory");
        std::os::unix::fs::symlink(file, process.path().join("exe")).expect("link");
        std::fs::write(process.path().join("cmdline"), words.replace(' ', "\0")).expect("file");
        let request = Request::ListVersions.encode(HEADER_BYTES + room);
        let mut answer = request.clone();
        let version = |name: &&str| TargetVersion {
            name: (*name).to_owned(),
            version: [1, 0, 0],
        };
        Response::Versions(daemons.iter().map(version).collect())
            .encode(&Request::ListVersions, &mut answer);
        let nr = Command::ListVersions.nr();
        targets(nr, process.path(), &request, &answer)
    }

    const THIN: &str = "lvcreate -s vg/thin";

    #[test]
    fn lvm2_and_nobody_else_sees_what_it_expects() {
        let answer = told("/usr/sbin/lvm", THIN, 4096, &["thin"]).expect("changed");
        let expected = ["thin", "snapshot", "snapshot-origin"];
        assert_eq!(names(&answer), Some(expected.map(String::from).to_vec()));
        assert_eq!(told("/usr/sbin/dmsetup", THIN, 4096, &["thin"]), None);
    }

    #[test]
    fn a_snapshot_with_a_size_needs_the_targets_themselves() {
        for words in [
            "lvcreate -s -L 10M vg/lin",
            "lvcreate -s -L10M vg/lin",
            "lvcreate --extents 3 -s vg/lin",
            "lvcreate --size=1G -s vg/lin",
        ] {
            assert_eq!(told("/sbin/lvm", words, 4096, &["thin"]), None, "{words}");
        }
    }

    #[test]
    fn what_the_daemon_has_is_not_told_twice() {
        let all = ["snapshot", "snapshot-origin"];
        assert_eq!(told("/sbin/lvm", THIN, 4096, &all), None);
        let answer = told("/sbin/lvm", THIN, 4096, &["snapshot"]).expect("changed");
        assert_eq!(names(&answer), Some(all.map(String::from).to_vec()));
    }

    #[test]
    fn a_buffer_that_holds_the_daemons_answer_only_is_too_small() {
        // One target takes 24 bytes, the three more than 64.
        let answer = told("/sbin/lvm", THIN, 32, &["thin"]).expect("changed");
        assert_eq!(names(&answer), None);
    }
}
