//! A metadata device as a tool opens it: a plain file or a block device of the host.
//!
//! INVARIANT: an image that is opened with [`Access::Read`] or [`Access::Write`] is nobody else's meanwhile, as `claim`
//! finds it. [`Access::ReadLive`] claims nothing, and is for metadata snapshots, whose blocks do not change.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use thinmap_persistent_data::{Block4k, META_BLOCK_SIZE, MetadataDevice};
use thinmap_units::MetaBlock;

use crate::RootChoice;
use crate::claim::Claimed;

/// Blocks that one request reads or writes at most (1 MiB).
pub const RUN_BLOCKS_MAX: usize = 256;
/// Blocks between two wanted ones that are read rather than skipped: cheaper than another request.
const GAP_BLOCKS_MAX: u64 = 8;

/// What a tool means to do with an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read what must not change meanwhile.
    Read,
    /// Read a metadata snapshot of a pool that may be in use.
    ReadLive,
    /// Read and write.
    Write,
}

impl Access {
    /// What reading by `choice` takes.
    pub(crate) fn of(choice: RootChoice) -> Self {
        match choice {
            RootChoice::Live => Self::Read,
            RootChoice::MetadataSnap(_) => Self::ReadLive,
        }
    }
}

/// Why an image cannot be opened. Each names the path.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A system call failed.
    #[error("{path}: {action}: {source}")]
    System {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Somebody else has it.
    #[error("{path}: in use by {user}; {}", way_out(*access))]
    Busy {
        /// The file.
        path: PathBuf,
        /// Who, as far as it can be told.
        user: String,
        /// What the tool meant to do with it.
        access: Access,
    },
    /// Neither a regular file nor a block device.
    #[error("{path}: neither a block device nor a regular file")]
    NotBlock {
        /// The file.
        path: PathBuf,
    },
    /// Not even a superblock fits.
    #[error("{path}: smaller than one metadata block (4096 bytes)")]
    TooSmall {
        /// The file.
        path: PathBuf,
    },
}

/// What to do about a device in use.
fn way_out(access: Access) -> &'static str {
    match access {
        Access::Write => "stop its pool or close it first",
        Access::Read | Access::ReadLive => {
            "stop the pool first, or take a metadata snapshot and read that (--metadata-snap)"
        }
    }
}

/// An open image.
#[derive(Debug)]
pub struct Image {
    file: Claimed,
    path: PathBuf,
    blocks: u64,
}

