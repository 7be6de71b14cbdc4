//! The tools' command lines, by name.
//!
//! A tool is entered as `thinmap VERB` or through a link named as in thin-provisioning-tools. Exit codes
//! are theirs: 0 for success, 1 for anything else. What a tool needs of the program around it (a live
//! pool's metadata, a device to discard) comes through [`Host`].

mod check;
mod delta;
mod dump;
mod host;
mod input;
mod ls;
mod metadata_size;
mod options;
mod output;
mod repair;
mod restore;
mod rmap;
mod trim;

use std::path::Path;

pub use host::{Host, LivePool, NoHost};
pub use options::{Parsed, metadata_snap_choice, parse};

use crate::{Access, Image, ImageError, RootChoice, ServedDevice, Source, ToolError};

/// One tool.
pub struct Tool {
    /// thinmap's verb.
    pub verb: &'static str,
    /// The name in thin-provisioning-tools.
    pub called_as: &'static str,
    /// One line for a list of commands.
    pub about: &'static str,
    /// Runs it; gives the exit code.
    pub run: fn(&Invocation<'_>) -> i32,
}

/// A call of a tool.
#[derive(Clone, Copy)]
pub struct Invocation<'a> {
    /// The name to use in messages and usage texts, `thin_dump` or `thinmap dump`.
    pub program: &'a str,
    /// The arguments behind the name.
    pub args: &'a [String],
    /// The program around the tool.
    pub host: &'a dyn Host,
}

impl Invocation<'_> {
    /// Tells on standard error why the tool fails; gives the exit code.
    pub fn fail(&self, error: &dyn std::fmt::Display) -> i32 {
        output::tell(&format_args!("{}: {error}", self.program));
        1
    }

    /// Opens an image named on the command line.
    fn image(&self, path: &Path, access: Access) -> Result<Image, ToolError> {
        self.refuse_used(path, access)?;
        Ok(Image::open(path, access)?)
    }

    /// Opens a pool's metadata named on the command line.
    fn source(&self, path: &Path, choice: RootChoice) -> Result<Source, ToolError> {
        self.refuse_used(path, Access::of(choice))?;
        Source::open(path, choice)
    }

    /// Refuses a device of thinmap's that somebody uses, which an exclusive open cannot tell: asked before it is
    /// opened, so that this program is no user of it yet.
    fn refuse_used(&self, path: &Path, access: Access) -> Result<(), ToolError> {
        if access == Access::ReadLive {
            return Ok(());
        }
        let user = ServedDevice::at(path).and_then(|device| self.host.user_of(&device));
        match user {
            None => Ok(()),
            Some(user) => {
                let path = path.to_owned();
                Err(ImageError::Busy { path, user, access }.into())
            }
        }
    }
}

/// Every tool.
pub const TOOLS: &[Tool] = &[
    Tool {
        verb: "check",
        called_as: "thin_check",
        about: "check metadata, and give leaked blocks back",
        run: check::run,
    },
    Tool {
        verb: "repair",
        called_as: "thin_repair",
        about: "write what survives of damaged metadata to another device",
        run: repair::run,
    },
    Tool {
        verb: "dump",
        called_as: "thin_dump",
        about: "print metadata as XML, as text for people or as JSON",
        run: dump::run,
    },
    Tool {
        verb: "restore",
        called_as: "thin_restore",
        about: "write the metadata that XML describes",
        run: restore::run,
    },
    Tool {
        verb: "delta",
        called_as: "thin_delta",
        about: "how two volumes differ",
        run: delta::run,
    },
    Tool {
        verb: "ls",
        called_as: "thin_ls",
        about: "the volumes and what they use",
        run: ls::run,
    },
    Tool {
        verb: "rmap",
        called_as: "thin_rmap",
        about: "which volumes are on given data blocks",
        run: rmap::run,
    },
    Tool {
        verb: "trim",
        called_as: "thin_trim",
        about: "discard the data blocks that no volume uses",
        run: trim::run,
    },
    Tool {
        verb: "metadata-size",
        called_as: "thin_metadata_size",
        about: "how large a metadata device should be",
        run: metadata_size::run,
    },
];

/// The tool that is meant by a verb or by the name a program was called with.
pub fn find(name: &str) -> Option<&'static Tool> {
    TOOLS
        .iter()
        .find(|tool| tool.verb == name || tool.called_as == name)
}
