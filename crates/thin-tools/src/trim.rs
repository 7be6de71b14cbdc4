//! `trim`: tells the data device which blocks no volume uses.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::FallocateFlags;
use thinmap_persistent_data::{
    BlockKind, ENTRIES_PER_BITMAP, ErrorKind, IndexEntry, MayRead, MetadataError, small_count,
};

use crate::claim::Claimed;
use crate::source::Source;
use crate::{Access, Progress, ToolError};

/// Bytes in a sector.
const SECTOR_BYTES: u64 = 512;

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct Trimmed {
    /// Ranges of free blocks told to the device.
    pub ranges: u64,
    /// Free blocks in them.
    pub blocks: u64,
    /// Bytes in them.
    pub bytes: u64,
}

/// Discards, on the data device at `data`, all blocks that the pool of `source` does not use. A file gets holes
/// there; `discard` does it on a block device. `each` is told of every range of blocks.
///
/// # Errors
/// `File`: the data device cannot be used, or is not as large as the pool thinks.
pub fn trim(
    source: &Source,
    data: &Path,
    discard: &dyn Fn(&File, u64, u64) -> io::Result<()>,
    quiet: bool,
    each: &mut dyn FnMut(u64, u64),
) -> Result<Trimmed, ToolError> {
    let superblock = source.superblock();
    let block_bytes = u64::from(superblock.data_block_size) * SECTOR_BYTES;
    let blocks = superblock.data_space_map.nr_blocks;
    let failed = |action: &'static str| {
        move |source: io::Error| ToolError::File {
            path: data.to_owned(),
            action,
            source,
        }
    };
    let file = open(data, blocks.checked_mul(block_bytes))?;
    let progress = Progress::new("trimming", blocks, quiet);
    let mut done = Trimmed::default();
    let mut emit = |begin: u64, end: u64| -> Result<(), ToolError> {
        each(begin, end);
        let (from, len) = (begin * block_bytes, (end - begin) * block_bytes);
        let result = match file.is_block() {
            true => discard(&file, from, len),
            false => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&*file, flags, from, len).map_err(Into::into)
            }
        };
        result.map_err(failed("cannot be discarded"))?;
        done.ranges += 1;
        done.blocks += end - begin;
        done.bytes += len;
        Ok(())
    };
    free_ranges(source, &progress, &mut emit)?;
    Ok(done)
}

/// Calls `emit` with each range of free data blocks, in order.
fn free_ranges(
    source: &Source,
    progress: &Progress,
    emit: &mut dyn FnMut(u64, u64) -> Result<(), ToolError>,
) -> Result<(), ToolError> {
    let map = source.superblock().data_space_map;
    let cache = source.nodes().cache();
    let mut free_from = None;
    let mut next = 0;
    for block in bitmaps(source)? {
        let bitmap = cache.read(block, BlockKind::Bitmap, MayRead::Yes)?;
        let count = ENTRIES_PER_BITMAP.min(map.nr_blocks - next);
        for entry in 0..count {
            match (small_count(&bitmap, entry) != 0, free_from) {
                (true, Some(begin)) => {
                    emit(begin, next)?;
                    free_from = None;
                }
                (false, None) => free_from = Some(next),
                _ => {}
            }
            next += 1;
        }
        progress.add(count);
    }
    match free_from {
        Some(begin) => emit(begin, next),
        None => Ok(()),
    }
}

/// The blocks of the data space map's bitmaps.
fn bitmaps(source: &Source) -> Result<Vec<u64>, ToolError> {
    let map = source.superblock().data_space_map;
    let mut bitmaps = Vec::new();
    source.nodes().entries(map.bitmap_root, |at, entry| {
        if at != bitmaps.len() as u64 {
            let what = format!(
                "bitmap {} is missing from the data space map",
                bitmaps.len()
            );
            return Err(MetadataError::new(ErrorKind::Corrupt, what));
        }
        bitmaps.push(IndexEntry::unpack(&entry).block);
        Ok(())
    })?;
    if bitmaps.len() as u64 != map.nr_blocks.div_ceil(ENTRIES_PER_BITMAP) {
        let what = format!(
            "the data space map has {} bitmaps for {} blocks",
            bitmaps.len(),
            map.nr_blocks
        );
        return Err(MetadataError::new(ErrorKind::Corrupt, what).into());
    }
    Ok(bitmaps)
}

/// Opens the data device, which must hold `bytes`. It is claimed: a pool in use must not lose what it maps next.
fn open(path: &Path, bytes: Option<u64>) -> Result<Claimed, ToolError> {
    let file = Claimed::open(path, Access::Write)?;
    let end = rustix::fs::seek(&*file, rustix::fs::SeekFrom::End(0)).map_err(|errno| {
        let path = path.to_owned();
        let (action, source) = ("has no size", errno.into());
        ToolError::File {
            path,
            action,
            source,
        }
    })?;
    if bytes.is_none_or(|bytes| end < bytes) {
        return Err(ToolError::Refused(format!(
            "{}: {end} bytes are fewer than the pool's data blocks take: not this pool's data device?",
            path.display()
        )));
    }
    Ok(file)
}
