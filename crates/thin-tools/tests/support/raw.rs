//! An image read by nothing but the format's description: what the tools under test are compared with.
#![allow(dead_code, reason = "each user takes its own part")]

use std::collections::{BTreeMap, BTreeSet};

/// Block of a volume to data block and time.
pub type Mappings = BTreeMap<u64, u64>;

pub struct Raw<'a>(pub &'a [u8]);

fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    bytes[at..at + size]
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

struct Node<'a>(&'a [u8]);

impl Node<'_> {
    fn is_leaf(&self) -> bool {
        number(self.0, 4, 4) & 2 != 0
    }

    fn len(&self) -> usize {
        number(self.0, 16, 4) as usize
    }

    fn key(&self, at: usize) -> u64 {
        number(self.0, 32 + 8 * at, 8)
    }

    fn value(&self, at: usize) -> u64 {
        let (max, size) = (
            number(self.0, 20, 4) as usize,
            number(self.0, 24, 4) as usize,
        );
        number(self.0, 32 + 8 * max + size * at, 8.min(size))
    }
}

impl<'a> Raw<'a> {
    pub fn block(&self, block: u64) -> &'a [u8] {
        &self.0[block as usize * 4096..][..4096]
    }

    fn root(&self, at: usize) -> u64 {
        number(self.block(0), at, 8)
    }

    /// Blocks on the way from `block` to each leaf entry, with the entry.
    fn walk(&self, block: u64, way: &mut Vec<u64>, each: &mut dyn FnMut(&[u64], u64, u64)) {
        let node = Node(self.block(block));
        way.push(block);
        for at in 0..node.len() {
            match node.is_leaf() {
                true => each(way, node.key(at), node.value(at)),
                false => self.walk(node.value(at), way, each),
            }
        }
        way.pop();
    }

    /// Every volume's mappings.
    pub fn volumes(&self) -> BTreeMap<u64, Mappings> {
        let mut volumes = BTreeMap::new();
        self.walk(self.root(320), &mut Vec::new(), &mut |_, id, root| {
            let mut found = Mappings::new();
            self.walk(root, &mut Vec::new(), &mut |_, key, value| {
                found.insert(key, value);
            });
            volumes.insert(id, found);
        });
        volumes
    }

    /// Every volume's details, as bytes, without the count of mappings.
    pub fn details(&self) -> BTreeSet<u64> {
        let mut ids = BTreeSet::new();
        self.walk(self.root(328), &mut Vec::new(), &mut |_, id, _| {
            ids.insert(id);
        });
        ids
    }

    /// The volumes whose mappings cannot be reached without `block`.
    pub fn volumes_through(&self, block: u64) -> BTreeSet<u64> {
        let mut touched = BTreeSet::new();
        self.walk(self.root(320), &mut Vec::new(), &mut |way, id, root| {
            let mut is_touched = block == 0 || block == root || way.contains(&block);
            self.walk(root, &mut Vec::new(), &mut |way, _, _| {
                is_touched |= way.contains(&block);
            });
            if is_touched {
                touched.insert(id);
            }
        });
        touched
    }

    /// Blocks that the metadata space map has in use; of images of a single bitmap.
    pub fn used(&self) -> Vec<u64> {
        let index = self.root(208);
        let bitmap = self.block(number(self.block(index), 16, 8));
        (0..self.root(192))
            .filter(|block| bitmap[16 + *block as usize / 4] >> (block % 4 * 2) & 3 != 0)
            .collect()
    }

    /// Blocks that hold anything.
    pub fn written(&self) -> Vec<u64> {
        (0..self.0.len() as u64 / 4096)
            .filter(|block| self.block(*block).iter().any(|byte| *byte != 0))
            .collect()
    }
}
