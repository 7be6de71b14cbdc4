//! Every tree of an image walked once, on all cores: what each metadata block is, how often it is referred
//! to, and how often each data block is.
//!
//! The walk goes down level by level. The blocks of a level are sorted and read in long runs by as many
//! threads as there are cores; a block that several parents share is read once. Memory is 29 bytes for each
//! block of the metadata device (115 MiB for the largest), 20 MiB of buffers, and what
//! [`DataCounts`] takes (at most 1.2 GiB).
//!
//! INVARIANT: a block enters a level only with the first reference to it, so a damaged image cannot make the
//! walk longer than it has blocks.

mod data_counts;
mod ranges;
mod summary;

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use thinmap_persistent_data::btree::Node;
use thinmap_persistent_data::{BlockBytes, BlockKind, IndexEntry, verify};
use thinmap_thin_metadata::DeviceDetails;

use crate::Progress;
use crate::check::{Area, Finding, Findings};
use crate::image::Image;

pub(crate) use data_counts::{CHUNK_BLOCKS, DataCounts, WINDOW_CHUNKS};
pub(crate) use ranges::{MissingRanges, RangeMap};
pub(crate) use summary::{Summaries, Summary, read_node};

/// Blocks that a thread takes at a time.
const JOB_BLOCKS: usize = 1024;
/// Levels smaller than this are not worth a thread.
const LEVEL_BLOCKS_MIN: usize = 4 * JOB_BLOCKS;
/// More threads than this only wait for the device.
const THREADS_MAX: usize = 16;

/// What a block is for, as told by what refers to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Role {
    /// A node of a tree from device id to the root of its mapping tree.
    Top = 1,
    /// A node of a volume's mapping tree.
    Mappings = 2,
    /// A node of the tree of device details.
    Details = 3,
    /// A node of the data space map's index.
    Index = 4,
    /// A node of a tree of counts above two.
    Counts = 5,
    /// A bitmap of a space map.
    Bitmap = 6,
    /// Something that is read by itself: superblock, held root, metadata index.
    Single = 7,
}

impl Role {
    fn of(state: u8) -> Option<Self> {
        let roles = [
            Self::Top,
            Self::Mappings,
            Self::Details,
            Self::Index,
            Self::Counts,
            Self::Bitmap,
            Self::Single,
        ];
        roles.into_iter().find(|role| *role as u8 == state & ROLE)
    }

    /// Bytes in a leaf's values.
    pub(crate) fn value_size(self) -> usize {
        match self {
            Self::Details => DeviceDetails::SIZE,
            Self::Index => IndexEntry::SIZE,
            Self::Counts => 4,
            _ => 8,
        }
    }

    pub(crate) fn area(self) -> Area {
        match self {
            Self::Top | Self::Mappings => Area::Mappings,
            Self::Details => Area::Details,
            Self::Index | Self::Counts | Self::Bitmap => Area::SpaceMaps,
            Self::Single => Area::Superblock,
        }
    }
}

/// The bits of a mapping that hold its time.
const MAPPING_TIME: u32 = (1 << 24) - 1;

const ROLE: u8 = 0x07;
/// Referred to as the root of a tree.
const ROOT: u8 = 0x08;
/// Read, and as it should be.
const GOOD: u8 = 0x10;
const LEAF: u8 = 0x20;
/// Something in or below it is damaged.
const DAMAGED: u8 = 0x40;
/// Its summary is known.
const SUMMED: u8 = 0x80;

/// What is known of each metadata block.
pub(crate) struct Blocks {
    refs: Vec<AtomicU32>,
    state: Vec<AtomicU8>,
    /// Lowest and highest key below, and the number of entries; meaningful once summed or for good leaves.
    first: Vec<AtomicU64>,
    last: Vec<AtomicU64>,
    entries: Vec<AtomicU64>,
    /// Highest time of a mapping below; empty unless asked for.
    times: Vec<AtomicU32>,
}

fn zeroes<T: Default>(count: u64) -> Vec<T> {
    std::iter::repeat_with(T::default)
        .take(count as usize)
        .collect()
}

