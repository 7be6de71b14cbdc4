//! `/proc/misc` and `/proc/devices` with device mapper in them.
//!
//! Programs learn the control node's number from the first, and which major numbers are mapped devices from the second.

use std::fs::File;
use std::io::Read;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::world::CONTROL_MINOR;

const NAME: &str = "device-mapper";
const BLOCK_HEADING: &str = "Block devices:";

/// `/proc/misc` with a line for the control node; `None` when the kernel's needs no line more.
pub fn misc() -> Option<Vec<u8>> {
    with_control(&read_kernels("/proc/misc").ok()?).map(String::into_bytes)
}

/// `/proc/devices` with our devices' majors; `None` when it cannot be read.
pub fn devices(majors: &[u32]) -> Option<Vec<u8>> {
    let real = read_kernels("/proc/devices").ok()?;
    Some(with_majors(&real, majors).into_bytes())
}

/// The kernel's own text of a file. Not by libc's functions: a shim may stand before those (another copy of this one, with `thinmap
/// run` where one is installed), and would answer for itself.
pub fn read_kernels(file: &str) -> Result<String, Errno> {
    let fd = rustix::fs::open(file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::new();
    File::from(fd)
        .read_to_end(&mut bytes)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn with_control(real: &str) -> Option<String> {
    if real.lines().any(|line| line.ends_with(NAME)) {
        return None;
    }
    Some(format!("{CONTROL_MINOR:3} {NAME}\n{real}"))
}

/// Each major gets a second line behind the driver's own. A kernel's own device mapper keeps its line.
fn with_majors(real: &str, majors: &[u32]) -> String {
    let mut text = String::with_capacity(real.len() + 64);
    let mut in_blocks = false;
    let mut left: Vec<u32> = majors.to_vec();
    left.sort_unstable();
    for line in real.lines() {
        if in_blocks && let Some(major) = major_of(line) {
            left.retain(|ours| {
                let is_before = *ours < major;
                if is_before {
                    text.push_str(&line_of(*ours));
                }
                !is_before
            });
        }
        in_blocks |= line == BLOCK_HEADING;
        text.push_str(line);
        text.push('\n');
    }
    left.iter().for_each(|ours| text.push_str(&line_of(*ours)));
    text
}

fn major_of(line: &str) -> Option<u32> {
    line.split_whitespace().next()?.parse().ok()
}

fn line_of(major: u32) -> String {
    format!("{major:3} {NAME}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_node_is_listed_once() {
        let with = with_control("229 fuse\n").expect("a line more");
        assert_eq!(with, "236 device-mapper\n229 fuse\n");
        assert_eq!(with_control(&with), None);
    }

    #[test]
    fn our_major_stands_behind_its_driver() {
        let real = "Character devices:\n  7 vcs\n\nBlock devices:\n  7 loop\n253 zram\n";
        let with = with_majors(real, &[7]);
        let expected = "Character devices:\n  7 vcs\n\nBlock devices:\n  7 loop\n  7 device-mapper\n253 zram\n";
        assert_eq!(with, expected);
    }

    #[test]
    fn the_last_major_is_not_lost() {
        let with = with_majors("Block devices:\n  7 loop\n", &[259, 7]);
        assert_eq!(
            with,
            "Block devices:\n  7 loop\n  7 device-mapper\n259 device-mapper\n"
        );
    }
}
