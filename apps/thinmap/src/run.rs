//! `thinmap run -- PROGRAM`: a program that was written for the kernel's device mapper, on thinmap's.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::daemon_start;
use crate::run_paths::RunPaths;

/// The shim's file name.
pub const SHIM: &str = "libthinmap_dm.so";
/// Names the shim where it is not beside the program.
const SHIM_IN_ENVIRONMENT: &str = "THINMAP_SHIM";

/// What is to be run.
pub struct Program<'a> {
    /// Its file.
    pub path: PathBuf,
    /// As it was called.
    pub name: &'a OsStr,
    /// What follows its name.
    pub args: &'a [OsString],
}

impl<'a> Program<'a> {
    /// Finds the file of a command line's program as a shell would.
    pub fn find(words: &'a [OsString]) -> anyhow::Result<Self> {
        let (name, args) = words.split_first().context("no program was named")?;
        let path = find_program(name)?;
        Ok(Self { path, name, args })
    }

    /// The command that runs it knowing where the daemon is, which is running by then.
    pub fn command(&self, paths: &RunPaths, autostart: bool) -> anyhow::Result<Command> {
        daemon_start::connect(paths, autostart)
            .with_context(|| format!("control socket {}", paths.control_socket().display()))?;
        let mut command = Command::new(&self.path);
        command
            .arg0(self.name)
            .args(self.args)
            .env("THINMAP_RUN_DIR", &paths.run_dir)
            .env("THINMAP_DEV_DIR", &paths.dev_dir)
            // No uevent of the kernel's tells udev of our devices, so nobody must wait for what udev would do.
            .env("DM_DISABLE_UDEV", "1");
        // libdevmapper puts "mapper" behind what this says.
        if paths.dev_dir != Path::new("/dev/mapper")
            && paths.dev_dir.file_name() == Some(OsStr::new("mapper"))
            && let Some(parent) = paths.dev_dir.parent()
        {
            command.env("DM_DEV_DIR", parent);
        }
        Ok(command)
    }

    /// Replaces this process by it. Returns only if that fails.
    pub fn execute(&self, mut command: Command) -> anyhow::Result<()> {
        Err(command.exec()).with_context(|| self.path.display().to_string())
    }
}

/// Replaces this process by `program`, with the shim in it. Returns only if that fails.
pub fn run(paths: &RunPaths, program: &Program<'_>, autostart: bool) -> anyhow::Result<()> {
    if is_static(&program.path) {
        bail!(
            "{} is statically linked, so nothing can be preloaded into it; try: thinmap run --static -- {}",
            program.path.display(),
            program.name.to_string_lossy()
        );
    }
    let mut preload = shim()?.into_os_string();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let mut command = program.command(paths, autostart)?;
    command.env("LD_PRELOAD", preload);
    program.execute(command)
}

/// As a shell finds it.
fn find_program(name: &OsStr) -> anyhow::Result<PathBuf> {
    if name.as_encoded_bytes().contains(&b'/') {
        return Ok(PathBuf::from(name));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| {
            rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file()
        })
        .with_context(|| format!("{}: command not found", name.to_string_lossy()))
}

/// The shim: where the environment says, beside this program, or where a package puts it.
pub fn shim() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os(SHIM_IN_ENVIRONMENT).filter(|named| !named.is_empty()) {
        return std::fs::canonicalize(&named)
            .with_context(|| format!("{SHIM_IN_ENVIRONMENT}={}", named.to_string_lossy()));
    }
    let program = std::env::current_exe().context("this program's own path")?;
    let beside = program.parent().unwrap_or(Path::new("/"));
    let places = [beside.to_owned(), beside.join("../lib/thinmap")];
    let found = places
        .iter()
        .map(|place| place.join(SHIM))
        .find(|file| file.is_file());
    let Some(file) = found else {
        bail!(
            "{SHIM} is neither in {} nor in {}; build it (cargo build --release) or name it in {SHIM_IN_ENVIRONMENT}",
            places[0].display(),
            places[1].display()
        );
    };
    std::fs::canonicalize(&file).with_context(|| file.display().to_string())
}

/// Whether this is an ELF program without a dynamic loader. What cannot be read is for `exec` to complain of.
fn is_static(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(ELF_START_BYTES).read_to_end(&mut start));
    read.is_ok() && elf_has_interpreter(&start) == Some(false)
}

/// Program headers follow the ELF header in what every linker makes.
pub const ELF_START_BYTES: u64 = 64 * 1024;
const PT_INTERP: u32 = 3;

/// Whether the start of a file is that of a program with a dynamic loader; `None` when it is no 64-bit little-endian ELF file.
pub fn elf_has_interpreter(start: &[u8]) -> Option<bool> {
    if !start.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let u16_at = |at: usize| Some(u16::from_le_bytes(start.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(start.get(at..at + 4)?.try_into().ok()?));
    let offset = usize::try_from(u32_at(32)?).ok()?;
    let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
    Some((0..count).any(|nr| u32_at(offset + nr * size) == Some(PT_INTERP)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_loader_is_not_static() {
        // This very test needs libc's loader.
        let own = std::env::current_exe().expect("a path");
        assert!(!is_static(&own));
        let mut start = std::fs::read(own).expect("read");
        start.truncate(4096);
        assert_eq!(elf_has_interpreter(&start), Some(true));
        // The same without its program headers.
        start[56] = 0;
        start[57] = 0;
        assert_eq!(elf_has_interpreter(&start), Some(false));
        assert_eq!(elf_has_interpreter(b"#!/bin/sh\n"), None);
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        assert!(find_program(OsStr::new("sh")).is_ok());
        let error = find_program(OsStr::new("no-such-program")).expect_err("none");
        assert_eq!(error.to_string(), "no-such-program: command not found");
    }
}