impl Blocks {
    fn new(count: u64) -> Self {
        Self {
            refs: zeroes(count),
            state: zeroes(count),
            first: zeroes(count),
            last: zeroes(count),
            entries: zeroes(count),
            times: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.refs.len() as u64
    }

    /// References found to `block`.
    pub(crate) fn refs(&self, block: u64) -> u32 {
        self.refs[block as usize].load(Ordering::Relaxed)
    }

    fn state(&self, block: u64) -> u8 {
        self.state[block as usize].load(Ordering::Relaxed)
    }

    fn mark(&self, block: u64, bits: u8) {
        self.state[block as usize].fetch_or(bits, Ordering::Relaxed);
    }

    pub(crate) fn role(&self, block: u64) -> Option<Role> {
        let state = self.state.get(usize::try_from(block).ok()?)?;
        Role::of(state.load(Ordering::Relaxed))
    }

    /// Whether the block was read and keeps all rules of a node by itself.
    pub(crate) fn is_good(&self, block: u64) -> bool {
        block < self.len() && self.state(block) & GOOD != 0
    }

    /// Whether something in or below the block is damaged.
    pub(crate) fn is_damaged(&self, block: u64) -> bool {
        block >= self.len() || self.state(block) & (DAMAGED | GOOD) != GOOD
    }

    /// Whether a good block is a leaf.
    pub(crate) fn is_leaf(&self, block: u64) -> bool {
        self.is_good(block) && self.state(block) & LEAF != 0
    }

    fn is_leaf_of(&self, block: u64, role: Role) -> bool {
        let wanted = GOOD | LEAF | role as u8;
        self.state(block) & (GOOD | LEAF | ROLE) == wanted
    }

    /// The readable leaves of trees of a kind, ascending.
    pub(crate) fn leaves(&self, role: Role) -> Vec<u64> {
        (0..self.len())
            .filter(|block| self.is_leaf_of(*block, role))
            .collect()
    }

    /// The highest time of a mapping below a block that is summed up; 0 unless asked for.
    pub(crate) fn time(&self, block: u64) -> u32 {
        self.times
            .get(block as usize)
            .map_or(0, |time| time.load(Ordering::Relaxed))
    }

    fn raise_time(&self, block: u64, time: u32) {
        if let Some(known) = self.times.get(block as usize) {
            known.fetch_max(time, Ordering::Relaxed);
        }
    }

    fn set_span(&self, block: u64, span: Summary) {
        let at = block as usize;
        self.first[at].store(span.first, Ordering::Relaxed);
        self.last[at].store(span.last, Ordering::Relaxed);
        self.entries[at].store(span.entries, Ordering::Relaxed);
    }

    fn span(&self, block: u64) -> Summary {
        let at = block as usize;
        Summary {
            first: self.first[at].load(Ordering::Relaxed),
            last: self.last[at].load(Ordering::Relaxed),
            entries: self.entries[at].load(Ordering::Relaxed),
        }
    }
}

/// A walk over an image.
pub(crate) struct Walk<'a> {
    pub(crate) image: &'a Image,
    pub(crate) blocks: Blocks,
    /// Counts of data blocks; `None` when mappings' data blocks are of no interest.
    pub(crate) data: Option<DataCounts>,
    /// Bitmaps of the data space map as its index tree names them: bitmap number, entry.
    pub(crate) bitmaps: Vec<(u64, IndexEntry)>,
    pub(crate) findings: &'a Findings,
    pub(crate) progress: &'a Progress,
    /// Trees of volumes are walked, the trees that they name are not.
    pub(crate) tops_only: bool,
    threads: usize,
    /// References yet to be followed.
    level: Vec<u64>,
}

/// What a thread brings back from a level.
#[derive(Default)]
struct Harvest {
    next: Vec<u64>,
    bitmaps: Vec<(u64, IndexEntry)>,
}

