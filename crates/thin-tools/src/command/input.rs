//! Opening what a tool reads, and where it writes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ArgMatches;
use tempfile::NamedTempFile;
use thinmap_persistent_data::{META_BLOCK_SIZE, METADATA_BLOCKS_MAX};

use super::host::{Input, LivePool};
use super::options::overrides;
use super::output::tell;
use super::{Invocation, metadata_snap_choice};
use crate::claim::Claimed;
use crate::repair::{RepairOptions, repair};
use crate::{Access, Image, RootChoice, Source, ToolError};

/// The smallest copy, in blocks, so that space maps of a small image fit too.
const COPY_BLOCKS_MIN: u64 = 4096;

/// A source, and the pool it belongs to while that runs.
pub(super) struct Opened {
    /// What to read.
    pub source: Source,
    /// The device or file that was asked for, or the pool's metadata device.
    pub path: PathBuf,
    /// Gives the metadata snapshot back when dropped, after the source.
    pool: Option<Box<dyn LivePool>>,
}

impl Opened {
    /// The size of a running pool's data device, which its metadata snapshot does not tell.
    pub(super) fn pool_data_blocks(&self) -> Option<u64> {
        let live = self.source.live_superblock();
        self.pool.as_ref().map(|_| live.data_space_map.nr_blocks)
    }
}

/// Opens the argument `input`: a device, a file, or a running pool by its name.
pub(super) fn open(call: &Invocation<'_>, matches: &ArgMatches) -> Result<Opened, ToolError> {
    let word = matches
        .get_one::<String>("input")
        .map_or("", String::as_str);
    match Input::find(call.host, word).map_err(ToolError::Refused)? {
        Input::Path(path) => Ok(Opened {
            source: call.source(&path, metadata_snap_choice(matches))?,
            path,
            pool: None,
        }),
        Input::Pool(pool) => {
            let choice = RootChoice::MetadataSnap(Some(pool.held_root()));
            Ok(Opened {
                source: Source::open(pool.metadata(), choice)?,
                path: pool.metadata().to_owned(),
                pool: Some(pool),
            })
        }
    }
}

/// Opens a repaired copy of the argument `input`, which is only read. The copy lies in the directory for temporary
/// files and takes about as much room as the metadata in use.
pub(super) fn open_repaired(
    call: &Invocation<'_>,
    matches: &ArgMatches,
    quiet: bool,
) -> Result<Opened, ToolError> {
    let path = Path::new(
        matches
            .get_one::<String>("input")
            .map_or("", String::as_str),
    );
    let input = call.image(path, Access::Read)?;
    let failed = |source| ToolError::File {
        path: std::env::temp_dir(),
        action: "cannot hold a repaired copy",
        source,
    };
    let copy = NamedTempFile::new().map_err(failed)?;
    // Sparse; what is repaired needs no more than what is there but for new space maps.
    let blocks = input
        .blocks()
        .saturating_mul(2)
        .clamp(COPY_BLOCKS_MIN, METADATA_BLOCKS_MAX);
    copy.as_file()
        .set_len(blocks * META_BLOCK_SIZE as u64)
        .map_err(failed)?;
    let output = Image::open(copy.path(), Access::Write)?;
    // Without a name it is gone with this process, however that ends.
    copy.close().map_err(failed)?;
    let overrides = overrides(matches);
    let options = RepairOptions {
        transaction_id: overrides.transaction_id,
        data_block_size: overrides.data_block_size,
        nr_data_blocks: overrides.nr_data_blocks,
        quiet,
    };
    let report = repair(&input, &output, &options)?;
    if !quiet {
        // Beside the text, which is all that standard output may hold.
        tell(&report);
    }
    Ok(Opened {
        source: Source::of(Arc::new(output), RootChoice::Live)?,
        path: path.to_owned(),
        pool: None,
    })
}

/// Runs `write` on a new file at `path`, or on a device.
pub(super) fn to_file(
    call: &Invocation<'_>,
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), ToolError>,
) -> Result<(), ToolError> {
    let failed = |action: &'static str| {
        move |source: io::Error| ToolError::File {
            path: path.to_owned(),
            action,
            source,
        }
    };
    call.refuse_used(path, Access::Write)?;
    let file = Claimed::create(path)?;
    file.clear().map_err(failed("cannot be emptied"))?;
    let mut out = io::BufWriter::new(&*file);
    write(&mut out).map_err(|error| match error {
        ToolError::Output(source) => failed("cannot be written")(source),
        other => other,
    })?;
    out.flush().map_err(failed("cannot be written"))
}
