//! A pool's status line. Facts: Linux `dm-thin.c`, `pool_status`; each field is followed by a space, the last too.

use std::fmt::Write;

use thinmap_thin_metadata::PoolMetadata;

use super::args::Features;
use super::mode::Mode;

/// Metadata low water marks above this many blocks (4 MiB) are pointless.
const METADATA_LOW_WATER_MAX: u64 = 1024;

/// Below how many free blocks of a metadata device of `blocks` an event is raised.
pub(super) fn metadata_low_water(blocks: u64) -> u64 {
    METADATA_LOW_WATER_MAX.min(blocks / 4)
}

/// Appends the fields of a pool that has not failed.
pub(super) fn write_info(
    metadata: &PoolMetadata,
    mode: Mode,
    features: &Features,
    metadata_device_blocks: u64,
    out: &mut String,
) {
    let metadata_total = metadata.metadata_blocks().raw();
    let metadata_used = metadata_total - metadata.free_metadata_blocks().raw();
    let data_total = metadata.data_blocks().raw();
    let data_used = data_total - metadata.free_data_blocks().raw();
    let held = metadata
        .held_root()
        .map_or_else(|| "-".to_owned(), |root| root.to_string());
    let mode = match mode {
        Mode::OutOfDataSpace => "out_of_data_space",
        Mode::OutOfMetadataSpace | Mode::ReadOnly => "ro",
        Mode::Write | Mode::Fail => "rw",
    };
    let discard = match features {
        f if !f.discard_enabled => "ignore_discard",
        f if f.discard_passdown => "discard_passdown",
        _ => "no_discard_passdown",
    };
    let no_space = match features.error_if_no_space {
        true => "error_if_no_space",
        false => "queue_if_no_space",
    };
    let check = if metadata.needs_check() {
        "needs_check"
    } else {
        "-"
    };
    let low_water = metadata_low_water(metadata_device_blocks);
    let _ = write!(
        out,
        "{} {metadata_used}/{metadata_total} {data_used}/{data_total} {held} {mode} {discard} {no_space} {check} {low_water} ",
        metadata.transaction_id(),
    );
}
