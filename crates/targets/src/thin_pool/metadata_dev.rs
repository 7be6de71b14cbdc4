//! The metadata engine's door to storage: 4096-byte blocks over any block device.
//!
//! Calls wait for the device: for the pool's worker and control threads only.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use thinmap_block::{BlockDevice, IoFlags, Op};
use thinmap_persistent_data::{Block4k, MetadataDevice};
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, MetaBlock, Sector};

const BLOCK_SECTORS: u64 = 8;
const BLOCK_BYTES: usize = 4096;
/// Neighbouring blocks are written as one request, up to this many (1 MiB).
const RUN_BLOCKS_MAX: usize = 256;

/// See the module.
pub(crate) struct BlockMetadataDevice {
    dev: Arc<dyn BlockDevice>,
    /// Block 0 as it was last written, if it was.
    first_block: Mutex<Option<Box<Block4k>>>,
}

impl BlockMetadataDevice {
    pub(crate) fn new(dev: Arc<dyn BlockDevice>) -> Self {
        Self {
            dev,
            first_block: Mutex::default(),
        }
    }

    /// Block 0, the superblock, as it is on the device; from memory where this process has written it.
    pub(crate) fn superblock(&self) -> io::Result<Box<Block4k>> {
        if let Some(block) = &*self.first_block.lock() {
            return Ok(block.clone());
        }
        let mut block = Block4k::boxed();
        self.read(MetaBlock(0), &mut block)?;
        Ok(block)
    }

    /// Takes note of block 0 when it is among those written; not of one whose write failed, as then nobody knows what is there.
    fn note_first_block(&self, batch: &[(MetaBlock, &Block4k)], written: bool) {
        for (_, content) in batch.iter().filter(|(block, _)| *block == MetaBlock(0)) {
            *self.first_block.lock() = written.then(|| Box::new((*content).clone()));
        }
    }
}

impl MetadataDevice for BlockMetadataDevice {
    fn size(&self) -> MetaBlock {
        MetaBlock(self.dev.size().raw() / BLOCK_SECTORS)
    }

    fn read(&self, block: MetaBlock, buf: &mut Block4k) -> io::Result<()> {
        let (data, status) =
            thinmap_block::read(&*self.dev, sector_of(block)?, IoBuf::alloc(BLOCK_BYTES));
        result(status)?;
        buf.0.copy_from_slice(data.as_slice());
        Ok(())
    }

    fn read_many(&self, blocks: &[MetaBlock]) -> Vec<Option<Box<Block4k>>> {
        // One that lies past what can be addressed fails there.
        let request = |block: &MetaBlock| {
            let sector = sector_of(*block).unwrap_or(Sector(u64::MAX - BLOCK_SECTORS));
            let buf = IoBuf::alloc(BLOCK_BYTES);
            (
                Op::Read,
                IoFlags::default(),
                sector,
                Sector(BLOCK_SECTORS),
                buf,
            )
        };
        let read = |(data, status): (IoBuf, BlkStatus)| {
            status.is_ok().then(|| {
                let mut block = Block4k::boxed();
                block.0.copy_from_slice(data.as_slice());
                block
            })
        };
        thinmap_block::submit_all_and_wait(&*self.dev, blocks.iter().map(request).collect())
            .into_iter()
            .map(read)
            .collect()
    }

    fn write(&self, batch: &[(MetaBlock, &Block4k)]) -> io::Result<()> {
        let mut requests = Vec::new();
        let mut rest = batch;
        while let Some((first, _)) = rest.first() {
            let follows = |(i, (block, _)): &(usize, &(MetaBlock, &Block4k))| {
                block.raw() == first.raw() + *i as u64
            };
            let run = rest
                .iter()
                .take(RUN_BLOCKS_MAX)
                .enumerate()
                .take_while(follows)
                .count();
            let (now, later) = rest.split_at(run);
            let mut buf = IoBuf::alloc(run * BLOCK_BYTES);
            for (to, (_, from)) in buf.as_mut_slice().chunks_mut(BLOCK_BYTES).zip(now) {
                to.copy_from_slice(&from.0);
            }
            let sectors = Sector::from_bytes(buf.len() as u64);
            let flags = IoFlags::default();
            requests.push((Op::Write, flags, sector_of(*first)?, sectors, buf));
            rest = later;
        }
        let written = thinmap_block::submit_all_and_wait(&*self.dev, requests)
            .into_iter()
            .try_for_each(|(_, status)| result(status));
        self.note_first_block(batch, written.is_ok());
        written
    }

    fn flush(&self) -> io::Result<()> {
        result(thinmap_block::flush(&*self.dev))
    }
}

fn sector_of(block: MetaBlock) -> io::Result<Sector> {
    let sector = block.raw().checked_mul(BLOCK_SECTORS).map(Sector);
    sector.ok_or_else(|| io::Error::from_raw_os_error(BlkStatus::Inval.errno()))
}

fn result(status: BlkStatus) -> io::Result<()> {
    if status.is_ok() {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(status.errno()))
    }
}

#[cfg(test)]
mod tests {
    use thinmap_block::backing::MemoryDevice;

    use super::*;

    #[test]
    fn batches_with_gaps_land_where_they_belong() {
        let dev = BlockMetadataDevice::new(Arc::new(MemoryDevice::new(Sector(8 * 10 + 7))));
        assert_eq!(dev.size(), MetaBlock(10));
        let block = |byte| Block4k([byte; BLOCK_BYTES]);
        let (a, b, c) = (block(1), block(2), block(3));
        dev.write(&[(MetaBlock(2), &a), (MetaBlock(3), &b), (MetaBlock(9), &c)])
            .expect("write");
        let mut back = Block4k::zeroed();
        for (at, byte) in [(2, 1), (3, 2), (4, 0), (9, 3)] {
            dev.read(MetaBlock(at), &mut back).expect("read");
            assert!(back.0.iter().all(|b| *b == byte), "block {at}");
        }
        assert!(dev.read(MetaBlock(11), &mut back).is_err());
        let many = dev.read_many(&[
            MetaBlock(9),
            MetaBlock(11),
            MetaBlock(u64::MAX),
            MetaBlock(2),
        ]);
        let bytes = |block: &Option<Box<Block4k>>| block.as_ref().map(|b| b.0[17]);
        assert_eq!(
            many.iter().map(bytes).collect::<Vec<_>>(),
            [Some(3), None, None, Some(1)]
        );
        assert!(dev.read(MetaBlock(u64::MAX), &mut back).is_err());
        dev.flush().expect("flush");
    }
}