impl Image {
    /// Opens `path`, which must exist. The size is taken now; a part of a block at the end is ignored.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub fn open(path: &Path, access: Access) -> Result<Self, ImageError> {
        let system = |action| {
            move |source: io::Error| ImageError::System {
                path: path.to_owned(),
                action,
                source,
            }
        };
        let file = Claimed::open(path, access)?;
        let end = rustix::fs::seek(&*file, rustix::fs::SeekFrom::End(0))
            .map_err(|e| system("size")(e.into()))?;
        let blocks = end / META_BLOCK_SIZE as u64;
        if blocks == 0 {
            let path = path.to_owned();
            return Err(ImageError::TooSmall { path });
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            blocks,
        })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in whole blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Reads `into.len() / 4096` blocks from `first` on with one request.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` past the end.
    ///
    /// # Panics
    /// When `into` is not whole blocks.
    pub fn read_run(&self, first: u64, into: &mut [u8]) -> io::Result<()> {
        assert!(into.len().is_multiple_of(META_BLOCK_SIZE));
        self.file.read_exact_at(into, offset(first)?)
    }

    /// Writes whole blocks from `first` on with one request.
    ///
    /// # Errors
    /// The system's.
    ///
    /// # Panics
    /// When `from` is not whole blocks.
    pub fn write_run(&self, first: u64, from: &[u8]) -> io::Result<()> {
        assert!(from.len().is_multiple_of(META_BLOCK_SIZE));
        self.file.write_all_at(from, offset(first)?)
    }

    /// Reads `blocks`, which must ascend, with few requests: neighbours and near neighbours together.
    /// Calls `each` with every one of them in order. `buffer` is room that is used again.
    pub fn read_sorted(
        &self,
        blocks: &[u64],
        buffer: &mut Vec<u8>,
        mut each: impl FnMut(u64, io::Result<&[u8; META_BLOCK_SIZE]>),
    ) {
        let mut rest = blocks;
        while let Some(first) = rest.first().copied() {
            let run = run_len(rest);
            let (now, later) = rest.split_at(run);
            let span = (now[run - 1] - first + 1) as usize;
            buffer.resize(span.max(1) * META_BLOCK_SIZE, 0);
            let whole = self.read_run(first, buffer).is_ok();
            for block in now {
                let at = (block - first) as usize * META_BLOCK_SIZE;
                let bytes = &mut buffer[at..at + META_BLOCK_SIZE];
                // One bad sector must not cost its neighbours.
                let read = if whole {
                    Ok(())
                } else {
                    self.read_run(*block, bytes)
                };
                each(*block, read.and_then(|()| whole_block(bytes)));
            }
            rest = later;
        }
    }
}

fn whole_block(bytes: &[u8]) -> io::Result<&[u8; META_BLOCK_SIZE]> {
    bytes.try_into().map_err(io::Error::other)
}

/// How many of `blocks` one request reads.
fn run_len(blocks: &[u64]) -> usize {
    let first = blocks[0];
    let near = |pair: &[u64]| {
        pair[1] > pair[0]
            && pair[1] - pair[0] <= GAP_BLOCKS_MAX
            && pair[1] - first < RUN_BLOCKS_MAX as u64
    };
    1 + blocks.windows(2).take_while(|pair| near(pair)).count()
}

fn offset(block: u64) -> io::Result<u64> {
    block
        .checked_mul(META_BLOCK_SIZE as u64)
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

impl MetadataDevice for Image {
    fn size(&self) -> MetaBlock {
        MetaBlock(self.blocks)
    }

    fn read(&self, block: MetaBlock, buf: &mut Block4k) -> io::Result<()> {
        self.read_run(block.raw(), &mut buf.0)
    }

    fn read_many(&self, blocks: &[MetaBlock]) -> Vec<Option<Box<Block4k>>> {
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        order.sort_unstable_by_key(|at| blocks[*at]);
        let sorted: Vec<u64> = order.iter().map(|at| blocks[*at].raw()).collect();
        let mut found: Vec<Option<Box<Block4k>>> = blocks.iter().map(|_| None).collect();
        let mut next = order.iter();
        self.read_sorted(&sorted, &mut Vec::new(), |_, bytes| {
            if let (Some(at), Ok(bytes)) = (next.next(), bytes) {
                let mut block = Block4k::boxed();
                block.0 = *bytes;
                found[*at] = Some(block);
            }
        });
        found
    }

    fn write(&self, batch: &[(MetaBlock, &Block4k)]) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(RUN_BLOCKS_MAX * META_BLOCK_SIZE);
        let mut rest = batch;
        while let Some((first, _)) = rest.first() {
            let follows = |(i, (block, _)): &(usize, &(MetaBlock, &Block4k))| {
                block.raw() == first.raw() + *i as u64
            };
            let run = rest.iter().take(RUN_BLOCKS_MAX).enumerate();
            let (now, later) = rest.split_at(run.take_while(follows).count());
            buffer.clear();
            now.iter()
                .for_each(|(_, bytes)| buffer.extend_from_slice(&bytes.0));
            self.write_run(first.raw(), &buffer)?;
            rest = later;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn file_of(blocks: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("file");
        file.as_file().set_len(blocks * 4096).expect("size");
        file
    }

    #[test]
    fn blocks_come_back_in_the_order_asked_for() {
        let file = file_of(2000);
        let image = Image::open(file.path(), Access::Write).expect("open");
        let block = |byte| Block4k([byte; META_BLOCK_SIZE]);
        let (a, b, c) = (block(1), block(2), block(3));
        image
            .write(&[
                (MetaBlock(2), &a),
                (MetaBlock(3), &b),
                (MetaBlock(1999), &c),
            ])
            .expect("write");
        let wanted = [1999, 3, 5000, 2, 3, u64::MAX].map(MetaBlock);
        let bytes = |block: &Option<Box<Block4k>>| block.as_ref().map(|b| b.0[99]);
        let found: Vec<_> = image.read_many(&wanted).iter().map(bytes).collect();
        assert_eq!(found, [Some(3), Some(2), None, Some(1), Some(2), None]);
    }

    #[test]
    fn what_is_no_device_is_refused_by_name() {
        let directory = tempfile::tempdir().expect("directory");
        let refused = Image::open(directory.path(), Access::Read).expect_err("directory");
        assert!(refused.to_string().contains("neither"), "{refused}");
        let small = file_of(0);
        let refused = Image::open(small.path(), Access::Read).expect_err("empty");
        assert!(refused.to_string().contains("smaller"), "{refused}");
    }
}
