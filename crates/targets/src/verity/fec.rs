//! Forward error correction: blocks that do not match are computed anew from others and from Reed-Solomon codes on a further device.
//!
//! Data and tree, one after the other, are the *area*. Its blocks are dealt to `255 - roots` columns of `rounds` blocks each; the bytes
//! at one place of all columns make a codeword with `roots` bytes from the device (RS over GF(256), 0x11d, from the zeroth root on). The
//! result counts only if it matches the digest, so a decoder that errs can do no harm.
//!
//! One actor repairs, one block after the other, and may wait for the disks; requests wait in its inbox, not in threads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reed_solomon::Decoder;
use thinmap_block::BlockDevice;
use thinmap_dm::{DeviceUse, Environment, TableError};
use thinmap_runtime::{Actor, ActorHandle, IoBuf, NextTurn};
use thinmap_units::Sector;

use super::NAME;
use super::hasher::Digest;
use super::nodes::{Load, Nodes};
use super::verify::Piece;

/// What a table line says of it.
#[derive(Clone)]
pub(super) struct FecArguments {
    pub(super) device: DeviceUse,
    /// That are covered: at least data and tree.
    pub(super) blocks: u64,
    /// First block of the codes on their device.
    pub(super) start: u64,
    /// Bytes of code to a codeword.
    pub(super) roots: u8,
}

/// Where the blocks of the area are.
pub(super) struct Area {
    pub(super) data: DeviceUse,
    pub(super) data_blocks: u64,
    pub(super) hash: DeviceUse,
    pub(super) hash_start: u64,
    pub(super) hash_blocks: u64,
    pub(super) block_bytes: usize,
}

/// See the module.
pub(super) struct Fec {
    codes: FecArguments,
    area: Area,
    rounds: u64,
    inbox: Arc<Inbox>,
    handle: ActorHandle,
}

/// A block to be computed anew, and who goes on with it.
pub(super) enum Repair {
    /// The block that the piece has come to.
    Data(Box<Piece>, Digest),
    Node(Arc<Load>, IoBuf),
}

impl Fec {
    pub(super) fn new(
        codes: FecArguments,
        area: Area,
        env: &Environment,
    ) -> Result<Self, TableError> {
        let covered = area.data_blocks.checked_add(area.hash_blocks);
        let columns = u64::from(CODEWORD_BYTES) - u64::from(codes.roots);
        let rounds = codes.blocks.div_ceil(columns);
        if rounds == 0 || covered.is_none_or(|covered| codes.blocks < covered) {
            let reason = format!(
                "Invalid fec_blocks: {} are less than the {} of data and the {} of the tree",
                codes.blocks, area.data_blocks, area.hash_blocks
            );
            return Err(TableError::invalid(NAME, reason));
        }
        let bytes = area.block_bytes as u64;
        let there = codes.device.dev.size().bytes() / bytes;
        let end = rounds.checked_mul(u64::from(codes.roots));
        let end = end.and_then(|blocks| blocks.checked_add(codes.start));
        if end.is_none_or(|end| there < end) {
            let reason = format!(
                "FEC device is too small: {} has {there} blocks",
                codes.device
            );
            return Err(TableError::new(NAME, reason, E2BIG));
        }
        if area.data.dev.size().bytes() / bytes < area.data_blocks {
            return Err(TableError::new(NAME, "Data device is too small", E2BIG));
        }
        let inbox = Arc::new(Inbox(Mutex::new(Some(VecDeque::new()))));
        let actor = Arc::new(Repairer(inbox.clone()));
        let handle = env.spawner.spawn("thinmap-fec", actor).map_err(|error| {
            let reason = format!("no thread for error correction: {error}");
            TableError::new(NAME, reason, ENOMEM)
        })?;
        Ok(Self {
            codes,
            area,
            rounds,
            inbox,
            handle,
        })
    }

    pub(super) fn codes(&self) -> &FecArguments {
        &self.codes
    }

    /// Has a block computed anew. A repair that is dropped fails its request.
    pub(super) fn ask(&self, repair: Repair) {
        if let Some(jobs) = self.inbox.0.lock().as_mut() {
            jobs.push_back(repair);
        }
        self.handle.wake();
    }

    /// A data block as its digest says it was.
    fn data_block(&self, nodes: &Nodes, block: u64, expected: &Digest) -> Option<Vec<u8>> {
        self.compute(nodes, block, expected)
    }

    /// A hash block of the hash device.
    fn hash_block(&self, nodes: &Nodes, block: u64, expected: &Digest) -> Option<Vec<u8>> {
        let number = block - self.area.hash_start + self.area.data_blocks;
        self.compute(nodes, number, expected)
    }

