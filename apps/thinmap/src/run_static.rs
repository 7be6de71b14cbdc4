//! `thinmap run --static -- PROGRAM`, and the supervisor that it starts.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use thinmap_interpose::World;

use crate::run::Program;
use crate::run_paths::RunPaths;

/// Replaces this process by `program`, under a supervisor. Returns only if that fails.
///
/// The program has this process's id, terminal and parent, and no child that it did not start itself.
pub fn run(paths: &RunPaths, program: &Program<'_>, autostart: bool) -> anyhow::Result<()> {
    let command = program.command(paths, autostart)?;
    let (ours, theirs) = UnixStream::pair()?;
    let started = supervisor(paths)?
        .arg("--detach")
        .stdin(OwnedFd::from(theirs))
        .status()
        .context("the supervisor")?;
    if !started.success() {
        bail!("the supervisor did not start: {started}");
    }
    thinmap_supervise::submit(ours).context("cannot put the program under a supervisor")?;
    program.execute(command)
}

/// `thinmap supervise`: standard input is the socket to the program.
pub fn supervise(paths: &RunPaths, detach: bool) -> anyhow::Result<()> {
    if detach {
        // Whoever started us waits for us, and must not get the supervisor itself as a child.
        supervisor(paths)?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        return Ok(());
    }
    // Out of reach of the terminal's signals: it serves what outlives the program, too.
    rustix::process::setsid()?;
    std::env::set_current_dir("/")?;
    let program = rustix::io::dup(std::io::stdin())?;
    // Were it kept, the program would not learn that the supervisor has died before it began.
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    let world = World::new(&paths.run_dir, &paths.dev_dir);
    thinmap_supervise::serve(program.into(), world)?;
    Ok(())
}

fn supervisor(paths: &RunPaths) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--run-dir")
        .arg(&paths.run_dir)
        .arg("--dev-dir")
        .arg(&paths.dev_dir)
        .arg("supervise");
    Ok(command)
}
