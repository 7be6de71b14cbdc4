//! Trying a library before every program gets it: a program of the tree loads it, with the tree's own loader and libc.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::Context;

use super::tree::Tree;
use crate::run::{ELF_START_BYTES, elf_has_interpreter};

/// What is to be loaded.
pub struct Library<'a> {
    /// As programs of the tree see it.
    pub path: &'a Path,
    pub bytes: &'a [u8],
}

/// What came of it.
pub enum Verdict {
    /// A program loaded it and said nothing about it.
    Loads,
    /// It did not.
    Refused(String),
    /// There was no program to try it with.
    Untried(String),
}

/// Does nothing, says nothing, and is everywhere.
const PROGRAM: &str = "/bin/true";
/// Of an ELF file: class and byte order, then type and machine.
const ELF_CLASS: std::ops::Range<usize> = 4..6;
const ELF_MACHINE: std::ops::Range<usize> = 18..20;

/// Lets a program of the tree load the library.
pub fn run(tree: &Tree, library: &Library<'_>) -> anyhow::Result<Verdict> {
    let program = match tree.read_start(Path::new(PROGRAM), ELF_START_BYTES) {
        Ok(start) => start,
        Err(errno) => return Ok(Verdict::Untried(format!("{PROGRAM}: {errno}"))),
    };
    let is_elf = program.starts_with(b"\x7fELF");
    if is_elf && !same_machine(&program, library.bytes) {
        return Ok(Verdict::Refused(format!(
            "it is for another machine than {PROGRAM} there"
        )));
    }
    if elf_has_interpreter(&program) == Some(false) {
        return Ok(Verdict::Untried(format!(
            "{PROGRAM} is statically linked there"
        )));
    }
    // What programs say without it is not its fault.
    let before = execute(tree, None, false)?;
    if !before.status.success() {
        return Ok(Verdict::Untried(complaint(&before, &[])));
    }
    let with = execute(tree, Some(library.path), false)?;
    if !with.status.success() || with.stderr != before.stderr {
        return Ok(Verdict::Refused(complaint(&with, &before.stderr)));
    }
    let list = execute(tree, Some(library.path), true)?;
    let path = library.path.to_string_lossy();
    if !String::from_utf8_lossy(&list.stdout).contains(&*path) {
        return Ok(Verdict::Refused(format!(
            "{PROGRAM} there runs without it; its C library may not be glibc"
        )));
    }
    Ok(Verdict::Loads)
}

/// `thinmap try-preload ROOT`: the program of the tree at `root`, in this process. `LD_PRELOAD` and the like were set for it, and
/// this process itself had to start without them.
pub fn test_program(root: &Path, library: Option<&Path>, list: bool) -> anyhow::Result<()> {
    if root != Path::new("/") {
        rustix::process::chroot(root).with_context(|| format!("chroot {}", root.display()))?;
    }
    std::env::set_current_dir("/")?;
    let mut command = Command::new(PROGRAM);
    command.env_clear().env("LC_ALL", "C");
    if let Some(library) = library {
        command.env("LD_PRELOAD", library);
    }
    if list {
        // glibc's loader tells what it would load instead of running the program.
        command.env("LD_TRACE_LOADED_OBJECTS", "1");
    }
    Err(command.exec()).context(PROGRAM)
}

fn execute(tree: &Tree, library: Option<&Path>, list: bool) -> anyhow::Result<Output> {
    let root = match tree.is_running() {
        true => PathBuf::from("/"),
        false => std::path::absolute(tree.path())?,
    };
    let own = std::env::current_exe().context("this program's own path")?;
    let mut command = Command::new(own);
    command.arg("try-preload").arg(root);
    if let Some(library) = library {
        command.arg("--library").arg(library);
    }
    if list {
        command.arg("--list");
    }
    command.output().context("the test program")
}

fn same_machine(one: &[u8], other: &[u8]) -> bool {
    one.get(ELF_CLASS) == other.get(ELF_CLASS) && one.get(ELF_MACHINE) == other.get(ELF_MACHINE)
}

/// The first line of what a program said and had not said `before`.
fn complaint(output: &Output, before: &[u8]) -> String {
    let (text, before) = (
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(before),
    );
    let line = text
        .lines()
        .find(|line| !before.lines().any(|said| said == *line));
    match line {
        Some(line) => line.trim_start_matches("thinmap: ").to_owned(),
        None => format!("{PROGRAM} there: {}", output.status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_told_apart() {
        let mut one = vec![0; 64];
        one[4] = 2;
        one[18] = 62;
        let mut other = one.clone();
        assert!(same_machine(&one, &other));
        other[18] = 183;
        assert!(!same_machine(&one, &other));
        other[18] = 62;
        other[4] = 1;
        assert!(!same_machine(&one, &other));
    }
}
