//! Flushes on which a commit of metadata stands.

use thinmap_block::BlockDevice;
use thinmap_persistent_data::{MetadataError, Result};

/// Makes durable what was written to `dev`, which an error calls `what`. Waits.
pub(crate) fn flush(dev: &dyn BlockDevice, what: &str) -> Result<()> {
    let flushed = thinmap_block::flush(dev);
    if flushed.is_ok() {
        return Ok(());
    }
    let source = std::io::Error::from_raw_os_error(flushed.errno());
    Err(MetadataError::io(
        source,
        format!("cannot flush the {what}"),
    ))
}
