//! An image as a metadata device, for looking at what a power cut left.

use std::io;

use parking_lot::Mutex;
use thinmap_persistent_data::{Block4k, MetadataDevice};
use thinmap_units::MetaBlock;

use crate::image::{Content, Image, SECTOR};

const SECTORS_PER_BLOCK: u64 = 8;

/// A copy of an image; writes change the copy and are durable at once.
pub struct ImageMetadata(Mutex<Image>);

impl ImageMetadata {
    /// A device that begins with `image`'s content.
    pub fn new(image: Image) -> Self {
        Self(Mutex::new(image))
    }

    fn sector_of(&self, block: MetaBlock, image: &Image) -> io::Result<u64> {
        let sector = block.raw().checked_mul(SECTORS_PER_BLOCK);
        sector
            .filter(|s| s + SECTORS_PER_BLOCK <= image.sectors())
            .ok_or_else(|| io::Error::from_raw_os_error(5))
    }
}

impl MetadataDevice for ImageMetadata {
    fn size(&self) -> MetaBlock {
        MetaBlock(self.0.lock().sectors() / SECTORS_PER_BLOCK)
    }

    fn read(&self, block: MetaBlock, buf: &mut Block4k) -> io::Result<()> {
        let image = self.0.lock();
        image.read(self.sector_of(block, &image)?, &mut buf.0);
        Ok(())
    }

    fn write(&self, batch: &[(MetaBlock, &Block4k)]) -> io::Result<()> {
        let mut image = self.0.lock();
        for (block, bytes) in batch {
            let first = self.sector_of(*block, &image)?;
            for (sector, part) in (first..).zip(bytes.0.chunks_exact(SECTOR)) {
                image.set(sector, Content::new(part));
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
