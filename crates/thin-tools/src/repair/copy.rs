//! Writing the new image: blocks one after another from block 1 on, nodes that were shared shared again.

use thinmap_persistent_data::btree::{Node, NodeMut, capacity};
use thinmap_persistent_data::{
    BlockBytes, BlockKind, ErrorKind, META_BLOCK_SIZE, METADATA_BLOCKS_MAX, MetadataError, Result,
    Space, seal,
};
use thinmap_thin_metadata::DeviceDetails;

use super::on;
use super::rescue::{Leaf, Rescued, Volume};
use super::superblock::TIME_MAX;
use super::tree;
use crate::image::{Image, RUN_BLOCKS_MAX};
use crate::walk::{Role, Walk, read_node};

/// Bits of a mapping that hold its time.
const TIME_BITS: u32 = 24;

/// The output, filled in order.
pub(super) struct Output<'a> {
    image: &'a Image,
    next: u64,
    buffer: Vec<u8>,
}

impl<'a> Output<'a> {
    /// An output that goes on at block `next`.
    pub(super) fn new(image: &'a Image, next: u64) -> Self {
        Self {
            image,
            next,
            buffer: Vec::with_capacity(RUN_BLOCKS_MAX * META_BLOCK_SIZE),
        }
    }

    /// The block that comes next.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Seals `bytes` and writes them to the next block; gives its number.
    pub(super) fn put(&mut self, kind: BlockKind, bytes: &mut BlockBytes) -> Result<u64> {
        let block = self.next;
        if block >= self.image.blocks().min(METADATA_BLOCKS_MAX) {
            let blocks = self.image.blocks();
            let what = format!(
                "the output is too small: {blocks} blocks are full and there is more to write"
            );
            let error = MetadataError::new(ErrorKind::NoSpace(Space::Metadata), what);
            return Err(on(self.image, &error));
        }
        seal(kind, block, bytes);
        self.buffer.extend_from_slice(&bytes[..]);
        self.next += 1;
        if self.buffer.len() == RUN_BLOCKS_MAX * META_BLOCK_SIZE {
            self.flush()?;
        }
        Ok(block)
    }

    /// Hands what is buffered to the device.
    pub(super) fn flush(&mut self) -> Result<()> {
        let first = self.next - (self.buffer.len() / META_BLOCK_SIZE) as u64;
        self.image.write_run(first, &self.buffer).map_err(|e| {
            let what = format!("cannot write to the output from block {first} on");
            on(self.image, &MetadataError::io(e, what))
        })?;
        self.buffer.clear();
        Ok(())
    }
}