    fn compute(&self, nodes: &Nodes, number: u64, expected: &Digest) -> Option<Vec<u8>> {
        let (column, row) = (number / self.rounds, number % self.rounds);
        let column = usize::try_from(column).ok()?;
        let rows = self.read_row(row)?;
        // Places of errors need not be known, but then half as many can be corrected.
        let repaired = self.decode(&rows, column, &rows.unread);
        let is_right =
            |block: &Vec<u8>| nodes.hasher.digest(block).as_slice() == expected.as_slice();
        if let Some(block) = repaired.filter(is_right) {
            return Some(block);
        }
        let mut wrong = rows.unread.clone();
        for (index, content) in rows.columns.iter().enumerate() {
            let number = row + index as u64 * self.rounds;
            let index = u8::try_from(index).ok()?;
            let is_known = number < self.area.data_blocks && !wrong.contains(&index);
            let digest = is_known.then(|| nodes.digest_now(number)).flatten();
            let is_wrong =
                |digest: Digest| nodes.hasher.digest(content).as_slice() != digest.as_slice();
            if digest.is_some_and(is_wrong) {
                wrong.push(index);
            }
        }
        self.decode(&rows, column, &wrong).filter(is_right)
    }

    /// A row of blocks with its codes.
    fn read_row(&self, row: u64) -> Option<Row> {
        let Area {
            data,
            data_blocks,
            hash,
            hash_start,
            hash_blocks,
            block_bytes,
        } = &self.area;
        let count = CODEWORD_BYTES - self.codes.roots;
        let mut columns = Vec::with_capacity(usize::from(count));
        let mut unread = Vec::new();
        for index in 0..count {
            let number = row + u64::from(index) * self.rounds;
            let content = match number.checked_sub(*data_blocks) {
                None => read(&data.dev, number, *block_bytes, 1),
                Some(nr) if nr < *hash_blocks => read(&hash.dev, hash_start + nr, *block_bytes, 1),
                // What is behind the tree was coded as zeroes.
                Some(_) => Some(vec![0; *block_bytes]),
            };
            columns.push(content.unwrap_or_else(|| {
                unread.push(index);
                vec![0; *block_bytes]
            }));
        }
        let roots = u64::from(self.codes.roots);
        let first = self.codes.start + row * roots;
        Some(Row {
            columns,
            codes: read(
                &self.codes.device.dev,
                first,
                *block_bytes,
                self.codes.roots,
            )?,
            unread,
        })
    }

    /// One column's block from a row, of whose columns some are known to be wrong.
    fn decode(&self, row: &Row, column: usize, wrong: &[u8]) -> Option<Vec<u8>> {
        let roots = usize::from(self.codes.roots);
        if wrong.len() > roots {
            return None;
        }
        let decoder = Decoder::new(roots);
        let mut codeword = Vec::with_capacity(usize::from(CODEWORD_BYTES));
        let mut block = Vec::with_capacity(self.area.block_bytes);
        for (place, code) in row.codes.chunks_exact(roots).enumerate() {
            codeword.clear();
            codeword.extend(row.columns.iter().map(|content| content[place]));
            codeword.extend_from_slice(code);
            let corrected = decoder.correct(&codeword, Some(wrong)).ok()?;
            block.push(*corrected.data().get(column)?);
        }
        Some(block)
    }
}

impl Drop for Fec {
    fn drop(&mut self) {
        drop(self.inbox.0.lock().take());
        self.handle.wake();
    }
}

struct Row {
    columns: Vec<Vec<u8>>,
    codes: Vec<u8>,
    /// Columns that could not be read.
    unread: Vec<u8>,
}

fn read(dev: &Arc<dyn BlockDevice>, block: u64, block_bytes: usize, count: u8) -> Option<Vec<u8>> {
    let sectors = Sector::from_bytes(block_bytes as u64).raw();
    let buf = IoBuf::alloc(block_bytes * usize::from(count));
    let (buf, status) = thinmap_block::read(&**dev, Sector(block.checked_mul(sectors)?), buf);
    status.is_ok().then(|| buf.as_slice().to_vec())
}

/// `None` when nobody will look any more.
struct Inbox(Mutex<Option<VecDeque<Repair>>>);

struct Repairer(Arc<Inbox>);

impl Actor for Repairer {
    fn turn(&self, _now: Duration) -> NextTurn {
        loop {
            let next = match self.0.0.lock().as_mut() {
                Some(jobs) => jobs.pop_front(),
                None => return NextTurn::Stop,
            };
            match next {
                Some(repair) => repair.run(),
                None => return NextTurn::WhenWoken,
            }
        }
    }

    /// Requests that want a repair fail from now on, by being dropped.
    fn panicked(&self) {
        tracing::error!("verity: error correction ended by a panic");
        let left = self.0.0.lock().take();
        drop(left);
    }
}

impl Repair {
    fn run(self) {
        match self {
            Self::Data(piece, expected) => {
                let nodes = piece.nodes();
                let fec = nodes.fec.as_ref();
                let block = piece.block();
                let repaired = fec.and_then(|fec| fec.data_block(&nodes, block, &expected));
                if repaired.is_some() {
                    tracing::warn!("verity: data block {block} corrected");
                }
                // Before the request ends: a line may be removed then.
                drop(nodes);
                piece.repaired(repaired);
            }
            Self::Node(load, node) => {
                let (nodes, block) = (load.nodes.clone(), load.block());
                let fec = nodes.fec.as_ref();
                let repaired = fec.and_then(|fec| fec.hash_block(&nodes, block, &load.expected));
                if repaired.is_some() {
                    tracing::warn!("verity: metadata block {block} corrected");
                }
                drop(nodes);
                load.repaired(repaired, node);
            }
        }
    }
}

const CODEWORD_BYTES: u8 = 255;
const E2BIG: i32 = 7;
const ENOMEM: i32 = 12;
