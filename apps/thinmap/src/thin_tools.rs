//! The tools on a pool's metadata: by verb, by the name the program was called with, on running pools too.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::bail;
use thinmap_thin_tools::ServedDevice;
use thinmap_thin_tools::command::{self, Host, Invocation, LivePool, TOOLS, Tool};

use crate::run_paths::RunPaths;
use crate::{device_users, live_pool};

/// The list of tools for `thinmap --help`.
pub fn list() -> String {
    let mut text =
        "Tools on a pool's metadata, offline or of a running pool (thinmap TOOL --help):\n"
            .to_owned();
    for tool in TOOLS {
        text.push_str(&format!("  {:14} {}\n", tool.verb, tool.about));
    }
    text
}

/// The tool that this program is a link for.
pub fn called_as(program: &str) -> Option<&'static Tool> {
    let name = Path::new(program).file_name()?.to_str()?;
    TOOLS.iter().find(|tool| tool.called_as == name)
}

/// `thin_dump ARGS`: directories come from the environment.
pub fn run_as(tool: &Tool, args: &[String]) -> anyhow::Result<i32> {
    let paths = crate::paths(None, None)?;
    Ok(perform(tool, tool.called_as, &paths, args))
}

/// `thinmap dump ARGS`
pub fn run(paths: &RunPaths, words: &[String]) -> anyhow::Result<i32> {
    let Some((verb, args)) = words.split_first() else {
        bail!("a verb is missing: see thinmap --help");
    };
    match command::find(verb) {
        Some(tool) => Ok(perform(tool, &format!("thinmap {verb}"), paths, args)),
        None => bail!("there is no verb '{verb}': see thinmap --help"),
    }
}

fn perform(tool: &Tool, program: &str, paths: &RunPaths, args: &[String]) -> i32 {
    let host = DaemonHost { paths };
    (tool.run)(&Invocation {
        program,
        args,
        host: &host,
    })
}

/// The tools' access to the daemon.
struct DaemonHost<'a> {
    paths: &'a RunPaths,
}

impl Host for DaemonHost<'_> {
    fn live_pool(&self, name: &str) -> Result<Option<Box<dyn LivePool>>, String> {
        live_pool::hold(&self.paths.control_socket(), name)
            .map(|pool| pool.map(|pool| Box::new(pool) as Box<dyn LivePool>))
            .map_err(|error| crate::error_text(&error))
    }

    fn discard(&self, device: &File, from: u64, len: u64) -> io::Result<()> {
        thinmap_runtime::discard_block_range(device.as_fd(), from, len)
    }

    fn user_of(&self, device: &ServedDevice) -> Option<String> {
        device_users::user_of(device, &self.paths.run_dir)
    }
}