impl<'a> Walk<'a> {
    /// A walk that has seen nothing yet, of the first `blocks` blocks of `image`.
    pub(crate) fn new(
        image: &'a Image,
        blocks: u64,
        findings: &'a Findings,
        progress: &'a Progress,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            image,
            // The superblock is there whatever it counts, and is the parent of the roots.
            blocks: Blocks::new(blocks.clamp(1, image.blocks())),
            data: None,
            bitmaps: Vec::new(),
            findings,
            progress,
            tops_only: false,
            threads: cores.min(THREADS_MAX),
            level: Vec::new(),
        }
    }

    /// Keeps the highest time of the mappings below each block too, in 4 bytes more for each.
    pub(crate) fn keep_times(&mut self) {
        self.blocks.times = zeroes(self.blocks.len());
    }

    /// Adds a tree. Follow it with [`run`](Self::run).
    pub(crate) fn add_root(&mut self, root: u64, role: Role) {
        let mut next = std::mem::take(&mut self.level);
        self.refer(0, root, role, ROOT, &mut next);
        self.level = next;
    }

    /// Counts a reference to a block that is read by itself; `true` when it is the first.
    pub(crate) fn refer_single(&self, block: u64) -> bool {
        self.refer(0, block, Role::Single, GOOD, &mut Vec::new());
        block < self.blocks.len() && self.blocks.refs(block) == 1
    }

    /// Walks everything below the roots added.
    pub(crate) fn run(&mut self) {
        while !self.level.is_empty() {
            let mut level = std::mem::take(&mut self.level);
            level.sort_unstable();
            for harvest in self.walk_level(&level) {
                self.level.extend(harvest.next);
                self.bitmaps.extend(harvest.bitmaps);
            }
        }
    }

    fn walk_level(&self, level: &[u64]) -> Vec<Harvest> {
        self.in_parallel(level, |block, bytes, harvest: &mut Harvest| {
            self.visit(block, bytes, harvest);
        })
    }

    /// Reads `blocks`, which ascend, on all cores; gives what each thread gathered.
    pub(crate) fn in_parallel<H: Default + Send>(
        &self,
        blocks: &[u64],
        each: impl Fn(u64, std::io::Result<&BlockBytes>, &mut H) + Sync,
    ) -> Vec<H> {
        let jobs: Vec<&[u64]> = blocks.chunks(JOB_BLOCKS).collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let (mut harvest, mut buffer) = (H::default(), Vec::new());
            while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.image.read_sorted(job, &mut buffer, |block, bytes| {
                    each(block, bytes, &mut harvest);
                });
                self.progress.add(job.len() as u64);
            }
            harvest
        };
        if blocks.len() < LEVEL_BLOCKS_MIN || self.threads == 1 {
            return vec![work()];
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads.min(jobs.len()))
                .map(|_| scope.spawn(work))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("a thread of the walk does not panic"))
                .collect()
        })
    }

    /// Counts a reference from `parent` to `block`, and puts the block into `next` if it is the first.
    fn refer(&self, parent: u64, block: u64, role: Role, bits: u8, next: &mut Vec<u64>) {
        if block == 0 || block >= self.blocks.len() {
            if role == Role::Single && block == 0 {
                self.blocks.mark(0, role as u8 | bits);
                self.blocks.refs[0].fetch_add(1, Ordering::Relaxed);
                return;
            }
            let what = format!("refers to metadata block {block}, which no tree can use");
            self.findings
                .add(Finding::fatal(role.area(), what).in_block(parent));
            self.blocks.mark(parent, DAMAGED);
            return;
        }
        if self.blocks.refs[block as usize].fetch_add(1, Ordering::Relaxed) == 0 {
            self.blocks.mark(block, role as u8 | bits);
            next.push(block);
        } else if self.blocks.role(block).is_some_and(|known| known != role) {
            let what = format!("is used as {role:?} and as something else");
            self.findings
                .add(Finding::fatal(role.area(), what).in_block(block));
            self.blocks.mark(parent, DAMAGED);
        }
    }

    fn visit(&self, block: u64, bytes: std::io::Result<&BlockBytes>, harvest: &mut Harvest) {
        let Some(role) = self.blocks.role(block) else {
            return;
        };
        let bad = |what: String| {
            self.findings
                .add(Finding::fatal(role.area(), what).in_block(block));
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => {
                let what = format!("cannot be read: {error}");
                let finding = Finding::fatal(role.area(), what).in_block(block);
                return self.findings.add(finding.unreadable(true));
            }
        };
        let kind = match role {
            Role::Bitmap => BlockKind::Bitmap,
            _ => BlockKind::Node,
        };
        if let Err(error) = verify(kind, block, bytes) {
            return bad(error.context().to_owned());
        }
        if role == Role::Bitmap {
            return self.blocks.mark(block, GOOD);
        }
        let node = Node(bytes);
        let is_root = self.blocks.state(block) & ROOT != 0;
        if let Some(broken) = broken_rule(node, role, is_root) {
            return bad(broken);
        }
        self.accept(block, node, role, harvest);
    }

    /// Takes note of a good node and follows what it refers to.
    fn accept(&self, block: u64, node: Node<'_>, role: Role, harvest: &mut Harvest) {
        if !node.is_leaf() {
            self.blocks.mark(block, GOOD);
            for at in 0..node.len() {
                self.refer(block, node.child(at), role, 0, &mut harvest.next);
            }
            return;
        }
        let len = node.len();
        let span = match len {
            0 => Summary::default(),
            _ => Summary {
                first: node.key(0),
                last: node.key(len - 1),
                entries: len as u64,
            },
        };
        self.blocks.set_span(block, span);
        self.blocks.mark(block, GOOD | LEAF | SUMMED);
        match role {
            Role::Top if self.tops_only => {
                let is_block = |at: &usize| (1..self.blocks.len()).contains(&node.child(*at));
                if let Some(at) = (0..len).find(|at| !is_block(at)) {
                    let (id, root) = (node.key(at), node.child(at));
                    let what = format!(
                        "has the tree of volume {id} in metadata block {root}, which no tree can use"
                    );
                    self.findings
                        .add(Finding::fatal(role.area(), what).in_block(block));
                }
            }
            Role::Top => (0..len).for_each(|at| {
                let root = node.child(at);
                self.refer(block, root, Role::Mappings, ROOT, &mut harvest.next);
            }),
            Role::Mappings => {
                if !self.blocks.times.is_empty() {
                    let times = (0..len).map(|at| node.child(at) as u32 & MAPPING_TIME);
                    self.blocks.raise_time(block, times.max().unwrap_or(0));
                }
                if let Some(data) = &self.data
                    && let Some((key, past)) = data.add_leaf(node)
                {
                    let what = format!(
                        "maps block {key} to data block {past}, past the end of the data device"
                    );
                    self.findings
                        .add(Finding::fatal(Area::Mappings, what).in_block(block));
                }
            }
            Role::Index => (0..len).for_each(|at| {
                let entry = index_entry_of(node.value(at));
                self.refer(block, entry.block, Role::Bitmap, 0, &mut harvest.next);
                harvest.bitmaps.push((node.key(at), entry));
            }),
            Role::Details | Role::Counts | Role::Bitmap | Role::Single => {}
        }
    }
}

/// An index entry out of a leaf whose values have its size.
pub(crate) fn index_entry_of(value: &[u8]) -> IndexEntry {
    let mut bytes = [0; IndexEntry::SIZE];
    bytes.copy_from_slice(value);
    IndexEntry::unpack(&bytes)
}

/// The rule that a node breaks by itself, if any.
pub(crate) fn broken_rule(node: Node<'_>, role: Role, is_root: bool) -> Option<String> {
    let (len, max) = (node.len(), node.max());
    if node.is_leaf() && node.value_size() != role.value_size() {
        let (found, wanted) = (node.value_size(), role.value_size());
        return Some(format!(
            "is a leaf with values of {found} bytes where {wanted} are expected"
        ));
    }
    if max % 3 != 0 {
        return Some(format!("has room for {max} entries, not a multiple of 3"));
    }
    if !is_root && len < max / 3 {
        return Some(format!("holds only {len} entries of {max}"));
    }
    let mut keys = (0..len).map(|at| node.key(at));
    let mut before = keys.next()?;
    for key in keys {
        if key <= before {
            return Some(format!("has key {key} behind key {before}"));
        }
        before = key;
    }
    None
}
