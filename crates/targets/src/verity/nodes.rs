//! Blocks of the tree: in memory once they are verified, read and verified when somebody needs them.
//!
//! INVARIANT: what is in the cache matches its parent's digest (or the root hash), for its parent was in hand, verified, before
//! it was read. So what a request finds there it may trust. One read of a block is under way at a time; who
//! needs it meanwhile waits in `loading`. No device is called and nobody goes on under a lock.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::{Mutex, RwLock};
use thinmap_block::{EndIo, Io};
use thinmap_dm::DeviceUse;
use thinmap_runtime::IoBuf;
use thinmap_units::{BlkStatus, Sector};

use super::cache::Cache;
use super::corruption::{Corruption, Kind};
use super::fec::{Fec, Repair};
use super::flat::flat;
use super::geometry::{Geometry, NodeId};
use super::hasher::{Digest, Hasher};
use super::verify::Piece;

/// A block of the tree, or why there is none.
pub(super) type Found = Result<Arc<IoBuf>, BlkStatus>;

/// See the module.
pub(super) struct Nodes {
    pub(super) geometry: Geometry,
    pub(super) hasher: Hasher,
    /// Of the top node, or of the only data block.
    pub(super) root: Digest,
    pub(super) corruption: Arc<Corruption>,
    pub(super) device: DeviceUse,
    pub(super) fec: Option<Fec>,
    block_bytes: usize,
    cache: RwLock<Cache>,
    loading: Mutex<HashMap<NodeId, Vec<Waiter>>>,
}

/// Who goes on once a node is there.
enum Waiter {
    /// A node below it, to be read next.
    Child(NodeId),
    /// Data to be verified.
    Piece(Piece),
}

/// What [`Nodes`] is made of.
pub(super) struct Parts {
    pub(super) geometry: Geometry,
    pub(super) hasher: Hasher,
    pub(super) root: Digest,
    pub(super) corruption: Arc<Corruption>,
    pub(super) device: DeviceUse,
    pub(super) fec: Option<Fec>,
    pub(super) block_bytes: usize,
}

impl Nodes {
    pub(super) fn new(parts: Parts) -> Self {
        let blocks = usize::try_from(parts.geometry.blocks()).unwrap_or(usize::MAX);
        let room = CACHE_BYTES / parts.block_bytes;
        Self {
            geometry: parts.geometry,
            hasher: parts.hasher,
            root: parts.root,
            corruption: parts.corruption,
            device: parts.device,
            fec: parts.fec,
            block_bytes: parts.block_bytes,
            cache: RwLock::new(Cache::new(room.min(blocks))),
            loading: Mutex::default(),
        }
    }

    /// The node, when it is in memory.
    pub(super) fn cached(&self, id: NodeId) -> Option<Arc<IoBuf>> {
        self.cache.read().get(id)
    }

    /// Has a node read, for nobody yet.
    pub(super) fn prefetch(self: &Arc<Self>, id: NodeId) {
        if self.cached(id).is_none() {
            self.ask(id, None);
        }
    }

    /// Has the piece go on once the node is there; gives it back when it is there now.
    pub(super) fn wait(self: &Arc<Self>, id: NodeId, piece: Piece) -> Option<(Piece, Arc<IoBuf>)> {
        match self.ask(id, Some(Waiter::Piece(piece)))? {
            (Some(Waiter::Piece(piece)), node) => Some((piece, node)),
            _ => None,
        }
    }

    fn ask(
        self: &Arc<Self>,
        id: NodeId,
        waiter: Option<Waiter>,
    ) -> Option<(Option<Waiter>, Arc<IoBuf>)> {
        {
            let mut loading = self.loading.lock();
            // Under this lock: what is read is in the cache before nobody can wait for it any more.
            if let Some(node) = self.cached(id) {
                return Some((waiter, node));
            }
            if let Some(waiters) = loading.get_mut(&id) {
                waiters.extend(waiter);
                return None;
            }
            loading.insert(id, waiter.into_iter().collect());
        }
        self.load(id);
        None
    }

    fn load(self: &Arc<Self>, id: NodeId) {
        let Some(parent) = self.geometry.parent_of(id) else {
            self.read(id, self.root);
            return;
        };
        let found = match self.cached(parent) {
            Some(node) => Some(node),
            None => self
                .ask(parent, Some(Waiter::Child(id)))
                .map(|(_, node)| node),
        };
        if let Some(node) = found {
            self.read_below(id, &node);
        }
    }

    fn read_below(self: &Arc<Self>, id: NodeId, parent: &IoBuf) {
        let digest = &parent.as_slice()[self.geometry.digest_of(id.nr)];
        self.read(id, Digest::new(digest));
    }

