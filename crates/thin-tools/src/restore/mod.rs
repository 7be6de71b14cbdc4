//! `restore`: a pool's metadata from thin-provisioning-tools' XML, in one pass.
//!
//! Trees and space maps are written front to back, full, in the order of their keys ([`PoolWriter`]). The old
//! superblock goes first and the new one comes last, after a flush each.
//!
//! CRASH: between those two the device holds no superblock, so nothing half-written is ever taken for a pool.

mod pool_writer;
mod xml;

use std::io::BufRead;

use thinmap_persistent_data::{ErrorKind, MetadataDevice};

use crate::dump::{Overrides, PoolFacts};
use crate::{Progress, ToolError};

pub use pool_writer::{PoolWriter, VolumeFacts, Written};
pub use xml::{Event, XmlReader};

/// Restores `input` to `device`. `input_bytes` is how long it is, for the progress bar, if that is known.
///
/// # Errors
/// `Refused`: what is wrong with the XML and in which line. `Metadata`: it does not fit, or a write failed.
pub fn restore(
    input: &mut dyn BufRead,
    input_bytes: Option<u64>,
    device: &dyn MetadataDevice,
    overrides: &Overrides,
    quiet: bool,
) -> Result<Written, ToolError> {
    let mut xml = XmlReader::new(input);
    let progress = Progress::new(
        "restoring",
        input_bytes.unwrap_or(0),
        quiet || input_bytes.is_none(),
    );
    let mut read = 0;
    let mut pool: Option<PoolWriter<'_>> = None;
    while let Some(event) = xml.next()? {
        let now = xml.position();
        progress.add(now - read);
        read = now;
        let outcome = match (event, &mut pool) {
            (Event::Superblock(facts), None) => {
                let facts = overridden(facts, overrides);
                PoolWriter::begin(device, &facts).map(|begun| pool = Some(begun))
            }
            (Event::Superblock(_), Some(_)) => return Err(xml.wrong("a second superblock")),
            (_, None) => return Err(xml.wrong("something outside of the superblock")),
            (Event::Device(volume), Some(pool)) => pool.begin_device(&volume),
            (Event::Run(run), Some(pool)) => pool.run(&run),
            (Event::EndDevice, Some(pool)) => pool.end_device(),
        };
        outcome.map_err(|error| match error {
            // The device's fault, not that of the text.
            ToolError::Metadata(error)
                if matches!(error.kind(), ErrorKind::Io | ErrorKind::NoSpace(_)) =>
            {
                error.into()
            }
            other => xml.at(other),
        })?;
    }
    let pool = pool.ok_or_else(|| xml.wrong("the end without a superblock"))?;
    pool.finish()
}

fn overridden(facts: PoolFacts, overrides: &Overrides) -> PoolFacts {
    PoolFacts {
        transaction: overrides.transaction_id.unwrap_or(facts.transaction),
        data_block_size: overrides.data_block_size.unwrap_or(facts.data_block_size),
        nr_data_blocks: overrides.nr_data_blocks.unwrap_or(facts.nr_data_blocks),
        ..facts
    }
}