/// Copies trees out of a walked image.
pub(super) struct Writer<'a> {
    input: &'a Image,
    output: Output<'a>,
    /// Where a block was copied to; 0 is nowhere.
    copies: Vec<u32>,
    /// One past the highest data block that is mapped.
    data_end: u64,
    /// The highest time of a mapping.
    time: Option<u32>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(walk: &Walk<'a>, output: &'a Image) -> Self {
        Self {
            input: walk.image,
            output: Output::new(output, 1),
            copies: vec![0; walk.blocks.len() as usize],
            data_end: 0,
            time: None,
        }
    }

    /// Writes the mappings of all volumes; gives the roots of their trees.
    pub(super) fn mappings(
        &mut self,
        rescued: &Rescued,
        walk: &Walk<'_>,
    ) -> Result<Vec<(u64, [u8; 8])>> {
        let mut roots = Vec::with_capacity(rescued.volumes.len());
        for volume in &rescued.volumes {
            let root = match &volume.leaves {
                None => self.tree(walk, volume.root, 0)?,
                Some(leaves) => self.damaged(walk, volume, leaves)?,
            };
            roots.push((volume.id, root.to_le_bytes()));
        }
        Ok(roots)
    }

    /// The highest time of the mappings written; `None` without any.
    pub(super) fn time(&self) -> Option<u32> {
        self.time
    }

    /// Writes the tree of volumes and that of their details; gives their roots.
    pub(super) fn volumes(
        &mut self,
        rescued: &Rescued,
        roots: &[(u64, [u8; 8])],
    ) -> Result<(u64, u64)> {
        let details: Vec<(u64, [u8; DeviceDetails::SIZE])> = rescued
            .volumes
            .iter()
            .map(|volume| (volume.id, volume.details.pack()))
            .collect();
        let top = tree::build(&mut self.output, roots)?;
        let details = tree::build(&mut self.output, &details)?;
        Ok((top, details))
    }

    /// Ends writing; gives how many blocks are used, the superblock's included, and one past the highest data
    /// block that is mapped.
    pub(super) fn finish(mut self) -> Result<(u64, u64)> {
        self.output.flush()?;
        Ok((self.output.next(), self.data_end))
    }

    fn read(&self, block: u64) -> Result<Box<BlockBytes>> {
        read_node(self.input, block).ok_or_else(|| {
            let what = "could be read before and no longer can";
            on(self.input, &MetadataError::corrupt(block, what))
        })
    }

    /// Copies an undamaged tree, or gives where it was copied to.
    fn tree(&mut self, walk: &Walk<'_>, block: u64, depth: usize) -> Result<u64> {
        match self.copies.get(block as usize) {
            Some(0) => {}
            Some(copy) => return Ok(u64::from(*copy)),
            None => {
                let error = MetadataError::corrupt(block, "lies past the end");
                return Err(on(self.input, &error));
            }
        }
        if depth > 16 || walk.blocks.role(block) != Some(Role::Mappings) {
            let error = MetadataError::corrupt(block, "is no node of a mapping tree");
            return Err(on(self.input, &error));
        }
        let mut bytes = self.read(block)?;
        let node = Node(&bytes);
        if !node.is_leaf() {
            let children: Vec<u64> = (0..node.len()).map(|at| node.child(at)).collect();
            for (at, child) in children.into_iter().enumerate() {
                let copy = self.tree(walk, child, depth + 1)?;
                NodeMut(&mut bytes).set_child(at, copy);
            }
        }
        self.put_copy(block, &mut bytes)
    }

    fn put_copy(&mut self, block: u64, bytes: &mut BlockBytes) -> Result<u64> {
        let node = Node(bytes);
        if node.is_leaf() {
            self.note(node);
        }
        let copy = self.output.put(BlockKind::Node, bytes)?;
        self.copies[block as usize] = copy as u32;
        Ok(copy)
    }

    /// Takes note of what a leaf of mappings says about the whole pool.
    fn note(&mut self, leaf: Node<'_>) {
        for value in (0..leaf.len()).map(|at| leaf.child(at)) {
            self.data_end = self.data_end.max((value >> TIME_BITS) + 1);
            self.time = self.time.max(Some(value as u32 & TIME_MAX));
        }
    }

    /// What is left of a damaged tree: without the lost children if nodes stay full enough, which keeps shared
    /// what was shared; else with new internal nodes.
    fn damaged(&mut self, walk: &Walk<'_>, volume: &Volume, leaves: &[Leaf]) -> Result<u64> {
        if leaves.is_empty() {
            return tree::build::<8>(&mut self.output, &[]);
        }
        if volume.adopted == 0
            && let Pruned::Copy(root) = self.pruned(walk, volume.root, 0)?
        {
            return Ok(root);
        }
        self.leaves(volume, leaves)
    }

    fn pruned(&mut self, walk: &Walk<'_>, block: u64, depth: usize) -> Result<Pruned> {
        let blocks = &walk.blocks;
        if blocks.role(block) != Some(Role::Mappings) || !blocks.is_good(block) || depth > 16 {
            return Ok(Pruned::Lost);
        }
        match self.copies[block as usize] {
            0 if !blocks.is_damaged(block) => {
                return self.tree(walk, block, depth).map(Pruned::Copy);
            }
            0 => {}
            copy => return Ok(Pruned::Copy(u64::from(copy))),
        }
        if blocks.is_leaf(block) {
            return Ok(Pruned::TooThin);
        }
        let bytes = self.read(block)?;
        let node = Node(&bytes);
        let mut kept = Vec::with_capacity(node.len());
        for at in 0..node.len() {
            let end = (at + 1 < node.len()).then(|| node.key(at + 1));
            let (child, key) = (node.child(at), node.key(at));
            if !blocks.is_in_place(child, key, end) {
                continue;
            }
            match self.pruned(walk, child, depth + 1)? {
                Pruned::Copy(copy) => kept.push((key, copy)),
                Pruned::Lost => {}
                Pruned::TooThin => return Ok(Pruned::TooThin),
            }
        }
        let is_full_enough = kept.len() >= 2 && (depth == 0 || kept.len() >= node.max() / 3);
        if !is_full_enough {
            return Ok(Pruned::TooThin);
        }
        let mut copy = Box::new([0; META_BLOCK_SIZE]);
        let mut new = NodeMut(&mut copy);
        new.init(false, 8);
        for (at, (key, child)) in kept.into_iter().enumerate() {
            new.insert(at, key, &child.to_le_bytes());
        }
        self.put_copy(block, &mut copy).map(Pruned::Copy)
    }

    /// A new tree over the leaves that are left of a volume.
    fn leaves(&mut self, volume: &Volume, leaves: &[Leaf]) -> Result<u64> {
        // A leaf that was a root may be too empty to have neighbours.
        let is_thin = |leaf: &Leaf| (leaf.entries as usize) < capacity(8) / 3;
        if leaves.len() > 1 && leaves.iter().any(is_thin) {
            return self.entries(volume, leaves);
        }
        let mut children = Vec::with_capacity(leaves.len());
        for leaf in leaves {
            let copy = match self.copies[leaf.block as usize] {
                0 => {
                    let mut bytes = self.read(leaf.block)?;
                    self.put_copy(leaf.block, &mut bytes)?
                }
                copy => u64::from(copy),
            };
            children.push((leaf.first, copy.to_le_bytes()));
        }
        tree::build_above(&mut self.output, children)
    }

    /// The same, entry by entry.
    fn entries(&mut self, volume: &Volume, leaves: &[Leaf]) -> Result<u64> {
        let mut entries = Vec::with_capacity(volume.mapped as usize);
        for leaf in leaves {
            let bytes = self.read(leaf.block)?;
            let node = Node(&bytes);
            self.note(node);
            entries.extend((0..node.len()).map(|at| (node.key(at), node.child(at).to_le_bytes())));
        }
        tree::build(&mut self.output, &entries)
    }
}

/// What became of a damaged node.
enum Pruned {
    /// Nothing is left of it.
    Lost,
    /// A copy without what is lost.
    Copy(u64),
    /// Too little is left for a node of its own.
    TooThin,
}