    fn read(self: &Arc<Self>, id: NodeId, expected: Digest) {
        let load = Arc::new(Load {
            nodes: self.clone(),
            id,
            expected,
            finished: AtomicBool::new(false),
        });
        let buf = IoBuf::alloc(self.block_bytes);
        let io = Io::read(self.sector_of(id), buf, load, 0);
        self.device.dev.submit(io);
    }

    /// A data block's digest, if the tree above it can be read and is right. Waits for the hash device.
    pub(super) fn digest_now(&self, data_block: u64) -> Option<Digest> {
        let Some(leaf) = self.geometry.leaf_of(data_block) else {
            return Some(self.root);
        };
        let node = self.node_now(leaf)?;
        let digest = &node.as_slice()[self.geometry.digest_of(data_block)];
        Some(Digest::new(digest))
    }

    fn node_now(&self, id: NodeId) -> Option<Arc<IoBuf>> {
        if let Some(node) = self.cached(id) {
            return Some(node);
        }
        let expected = match self.geometry.parent_of(id) {
            None => self.root,
            Some(parent) => {
                let parent = self.node_now(parent)?;
                Digest::new(&parent.as_slice()[self.geometry.digest_of(id.nr)])
            }
        };
        let buf = IoBuf::alloc(self.block_bytes);
        let (buf, status) = thinmap_block::read(&*self.device.dev, self.sector_of(id), buf);
        let is_right = || self.hasher.digest(buf.as_slice()).as_slice() == expected.as_slice();
        if !status.is_ok() || !is_right() {
            return None;
        }
        let node = Arc::new(buf);
        self.cache.write().insert(id, node.clone());
        Some(node)
    }

    fn sector_of(&self, id: NodeId) -> Sector {
        let sectors = Sector::from_bytes(self.block_bytes as u64).raw();
        Sector(self.geometry.block_of(id) * sectors)
    }

    fn finish(self: &Arc<Self>, id: NodeId, found: Found) {
        let waiters = self.loading.lock().remove(&id).unwrap_or_default();
        for waiter in waiters {
            let (nodes, found) = (self.clone(), found.clone());
            flat(move || match (waiter, found) {
                (Waiter::Piece(piece), found) => piece.go_on(found),
                (Waiter::Child(child), Ok(node)) => nodes.read_below(child, &node),
                (Waiter::Child(child), Err(status)) => nodes.finish(child, Err(status)),
            });
        }
    }
}

/// One node on its way from the hash device.
pub(super) struct Load {
    pub(super) nodes: Arc<Nodes>,
    id: NodeId,
    pub(super) expected: Digest,
    finished: AtomicBool,
}

impl EndIo for Load {
    fn end_io(self: Arc<Self>, mut io: Io, _: u64, status: BlkStatus) {
        let nodes = &self.nodes;
        if !status.is_ok() {
            self.finish(Err(status));
            return;
        }
        let node = std::mem::replace(&mut io.buf, IoBuf::empty());
        if nodes.hasher.digest(node.as_slice()).as_slice() == self.expected.as_slice() {
            self.is_right(node);
        } else if let Some(fec) = &nodes.fec {
            fec.ask(Repair::Node(self.clone(), node));
        } else {
            self.is_wrong(node);
        }
    }
}

impl Load {
    /// In hash blocks of the hash device.
    pub(super) fn block(&self) -> u64 {
        self.nodes.geometry.block_of(self.id)
    }

    /// What error correction has made of `node`, or nothing.
    pub(super) fn repaired(&self, repaired: Option<Vec<u8>>, mut node: IoBuf) {
        match repaired {
            Some(content) => {
                node.as_mut_slice().copy_from_slice(&content);
                self.is_right(node);
            }
            None => self.is_wrong(node),
        }
    }

    fn is_right(&self, node: IoBuf) {
        let node = Arc::new(node);
        self.nodes.cache.write().insert(self.id, node.clone());
        self.finish(Ok(node));
    }

    fn is_wrong(&self, node: IoBuf) {
        let found = match self.nodes.corruption.note(Kind::Metadata, self.block()) {
            // Used this once: the next one who needs it finds it corrupted again.
            true => Ok(Arc::new(node)),
            false => Err(BlkStatus::IoErr),
        };
        self.finish(found);
    }

    fn finish(&self, found: Found) {
        self.finished.store(true, Relaxed);
        self.nodes.finish(self.id, found);
    }
}

/// A load that was given up (a panic) leaves nobody waiting.
impl Drop for Load {
    fn drop(&mut self) {
        if self.finished.load(Relaxed) {
            return;
        }
        self.nodes.finish(self.id, Err(BlkStatus::IoErr));
    }
}

/// Of verified blocks of a line's tree: with 4 KiB blocks and SHA-256 enough for 2 GiB of data.
const CACHE_BYTES: usize = 16 << 20;
